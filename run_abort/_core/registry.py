"""This process's map from run IDs and group IDs to the live controllers that answer to them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple

from run_abort._concurrency.forks import at_fork

from .controller import AbortController

__all__ = ["MAX_ID_LENGTH", "Holding", "Registry", "Way", "clean_id", "clean_ids", "registry"]

MAX_ID_LENGTH = 255  # characters; what every database that Django supports can index
REMEMBERED: Final = 4096  # IDs that have ended here; up to twice as many are known

# How this process heard of an abort.
Way = Literal["local", "channel", "reconcile", "start"]

OnRegister = Callable[[AbortController], object]
OnAborted = Callable[[Sequence[AbortController], str], object]
OnReceived = Callable[[Sequence[AbortController], str, Way], object]


def clean_id(run_id: object) -> str:
    """The run ID as text.

    :param run_id: a ``str``, or an ``int`` or ``uuid.UUID``, which is taken as its ``str``.
    :raises TypeError: if it is anything else.
    :raises ValueError: if it is empty, longer than 255 characters, or contains a null character,
        which PostgreSQL cannot keep.
    """
    if type(run_id) is not str:
        if isinstance(run_id, bool) or not isinstance(run_id, (str, int, uuid.UUID)):
            name = type(run_id).__name__
            raise TypeError(f"a run ID must be a str, an int or a UUID, not {name}")
        run_id = str(run_id)
    if not run_id:
        raise ValueError("a run ID must not be empty")
    if "\0" in run_id:
        raise ValueError("a run ID must not contain a null character")
    if len(run_id) > MAX_ID_LENGTH:
        raise ValueError(f"a run ID must not be longer than {MAX_ID_LENGTH} characters")
    return run_id


def clean_ids(run_id: object, groups: Iterable[object] = ()) -> tuple[str, ...]:
    """The ID of a run, and after it its further IDs, each once.

    :raises TypeError: as :func:`clean_id`, and if ``groups`` is not an iterable of IDs.
    :raises ValueError: as :func:`clean_id`.
    """
    first = clean_id(run_id)
    if not groups:
        return (first,)
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise TypeError("groups must be a list or tuple of IDs; for a single one write (group,)")
    return tuple(dict.fromkeys([first, *map(clean_id, groups)]))


class Holding(NamedTuple):
    """A block that runs here.

    :ivar ident: of the thread that entered it.
    :ivar label: what it does, for people.
    :ivar since: when it was entered, in seconds since the epoch.
    """

    ident: int
    label: str
    since: float


class Registry:
    """Run IDs → the controllers of the blocks that run here now.

    Any number of controllers may answer to one ID, and one controller to several IDs.

    :ivar on_register: called with each controller before it answers to any ID, so before anybody
        can abort it, in the thread that registers it. For tests of projects. It must neither block
        nor raise.
    :ivar on_received: called with the controllers that are aborted and were to be, by this abort
        or an earlier one, with the abort's ID and the way on which it came: before whatever waits
        for them is woken, in the thread that aborts. It must neither block nor raise.
    :ivar on_aborted: called after that with those that this abort flipped, perhaps none, and the
        abort's ID. As above.
    """

    def __init__(self) -> None:
        self.on_register: OnRegister | None = None
        self.on_aborted: OnAborted | None = None
        self.on_received: OnReceived | None = None
        # ID → controller → what a Holding has. No ID without a controller.
        self._holders: dict[str, dict[AbortController, tuple[int, str, float]]] = {}
        self._forget_ended()
        self._renew_lock()

    def _forget_ended(self) -> None:
        # The IDs that were held here, and are not. In two generations, because the oldest entry of
        # a single dict takes ever longer to find.
        self._ended: dict[str, None] = {}
        self._ended_before: dict[str, None] = {}

    def _renew_lock(self) -> None:
        # Guards _holders and _ended. Reentrant, so that a signal handler that aborts, which only
        # reads the map, may interrupt its own thread inside.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many IDs are answered to."""
        return len(self._holders)

    def ids(self) -> list[str]:
        """The IDs that are answered to, of runs and of groups."""
        with self._lock:
            return list(self._holders)

    def holdings(self) -> list[tuple[AbortController, Holding]]:
        """The blocks that run here, each once, in the order in which they were entered."""
        with self._lock:
            found = {
                controller: Holding(*held)
                for holders in self._holders.values()
                for controller, held in holders.items()
            }
        return sorted(found.items(), key=lambda held: held[1].since)

    def holding_of(self, controller: AbortController) -> Holding | None:
        """The block of ``controller``; None once that was left."""
        with self._lock:
            held = self._holders.get(controller.signal.run_id, {}).get(controller)
        return None if held is None else Holding(*held)

    def has_ended(self, run_id: str) -> bool:
        """Whether a block that answered to the ID has ended here, as far as that is remembered."""
        with self._lock:
            return (
                run_id in self._ended
                or run_id in self._ended_before
                or any(controller.closed for controller in self._holders.get(run_id, ()))
            )

    def register(self, controller: AbortController, ids: Iterable[str], label: str = "") -> None:
        """From now on ``controller`` answers to ``ids``."""
        if self.on_register is not None:
            self.on_register(controller)
        # A plain tuple: to make a Holding takes as long as all the rest.
        holding = (threading.get_ident(), label, time.time())
        with self._lock:
            for run_id in ids:
                self._holders.setdefault(run_id, {})[controller] = holding

    def leave(self, controller: AbortController, ids: Iterable[str]) -> None:
        """From now on ``controller`` does not answer to ``ids``. Harmless if it did not before."""
        with self._lock:
            for run_id in ids:
                holders = self._holders.get(run_id)
                if holders is not None:
                    holders.pop(controller, None)
                    if not holders:
                        self._holders.pop(run_id, None)
                        self._ended[run_id] = None
                        if len(self._ended) > REMEMBERED:
                            self._ended_before, self._ended = self._ended, {}

    def abort(
        self,
        run_id: str,
        reason: str = "",
        actor: str = "",
        abort_id: str = "",
        way: Way = "local",
    ) -> int:
        """Abort every controller that answers to ``run_id``, in the calling thread.

        :return: how many this call aborted.
        """
        if run_id not in self._holders:
            return 0
        with self._lock:
            controllers = tuple(self._holders.get(run_id, ()))
        return self.abort_controllers(controllers, reason, actor, abort_id, way)

    def abort_controllers(
        self,
        controllers: Sequence[AbortController],
        reason: str = "",
        actor: str = "",
        abort_id: str = "",
        way: Way = "local",
    ) -> int:
        """Abort just these: every flag first, then whatever waits for them.

        :return: how many this call aborted.
        """
        flipped = []
        for controller in controllers:
            if controller.flip(reason, actor):
                flipped.append(controller)  # noqa: PERF401  a comprehension is a call more
        # Not by the flag: another thread may be between its verdict and that.
        aborted = [controller for controller in controllers if not controller.closed]
        if aborted and self.on_received is not None:
            self.on_received(aborted, abort_id, way)
        for controller in flipped:
            controller.take_effect()
        if aborted and self.on_aborted is not None:
            self.on_aborted(flipped, abort_id)
        return len(flipped)

    def after_fork_in_child(self) -> None:
        """Keep what the forking thread holds; the other threads stayed in the parent.

        A child that is forked inside a block works on that run too, so an abort must reach it.
        """
        self._renew_lock()
        self._forget_ended()
        ident = threading.get_ident()
        kept = (
            (run_id, {c: held for c, held in holders.items() if held[0] == ident})
            for run_id, holders in self._holders.items()
        )
        self._holders = {run_id: holders for run_id, holders in kept if holders}


registry = Registry()
at_fork(after_in_child=registry.after_fork_in_child)
