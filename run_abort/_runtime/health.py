"""Whether this process hears of aborts. For probes; costs no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from run_abort import conf
from run_abort._transport.listener import State

from .runtime import current

__all__ = ["Health", "health"]


@dataclass(frozen=True, slots=True)
class Health:
    """How this process is as one that hears of aborts.

    :ivar ok: whether it hears of them as fast as the settings let it: it listens; or it is not to,
        because no Redis is configured or ``LISTEN`` is False, and reads them from the database.
        False also where neither is used, and where the settings are invalid.
    :ivar state: of the listener: ``"starting"``, ``"listening"``, ``"reconnecting"``,
        ``"stopped"`` or ``"off"``.
    :ivar since: when it came into that state, in UTC.
    :ivar reconnects: how often a lost subscription was had again.
    :ivar last_error: why the last connection was lost or refused, or why the settings cannot be
        used; empty if there was none. It may name hosts: not for everybody's eyes.
    :ivar origin: this process's ID on the wire.
    :ivar redis: whether a Redis is configured, well or not.
    :ivar database: whether aborts are also read from the database, so that none is lost while
        the listener is not listening. Says nothing of how the database is.
    :ivar held: how many blocks of ``abortable_run`` this process works in.
    """

    ok: bool
    state: State
    since: datetime
    reconnects: int
    last_error: str
    origin: str
    redis: bool
    database: bool
    held: int


def health() -> Health:
    """How this process is, and no other. No I/O; raises nothing; any thread may ask.

    The first call may import redis-py.
    """
    runtime = current()
    now = runtime.listener.status()
    ok = now.state == "listening"
    redis = database = False
    last_error = now.last_error
    try:
        options = conf.settings()
        database = options.INTENTS
        redis = runtime.push.may_be_configured() and runtime.push.transport() is not None
    except Exception as error:
        last_error = f"{type(error).__name__}: {error}"
    else:
        if now.state in {"off", "stopped"}:
            ok = database and not (redis and options.LISTEN is not False)
    return Health(
        ok=ok,
        state=now.state,
        since=now.since,
        reconnects=now.reconnects,
        last_error=last_error,
        origin=now.origin,
        redis=redis,
        database=database,
        held=len(runtime.registry.holdings()),
    )
