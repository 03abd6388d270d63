"""The rows: requests, holds, and the cursors of named listeners.

May import ``_core``, ``_concurrency``, ``models`` and ``conf``; not the push.
Others use ``database``, ``requests``, ``holds``, ``cursors.Cursor``, ``retention``.
"""
