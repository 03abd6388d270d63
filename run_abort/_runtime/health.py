"""Whether this process receives requests. For probes; does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from run_abort import conf
from run_abort._transport.listener import State
from run_abort.exceptions import visible

from .runtime import current


@dataclass(frozen=True, slots=True)
class Health:
    """The health of this process as a receiver of requests.

    :ivar ok: whether this process receives requests as fast as the settings allow. True if it
        listens. Also true if it reads requests from the database, and no Redis is configured or
        ``LISTEN`` is False. False if neither is used, if what it works on could not be looked up in
        the database then, or if the settings are invalid.
    :ivar state: of the listener: ``"starting"`` (not yet connected), ``"listening"`` (the server
        has confirmed the subscription), ``"reconnecting"`` (not, or no longer, confirmed),
        ``"stopped"`` (or its thread could not be started) or ``"off"`` (not started in this
        process, or no Redis is configured).
    :ivar since: when the listener entered that state, in UTC.
    :ivar reconnects: number of times a lost subscription was re-established.
    :ivar last_error: why ``ok`` is False, such as why the connection is lost or refused; empty
        while it listens. It may contain host names: do not publish it.
    :ivar origin: the ID of this process on the wire.
    :ivar redis: whether a usable Redis is configured. It need not be reachable.
    :ivar database: whether requests are also read from the database, so that none is lost while
        the listener is not listening. The database need not be reachable.
    :ivar held: number of open blocks of ``abortable_run`` in this process.
    :ivar unsigned: number of messages that this process received without a signature.
    :ivar refused: number of messages whose signature did not fit, was over 60 s old or was received
        before, or that had none with ``UNSIGNED`` at ``"refuse"``.
    :ivar malformed: number of messages that were ignored, because they break the wire contract.
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
    unsigned: int
    refused: int
    malformed: int


def health() -> Health:
    """The health of this process. Does no I/O; raises nothing; any thread may call this.

    The first call may import redis-py.
    """
    runtime = current()
    now = runtime.listener.status()
    ok = now.state == "listening"
    redis = database = False
    last_error = "" if ok else now.last_error
    try:
        options = conf.settings()
        database = options.REQUESTS
        redis = runtime.push.may_be_configured() and runtime.push.transport() is not None
    except Exception as error:
        last_error = f"{type(error).__name__}: {visible(error)}"
    else:
        if now.state in {"off", "stopped"}:
            ok = database and not (redis and options.LISTEN is not False)
            if ok and not runtime.reconciler.has_read:
                ok, last_error = False, "DatabaseError: requests could not be read: see the log"
    return Health(
        ok=ok,
        state=now.state,
        since=now.since,
        reconnects=now.reconnects,
        last_error=last_error,
        origin=now.origin,
        redis=redis,
        database=database,
        held=len(runtime.registry.controllers()),
        unsigned=runtime.trust.unsigned,
        refused=runtime.trust.refused,
        malformed=now.malformed,
    )
