"""The runtime of a process: makes the parts, connects them, starts and stops their threads.

May import ``_transport``, ``_store``, ``_core`` and ``_concurrency``. Others use
``runtime.current()``, the verbs, ``health`` and the outcome.
"""
