"""The innermost open block of this thread or asyncio task.

Blocks are not always left in the order in which they were entered, nor in the context in which
they were entered: an asynchronous generator may be closed by another task. There, a
``contextvars.Token`` cannot be reset. So each block has a reference to the one around it, and a
block that was left is skipped, wherever a context still refers to it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .controller import AbortController, AbortSignal

_innermost: Final[ContextVar[AbortController | None]] = ContextVar("run_abort", default=None)


def current_signal() -> AbortSignal | None:
    """The signal of the innermost open block of this thread or asyncio task; None outside.

    For code that works on a run and was not given the signal. It does not matter what opened the
    block: ``abortable_run``, a task of a queue, or a view. Tasks that are started within a block,
    ``asyncio.to_thread`` and ``sync_to_async`` are inside it, too, until it is left. A thread has
    to call this as it begins, because an abort ends an ``async with`` around it at once. A new
    ``threading.Thread``, or a thread of an executor, is not inside: pass the signal to it.
    """
    controller = _open(_innermost.get())
    return None if controller is None else controller.signal


def enter(controller: AbortController) -> None:
    """Make ``controller`` the one of the innermost block."""
    outer = _innermost.get()
    if outer is not None:
        controller.outer = _open(outer)
    controller.began = controller.is_open = True
    _innermost.set(controller)


def leave(controller: AbortController) -> None:
    """Undo :func:`enter`, in any context. Does nothing if the block was not entered."""
    controller.is_open = False
    if controller.outer is not None:
        # Without the blocks that were left before, so that no chain of them grows.
        controller.outer = _open(controller.outer)
    if _innermost.get() is controller:
        _innermost.set(controller.outer)


def open_blocks() -> list[AbortController]:
    """The open blocks around the calling code, the innermost first."""
    found = []
    controller = _open(_innermost.get())
    while controller is not None:
        found.append(controller)
        controller = _open(controller.outer)
    return found


def _open(controller: AbortController | None) -> AbortController | None:
    while controller is not None and not controller.is_open:
        controller = controller.outer
    return controller
