"""How a block ends: by which exception, and also if an interrupt prevents its ``__exit__``.

The latter is the third part of ``interrupts``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Final, Protocol
from weakref import ref

from run_abort.exceptions import RunAborted

from . import current
from .interrupts import Shield, is_interruptible, open_interruptions

if TYPE_CHECKING:
    from .controller import AbortSignal

logger = logging.getLogger("run_abort")

_SWALLOWED: Final = "The aborted run %r raised this after its abort; catch=True swallows it"

# The modules by which an ExitStack binds __exit__, from CPython 3.15 on; before, it takes the
# function from the class. Its frames keep what it has bound, and so would the traceback of an
# interrupt keep the guard.
_STACKS: Final = ("contextlib", "inspect") if sys.version_info >= (3, 15) else ()

# None rather than bool alone: type checkers then take it that the body's return is the function's.
Exit = Callable[..., "bool | None"]


class KeptBlock(Protocol):
    """What :class:`kept_exit` needs of a block."""

    held: Held | None

    @property
    def insists(self) -> object:
        """True if this block may be interrupted, whether or not one around it may be."""

    def abandon(self) -> None:
        """End the block if ``__exit__`` did not. Raises nothing."""


class _Guard:
    """Abandons its block when it is deleted, unless it was disarmed."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: KeptBlock) -> None:
        self.block: KeptBlock | None = block

    def __del__(self) -> None:
        # The attribute is missing if an interrupt arrived in __init__.
        block: KeptBlock | None = getattr(self, "block", None)
        if block is not None:
            block.abandon()


class _Exit(partial["bool | None"]):
    """The callable that a ``with`` statement calls at its end.

    The traceback of an interrupt has references to the function and the block, but not to this
    object. So this object, and with it the guard, is deleted when the statement ends.
    """

    guard: _Guard | None = None


class Held:
    """Weak references to the ``_Exit`` of a ``with`` statement and to its guard.

    :ivar over: not empty once the statement has ended. A list, because a reference to the guard
        would keep the guard alive.
    """

    __slots__ = ("_exit", "_guard", "over")

    def __init__(self, exit: _Exit, guard: _Guard) -> None:  # noqa: A002
        self.over: list[object] = []
        self._exit = ref(exit)
        self._guard = ref(guard, self.over.append)

    def spend(self) -> None:
        """Disarm the guard, because the block was left. Called in the block's thread.

        The guard is deleted here, behind a shield: an interrupt that arrived in its ``__del__``
        would be lost.
        """
        exit, guard = self._exit(), self._guard()  # noqa: A001
        if guard is not None:
            guard.block = None
        if exit is not None:
            exit.guard = None


class kept_exit:  # noqa: N801  a decorator
    """Decorates ``__exit__`` so that an interrupt cannot prevent it in a ``with`` statement.

    A ``with`` statement looks ``__exit__`` up just before it calls ``__enter__``. This descriptor
    decides then whether the block needs a guard. A block with a guard gets ``held``.
    """

    def __init__(self, function: Exit) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, block: KeptBlock | None, owner: type | None = None) -> Exit:
        if block is None:
            return self._function
        # The cheap checks first: they are all that an ordinary block pays for.
        if not block.insists and (not open_interruptions or not is_interruptible()):
            return MethodType(self._function, block)
        # A debugger may look, too: it must not take the place of the statement, whose guard lives.
        is_looked_at = block.held is not None and not block.held.over
        if is_looked_at or (_STACKS and sys._getframe(1).f_globals.get("__name__") in _STACKS):
            return MethodType(self._function, block)
        exit = _Exit(self._function, block)  # noqa: A001
        exit.guard = _Guard(block)
        block.held = Held(exit, exit.guard)
        return exit


def refusal(signal: AbortSignal) -> RunAborted:
    """The exception of a block that was aborted while it was being entered, so its body never runs.

    Its request may have come as a push, before the block has read it.
    """
    refused, aborted = signal.exception(), signal.aborted_by
    if aborted is None or not aborted.request.stands:
        return refused
    facts = [*refused.args[:-1], aborted.request.run_id]  # the last one is the standing_id
    return RunAborted(*facts)


def end_aborted(
    signal: AbortSignal, exc: BaseException | None, *, catch: bool, is_ours: bool = False
) -> bool:
    """End an aborted block.

    :param exc: with which its body ended.
    :param catch: whether the block swallows its own ``RunAborted``.
    :param is_ours: whether ``exc`` is the block's own cancellation.
    :return: whether the ``with`` statement swallows ``exc``.
    :raises RunAborted: that of this block, if it replaces ``exc`` and is not swallowed.
    """
    gives_way = exc is None or is_ours or _gives_way(exc, signal)
    if not catch:
        if gives_way:
            raise signal.exception() from exc
        return False
    if exc is not None and _is_of_block_around(exc, signal):
        return False
    if gives_way and _is_more_than_aborts(exc):
        logger.warning(_SWALLOWED, signal.run_id, exc_info=exc)
    return gives_way or isinstance(exc, RunAborted)


def _gives_way(exc: BaseException, signal: AbortSignal) -> bool:
    """Whether this block's RunAborted replaces an exception that leaves the aborted block.

    KeyboardInterrupt, SystemExit, GeneratorExit and a foreign CancelledError are not replaced.
    """
    if isinstance(exc, BaseExceptionGroup):
        return exc.split((Exception, RunAborted))[1] is None
    if isinstance(exc, RunAborted):
        return exc.run_id != signal.run_id and not _is_of_block_around(exc, signal)
    return isinstance(exc, Exception)


def _is_more_than_aborts(exc: BaseException | None) -> bool:
    """Whether ``exc`` is, or a group that contains, anything but a RunAborted."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(RunAborted)[1] is not None
    return isinstance(exc, Exception)


def _is_of_block_around(exc: BaseException, signal: AbortSignal) -> bool:
    """Whether ``exc`` is, or a group that contains, the RunAborted of an open block around."""
    if isinstance(exc, BaseExceptionGroup):
        return any(_is_of_block_around(each, signal) for each in exc.exceptions)
    if not isinstance(exc, RunAborted) or exc.run_id == signal.run_id:
        return False
    return exc.run_id in [block.signal.run_id for block in current.open_blocks()]


def put_up(shield: Shield) -> RunAborted | None:
    """Put the shield up; return the interrupt that arrived first, if one did."""
    try:
        shield.put_up()
    except RunAborted as interrupt:
        return interrupt
    return None
