"""``signal.ends_children``: an abort ends the programs that a thread starts, by any library."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, suppress
from typing import Final

from run_abort._concurrency.workers import in_event_loop, in_greenlets

from .exits import Held, kept_exit
from .interrupts import Shield
from .process_tree import children_from_now_on
from .subprocesses import THREAD, Attachment, Signal

PAUSE: Final = 0.25  # seconds between two looks for further programs, after an abort


class _Watch(Attachment):
    """Ends what was started since the block began, and what is started until it is left."""

    def __init__(self, signal: Signal, grace: float, *, all_threads: bool) -> None:
        self.is_left = threading.Event()
        super().__init__(signal, children_from_now_on(all_threads=all_threads), grace)

    def _end(self) -> None:
        while True:
            is_last = self.is_left.is_set() or not _has_time()
            self._end_those_of_now()
            if is_last:
                return
            self.is_left.wait(PAUSE)

    def _end_those_of_now(self) -> None:
        if not self._family.wait(0):
            super()._end()

    def leave(self) -> bool:
        """End the block.

        :return: whether the signal was aborted. Then it waits until all programs have ended.
        """
        self.is_left.set()
        was_aborted = self._signal.aborted
        if self.detach() and not was_aborted:
            return False
        # For a watch that began just now, or that had no thread of its own.
        self._end_those_of_now()
        self.wait()
        return True

    def abandon(self) -> None:
        """Look for no further programs. Does not wait."""
        self._remove()
        self.is_left.set()


def _has_time() -> bool:
    """Whether this thread may wait for the end of the block.

    Not if no thread could be started for that, nor if the interpreter waits for it at its exit.
    """
    return threading.current_thread().name == THREAD and threading.main_thread().is_alive()


class EndsChildren(AbstractContextManager[None]):
    """A block whose programs an abort ends; see ``AbortSignal.ends_children``."""

    insists: bool = True

    def __init__(self, signal: Signal, grace: float, *, all_threads: bool) -> None:
        self._signal = signal
        self._grace = grace
        self._all_threads = all_threads
        self._watch: _Watch | None = None
        self.held: Held | None = None

    def __enter__(self) -> None:
        if in_event_loop():
            raise RuntimeError(
                "signal.ends_children() would also end programs of other tasks of this event "
                "loop: use it in a thread, such as that of asyncio.to_thread"
            )
        if in_greenlets():
            raise RuntimeError(
                "signal.ends_children() would also end programs of other greenlets of gevent or "
                "eventlet: use signal.run()"
            )
        with Shield():
            self._signal.raise_if_aborted()
            self._watch = _Watch(self._signal, self._grace, all_threads=self._all_threads)

    @kept_exit
    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        with Shield():
            if self.held is not None:
                self.held.spend()
            was_aborted = self._watch is not None and self._watch.leave()
        if was_aborted and (exc is None or isinstance(exc, Exception)):
            raise self._signal.exception() from exc

    def abandon(self) -> None:
        """End the block if ``__exit__`` did not. Raises nothing."""
        if self._watch is not None:
            with suppress(BaseException):
                self._watch.abandon()
