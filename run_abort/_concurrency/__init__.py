"""Threads, forks and callbacks: the lifecycles that every other package builds on.

May import the standard library alone: neither Django nor Redis, and no other package of this app.
Others use ``forks.at_fork``, ``service.Service``, ``workers.SerialWorker``, ``workers.call_bounded``,
``hooks.Hook`` and ``throttle.Throttle``.
"""
