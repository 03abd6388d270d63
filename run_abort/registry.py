"""This process's map from run IDs and group IDs to the live controllers that answer to them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Sequence

from .controllers import AbortController
from .forks import at_fork

__all__ = ["MAX_ID_LENGTH", "Registry", "clean_id", "clean_ids", "registry"]

MAX_ID_LENGTH = 255  # characters; what every database that Django supports can index

OnAborted = Callable[[Sequence[AbortController], str], object]


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


class Registry:
    """Run IDs → the controllers of the blocks that run here now.

    Any number of controllers may answer to one ID, and one controller to several IDs.

    :ivar on_aborted: called after an abort flipped controllers, with those and the abort's ID, in
        the thread that aborted. It must neither block nor raise.
    """

    def __init__(self) -> None:
        self.on_aborted: OnAborted | None = None
        # ID → controller → ident of the thread that registered it. No ID without a controller.
        self._holders: dict[str, dict[AbortController, int]] = {}
        self._renew_lock()

    def _renew_lock(self) -> None:
        # Guards _holders. Reentrant, so that a signal handler that aborts, which only reads the
        # map, may interrupt its own thread inside.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many IDs are answered to."""
        return len(self._holders)

    def ids(self) -> list[str]:
        """The IDs that are answered to, of runs and of groups."""
        with self._lock:
            return list(self._holders)

    def register(self, controller: AbortController, ids: Iterable[str]) -> None:
        """From now on ``controller`` answers to ``ids``."""
        ident = threading.get_ident()
        with self._lock:
            for run_id in ids:
                self._holders.setdefault(run_id, {})[controller] = ident

    def leave(self, controller: AbortController, ids: Iterable[str]) -> None:
        """From now on ``controller`` does not answer to ``ids``. Harmless if it did not before."""
        with self._lock:
            for run_id in ids:
                holders = self._holders.get(run_id)
                if holders is not None:
                    holders.pop(controller, None)
                    if not holders:
                        self._holders.pop(run_id, None)

    def abort(self, run_id: str, reason: str = "", actor: str = "", abort_id: str = "") -> int:
        """Abort every controller that answers to ``run_id``, in the calling thread.

        :return: how many this call aborted.
        """
        if run_id not in self._holders:
            return 0
        with self._lock:
            controllers = tuple(self._holders.get(run_id, ()))
        return self.abort_controllers(controllers, reason, actor, abort_id)

    def abort_controllers(
        self,
        controllers: Iterable[AbortController],
        reason: str = "",
        actor: str = "",
        abort_id: str = "",
    ) -> int:
        """Abort just these: every flag first, then whatever waits for them.

        :return: how many this call aborted.
        """
        flipped = []
        for controller in controllers:
            if controller.flip(reason, actor):
                flipped.append(controller)  # noqa: PERF401  a comprehension is a call more
        for controller in flipped:
            controller.take_effect()
        if flipped and self.on_aborted is not None:
            self.on_aborted(flipped, abort_id)
        return len(flipped)

    def after_fork_in_child(self) -> None:
        """Keep what the forking thread holds; the other threads stayed in the parent.

        A child that is forked inside a block works on that run too, so an abort must reach it.
        """
        self._renew_lock()
        ident = threading.get_ident()
        kept = (
            (run_id, {c: holder for c, holder in holders.items() if holder == ident})
            for run_id, holders in self._holders.items()
        )
        self._holders = {run_id: holders for run_id, holders in kept if holders}


registry = Registry()
at_fork(after_in_child=registry.after_fork_in_child)
