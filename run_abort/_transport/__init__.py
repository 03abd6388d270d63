"""The push: how a request reaches other processes at once.

May import ``_core`` and ``_concurrency``; it knows neither the rows nor what a request does. Others
use ``push.Push``, ``listener.Listener`` and the codec.
"""
