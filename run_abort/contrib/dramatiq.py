"""Dramatiq: messages that are abortable runs::

    broker.add_middleware(Abortable())

    @dramatiq.actor
    def import_file(path):
        current_signal().raise_if_aborted()    # from run_abort

The run ID is the message's ID. It also aborts the messages that follow in a pipeline. Dramatiq
skips an aborted message: it is neither retried nor a dead letter. Its result contains the actor and
the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Final

from run_abort._concurrency.hooks import call_logged
from run_abort._core.controller import GRACE
from run_abort._core.ids import RunID, clean_ids
from run_abort._core.types import Escalation
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

from ._moved import moved
from ._needs import needs

with needs("Dramatiq", "dramatiq"):
    from dramatiq import Actor, Broker, Message
    from dramatiq.asyncio import async_to_sync
    from dramatiq.broker import MessageProxy
    from dramatiq.middleware import Middleware, SkipMessage
    from dramatiq.results import Results

__all__ = ["Abortable", "TaskAborted"]

__getattr__ = partial(moved, __name__, "abort_signal")

logger = logging.getLogger("run_abort")

# The message that the worker has begun to process, until its actor is called.
_begun: Final[ContextVar[MessageProxy | None]] = ContextVar("run_abort_begun", default=None)


class Abortable(Middleware):
    """Makes the messages of a broker abortable runs. Its position among the middleware is free.

    The arguments are the defaults of the options of the same names. Actors can set these options,
    and messages through ``send_with_options``.

    :param abortable: whether messages are abortable runs.
    :param abort_grace: ``grace`` of ``abortable_run``, in seconds.
    :param abort_insist: ``insist`` of ``abortable_run``: ``"interrupt"`` for functions,
        ``"cancel"`` for coroutine functions, or both.

    Messages also have the option ``run_groups``: a list of further IDs that abort the message.
    """

    def __init__(
        self,
        *,
        abortable: bool = True,
        abort_grace: float = GRACE,
        abort_insist: Escalation | Iterable[Escalation] = (),
    ) -> None:
        self.defaults: dict[str, Any] = {
            "abortable": abortable,
            "abort_grace": abort_grace,
            "abort_insist": abort_insist,
        }

    def get_run_id(self, message: MessageProxy) -> RunID:
        """The run ID of a message; by default the message's ID. Meant to be overridden."""
        return message.message_id

    def get_run_groups(self, message: MessageProxy) -> Iterable[RunID]:
        """Further IDs that abort the message; by default those of its option ``run_groups``."""
        return message.options.get("run_groups", ())

    def on_abort_before_start(self, message: MessageProxy, error: TaskAborted) -> None:
        """Called if a message was aborted before its actor began. Meant to be overridden.

        Called in the worker, in the thread of the message. Exceptions are logged.
        """

    @property
    def actor_options(self) -> set[str]:
        """Names of the options that actors can set."""
        return set(self.defaults)

    def after_declare_actor(self, broker: Broker, actor: Actor[..., Any]) -> None:
        """Wrap the actor's function, so that each message is processed within a block."""
        fn = actor.fn
        work = _within_block(fn)

        @wraps(fn)
        def process(*args: Any, **kwargs: Any) -> Any:
            message = _begun.get()
            if message is None:
                return fn(*args, **kwargs)
            _begun.set(None)  # the actor may call other actors as functions
            block = self._block(broker, message)
            try:
                return fn(*args, **kwargs) if block is None else work(block, *args, **kwargs)
            except RunAborted as aborted:
                if block is not None and not block.began:
                    error = TaskAborted.of(aborted)
                    call_logged(partial(self.on_abort_before_start, message, error))
                _store(broker, message, aborted)
                raise SkipMessage(str(aborted)) from aborted

        actor.fn = process

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Remember the message, in the thread that processes it."""
        _begun.set(message)

    def after_process_message(self, broker: Broker, message: MessageProxy, **outcome: Any) -> None:
        """Forget the message, in the thread that processed or skipped it."""
        _begun.set(None)

    after_skip_message = after_process_message

    def _block(self, broker: Broker, message: MessageProxy) -> abortable_run | None:
        ids = clean_ids(self.get_run_id(message), self.get_run_groups(message))
        follower = message.options.get("pipe_target")
        if follower is not None:  # the IDs abort the rest of the pipeline, too
            groups = [*follower["options"].get("run_groups", ()), *ids]
            follower["options"]["run_groups"] = list(dict.fromkeys(groups))
        options = self.defaults | _options(broker, message)
        if not options["abortable"]:
            return None
        return abortable_run(
            ids[0],
            groups=ids[1:],
            label=message.actor_name,
            grace=options["abort_grace"],
            insist=options["abort_insist"],
        )


async def _nothing() -> None: ...


# The code object that all functions share that Dramatiq makes of coroutine functions.
_TO_SYNC: Final = async_to_sync(_nothing).__code__


def _within_block(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that enters its first argument, a block, and calls ``fn`` with the rest."""
    if getattr(fn, "__code__", None) is _TO_SYNC:
        coroutine_function: Callable[..., Any] = fn.__wrapped__  # type: ignore[attr-defined]

        async def work_async(block: abortable_run, /, *args: Any, **kwargs: Any) -> Any:
            async with block:
                return await coroutine_function(*args, **kwargs)

        return async_to_sync(work_async)

    def work(block: abortable_run, /, *args: Any, **kwargs: Any) -> Any:
        with block:
            return fn(*args, **kwargs)

    return work


def _options(broker: Broker, message: MessageProxy | Message[Any]) -> dict[str, Any]:
    """The options of a message, which override those of its actor."""
    actor = broker.actors.get(message.actor_name)
    return {**(actor.options if actor is not None else {}), **message.options}


def _store(broker: Broker, message: MessageProxy, aborted: RunAborted) -> None:
    """Store the abort as the result of the message and of the rest of its pipeline."""
    ended: list[MessageProxy | Message[Any]] = [message]
    while target := ended[-1].options.get("pipe_target"):
        ended.append(Message(**target))
    for each in ended:
        options = _options(broker, each)
        for results in broker.middleware:
            if isinstance(results, Results) and options.get("store_results", results.store_results):
                ttl = options.get("result_ttl", results.result_ttl)
                try:
                    results.backend.store_exception(each, aborted, ttl)
                except Exception:
                    logger.exception(
                        "Could not store the abort of message %r as its result", each.message_id
                    )
    # Otherwise Results stores None as the result of a skipped message.
    message.options["store_results"] = False
