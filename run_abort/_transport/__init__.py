"""The push: how a request reaches other processes at once.

May import ``_core``, ``_concurrency`` and ``conf``; neither the rows nor the runtime. Others use
``push.Push``, ``listener.Listener``, ``trust.Trust``, the Protocols of ``base`` and the codec.
"""
