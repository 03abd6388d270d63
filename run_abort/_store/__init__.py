"""The rows: requests, their deliveries, and the cursors of named listeners.

May import ``_core``, ``_concurrency``, ``models`` and ``conf``; not the push.
Others use ``database``, ``requests``, ``timeline.Timeline``, ``cursors.Cursor``, ``retention``.
"""
