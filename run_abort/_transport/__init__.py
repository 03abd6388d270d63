"""The push: how a request reaches other processes at once.

May import ``_core``, ``_concurrency`` and ``conf``; it knows neither the rows nor what a request
does. Others use ``push.Push``, ``listener.Listener``, the Protocols of ``base`` and the codec.
"""
