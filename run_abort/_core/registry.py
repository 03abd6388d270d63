"""The map of a process from run IDs and group IDs to the controllers of its open blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook, SerialHook

from .controller import AbortController, AbortSignal, abort_all
from .current import open_blocks
from .interrupts import Shield
from .types import Aborted, Event, Request, Way


class Registry:
    """Run IDs → the controllers of the open blocks of this process.

    Any number of controllers may answer to one ID, and one controller to several IDs.

    :ivar events: called with each :data:`Event`, in the thread in which it happened, after the
        flags are set and the waiters are woken. Its functions neither block nor raise. An event
        comes twice if a signal handler raises meanwhile. Events of one thread do not nest.
    :ivar finishing: called with the signal of a block whose ``finish()`` came before any abort, in
        the thread that called it. The block stays here until it is left.
    :ivar controller_class: the class of the controllers of blocks.
    """

    def __init__(self) -> None:
        self.events: SerialHook[[Event]] = SerialHook()
        self.finishing: Hook[[AbortSignal]] = Hook()
        self.controller_class: Callable[..., AbortController] = AbortController
        # The controllers of each ID, in the order of entry. No ID without a controller.
        self._holders: dict[str, dict[AbortController, None]] = {}
        self._renew_lock()

    def _renew_lock(self) -> None:
        # Guards _holders. Reentrant, because a signal handler may abort while its own thread
        # holds the lock, and a finaliser may leave a block.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """The number of IDs with an open block."""
        return len(self._holders)

    def holders(self, ids: Iterable[str] | None = None) -> dict[str, tuple[AbortController, ...]]:
        """The controllers of the open blocks, by the IDs of runs and groups they answer to.

        :param ids: only these; all if None, which takes longer the more blocks are open.
        """
        # Without the lock: its thread may run a signal handler that waits for this one. Copying is
        # one step.
        found = (
            self._holders.copy() if ids is None else {each: self._holders.get(each) for each in ids}
        )
        return {run_id: tuple(some.copy()) for run_id, some in found.items() if some}

    def controllers(self) -> list[AbortController]:
        """The controllers of the open blocks, each once."""
        return list(dict.fromkeys(each for some in self.holders().values() for each in some))

    def __contains__(self, controller: AbortController) -> bool:
        """Whether the block of ``controller`` is open."""
        return controller in self._holders.get(controller.signal.run_id, ())

    def ids_around(self) -> list[str]:
        """The IDs of the open blocks around the calling code that can still be aborted."""
        around = {each for each in open_blocks() if not each.closed}
        if not around:
            return []
        return [run_id for run_id, some in self.holders().items() if not around.isdisjoint(some)]

    def register(self, controller: AbortController, ids: Iterable[str]) -> None:
        """Make ``controller`` answer to ``ids``."""
        controller.signal._on_finish = self.finishing
        with self._lock:
            for run_id in ids:
                # Without a call in between, no signal handler and no finaliser comes in between,
                # which could leave the last block of this ID.
                if run_id in self._holders:
                    self._holders[run_id][controller] = None
                else:
                    self._holders[run_id] = {controller: None}

    def leave(self, controller: AbortController, ids: Iterable[str]) -> None:
        """Remove ``controller`` from ``ids``. Does nothing for IDs that it does not answer to."""
        with self._lock:
            for run_id in ids:
                holders = self._holders.get(run_id)
                if holders is not None:
                    holders.pop(controller, None)
                    if not holders:
                        self._holders.pop(run_id, None)

    def abort(self, request: Request, way: Way = "local") -> int:
        """Abort every controller that answers to ``request.run_id``, in the calling thread.

        :return: how many this call aborted.
        """
        # Without the lock, for which blocks wait that are entered and left. Copying is one step.
        holders = self._holders.get(request.run_id)
        return self.abort_controllers(tuple(holders.copy()), request, way) if holders else 0

    def abort_first(self, request: Request) -> Callable[[], None] | None:
        """Abort as :meth:`abort` does a request that was pushed, and leave the event for later.

        Until then the threads that it has woken have the interpreter and the processor.

        :return: emits the event; None if no controller answers to the ID.
        """
        holders = self._holders.get(request.run_id)
        controllers = _not_spared(holders.copy(), request) if holders else ()
        if not controllers:
            return None
        with Shield():
            aborted = Aborted(request, "channel", monotonic(), controllers, self.events)
            abort_all(aborted)
        return partial(self.events, aborted)

    def abort_controllers(
        self, controllers: Sequence[AbortController], request: Request, way: Way
    ) -> int:
        """Abort just these: every flag first, then the waiters, then the event.

        :return: how many this call aborted.
        """
        # This thread may work on the run itself. An interrupt here would leave locks locked.
        with Shield():
            struck = _not_spared(controllers, request)
            aborted = Aborted(request, way, monotonic(), struck, self.events)
            try:
                number = abort_all(aborted)
                self.events(aborted)
            except BaseException:  # of a signal handler
                try:
                    abort_all(aborted)
                finally:
                    self.events(aborted)
                raise
            return number

    def after_fork_in_child(self) -> None:
        """Keep the blocks around the code that forked; the child does not run the others.

        A child that is forked inside a block works on that run, too, so an abort has to reach it.
        """
        self._renew_lock()
        around = set(open_blocks())
        kept = (
            (run_id, {each: None for each in holders if each in around})
            for run_id, holders in self._holders.items()
        )
        self._holders = {run_id: holders for run_id, holders in kept if holders}


def _not_spared(
    controllers: Iterable[AbortController], request: Request
) -> tuple[AbortController, ...]:
    return tuple(each for each in controllers if request.id not in each.spared_by)
