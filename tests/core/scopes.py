"""The parts of the core joined without a runtime, and what tests of them need."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from run_abort._core.controller import AbortController
from run_abort._core.escalation import Escalator
from run_abort._core.registry import Registry
from run_abort._core.scope import Scope
from run_abort._core.types import Escalated, Event, Request

TIMEOUT: Final = 20.0  # seconds; only a failing test waits for as long


class Block(Scope):
    """The smallest block there is; entering it calls ``core.look``, where requests are read."""

    __slots__ = ("_core",)

    def __init__(self, core: Core, run_id: object, **options: Any) -> None:
        super().__init__(run_id, **options)
        self._core = core

    def _find_process(self) -> Core:
        return self._core

    def _look(self, controller: AbortController) -> None:
        self._core.look(controller)

    async def _alook(self, controller: AbortController) -> None:
        await self._core.alook(controller)


class Core:
    """A registry and an escalator, the events that happened, and blocks that belong to them.

    :ivar look: called with the controller of a block once it is registered; may abort it.
    :ivar alook: the same for asyncio; calls ``look`` unless a test replaces it.
    """

    def __init__(self) -> None:
        self.registry = Registry()
        self.escalator = Escalator()
        self.events: list[Event] = []
        self.registry.events.add(self.events.append)
        self.look: Callable[[AbortController], object] = lambda controller: None
        self.alook: Callable[[AbortController], Awaitable[object]] = self._alook

    async def _alook(self, controller: AbortController) -> None:
        self.look(controller)

    def block(self, run_id: object = "run-1", **options: Any) -> Block:
        return Block(self, run_id, **options)

    def abort(self, run_id: str = "run-1", reason: str = "") -> int:
        return self.registry.abort(Request(run_id, reason=reason, actor="ann"))

    def abort_when_held(self, run_id: str = "run-1", reason: str = "because") -> None:
        """Abort once a block was entered: one that is still being entered raises there."""
        wait_until(lambda: any(each.began for each in self.registry.holders().get(run_id, ())))
        self.abort(run_id, reason)

    def holders(self, run_id: str = "run-1") -> int:
        """The number of blocks that answer to the ID."""
        return len(self.registry._holders.get(run_id, ()))

    def happened(self) -> list[str]:
        """The names of the events."""
        return [type(event).__name__ for event in self.events]

    def escalations(self) -> list[str]:
        return [event.escalation for event in self.events if isinstance(event, Escalated)]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` is true; fail if that takes too long."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not become true within {TIMEOUT:g} s: {condition}")
        time.sleep(0.005)


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("run_abort")]
