"""The rows: requests to abort, what became of them, and how far a named listener has come.

May import ``_core``, ``_concurrency``, ``models`` and ``conf``; it knows nothing of the push.
Others use ``database``, ``requests``, ``timeline.Timeline``, ``cursors.Cursor``, ``retention``.
"""
