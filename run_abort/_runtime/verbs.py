"""The verbs of this process: publish an abort, subscribe to those of others, hook into facts."""

from __future__ import annotations

from collections.abc import Callable

from run_abort._core.types import Request

from .facts import Fact
from .runtime import current

__all__ = ["on_fact", "publish_run_abort", "subscribe_to_run_aborts"]


def on_fact(hook: Callable[[Fact], object], *, is_short: bool = False) -> Callable[[], None]:
    """Call ``hook(fact)`` for each fact that this process records from now on: for metrics.

    It is called on a thread of its own, one fact after the other, and so delays no abort and no
    other hook. What it raises is logged. Adding it again changes nothing. Forked children keep it.

    :param is_short: whether it takes a moment only, and waits for nothing: then a fork waits for
        it, so that the child inherits no lock that it holds.
    :return: a function that removes the hook again.
    :raises TypeError: if it is not callable.
    """
    return current().facts.add_hook(hook, is_short=is_short)


def publish_run_abort(run_id: str) -> bool:
    """Ask every other process that listens to abort ``run_id``: the bare push.

    Nothing is recorded, and nothing is aborted in this process: that is ``abort_run``. Blocks for
    at most ``PUBLISH_TIMEOUT`` seconds.

    :return: True when Redis took the message. False, without raising, when the ID is empty or not a
        string, when Redis is not configured or not reachable, or when publishing failed; a failure
        is logged as a warning.
    """
    if not isinstance(run_id, str) or not run_id:  # type: ignore[redundant-expr]  # untyped callers
        return False
    return current().push.publish([Request(run_id)])[0] is not None


def subscribe_to_run_aborts(on_abort: Callable[[str], object]) -> bool:
    """Call ``on_abort(run_id)`` for each abort that another process requests.

    Also for one that was requested up to a minute ago, if this process was not listening then.

    It is called on a thread of its own, one abort after the other; what it raises is logged. Makes
    sure that this process listens. Subscribing the same function again changes nothing.

    :param on_abort: takes the run ID, a ``str``.
    :return: False when no Redis is configured, or ``LISTEN`` is False: then ``on_abort`` is not
        called, and the caller keeps its local path. True when one is, also while it is away.
    :raises TypeError: if ``on_abort`` is not callable.
    :raises ImproperlyConfigured: if ``RUN_ABORT`` is invalid.
    """
    runtime = current()
    runtime.dispatch.add_handler(on_abort)
    return runtime.listener.ensure_started()
