"""Public functions: publish an abort, subscribe to aborts of other processes, add fact hooks."""

from __future__ import annotations

from collections.abc import Callable

from run_abort._core.ids import clean_id
from run_abort._core.types import Request

from .facts import Fact
from .runtime import current


def on_fact(hook: Callable[[Fact], object], *, is_short: bool = False) -> Callable[[], None]:
    """Call ``hook(fact)`` for each fact that this process records from now on: for metrics.

    The hook is called on a thread of its own, which exists while it has work, one fact after the
    other. So it delays no abort and no other hook. Up to 50,000 facts wait for a slow hook; further
    ones are dropped for it, and logged as an error. Its exceptions are logged. Adding it again
    changes nothing. Forked children keep it.

    :param is_short: whether the hook returns quickly, without waiting for anything. If so, a fork
        waits up to a second for it, so that the child does not inherit a lock that it holds.
    :return: a function that removes the hook.
    :raises TypeError: if it is not callable, or is a coroutine function.
    """
    return current().facts.add_hook(hook, is_short=is_short)


def publish_run_abort(run_id: str) -> bool:
    """Ask every other process that listens to abort ``run_id``: the bare push.

    Records nothing, and aborts nothing in this process; ``abort_run`` does both. Blocks for at most
    ``PUBLISH_TIMEOUT`` seconds.

    :return: True if Redis accepted the message. False, without raising, if the ID is not a valid
        string, if Redis is not configured or not reachable, or if publishing failed. A failure is
        logged as a warning.
    """
    try:
        clean = clean_id(run_id)
    except Exception:  # the key of an instance may raise anything
        return False
    if clean != run_id:  # it is a UUID or an instance
        return False
    return current().push.publish([Request(clean)])[0] is not None


def subscribe_to_run_aborts(on_abort: Callable[[str], object]) -> bool:
    """Call ``on_abort(run_id)`` for each abort that another process requests, once for each ID.

    Also for the requests that this process has missed while it was not subscribed; a message
    without an ID comes each time. Starts the listener if needed.

    ``on_abort`` is called on a thread of its own, which exists while it has work, one abort after
    the other. At exit the interpreter waits for it for up to a second. Its exceptions are logged.
    Up to 10,000 aborts wait for a slow handler. Further ones are logged as an error, and it gets
    them later from the database, as far as they are there. Subscribing the same function again
    changes nothing. A handler cannot be unsubscribed.

    :param on_abort: takes the run ID, a ``str``. Wrap a coroutine function with
        ``asgiref.sync.async_to_sync``.
    :return: False if no usable Redis is configured, or ``LISTEN`` is False. Then ``on_abort`` is
        not called, unless the process is ``manage.py listen_run_aborts``. Else True, even if Redis
        is not reachable now.
    :raises TypeError: if ``on_abort`` is not callable, or is a coroutine function.
    :raises ImproperlyConfigured: if ``RUN_ABORT`` is invalid.
    """
    runtime = current()
    runtime.dispatch.add_handler(on_abort)
    return runtime.listener.ensure_started()
