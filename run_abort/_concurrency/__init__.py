"""Threads, forks and callbacks: the lifecycles that every other package builds on.

May import the standard library alone: neither Django nor Redis, nor another package of this app.
Others use ``at_fork``, ``Service``, ``SerialWorker``, ``submit``, ``Hook``, ``Throttle`` and
``Memory``.
"""
