"""What an abort calls: the waiters to wake, the callbacks to start.

A signal handler may raise between any two steps, and then the abort is carried out once more. So an
effect may be called twice, also by two threads at once, and one that was called stays known until
its call has returned. What must happen once is claimed where it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial


def call_all(effects: dict[object, Callable[[], object]]) -> None:
    """Call the effects, which neither block nor raise, and forget them."""
    for key, effect in effects.copy().items():
        effect()
        effects.pop(key, None)


def once(fn: Callable[[], object]) -> tuple[Callable[[], None], Callable[[], bool]]:
    """Make a function that calls ``fn`` once.

    :return: that function, and one that claims the only call: it returns whether it was the first.
    """
    claims = [None]

    def claim() -> bool:
        try:
            claims.pop()
        except IndexError:
            return False
        return True

    return partial(_call_if, fn, claim), claim


def _call_if(fn: Callable[[], object], claim: Callable[[], bool]) -> None:
    if claim():
        fn()


def call_in_loop(loop: asyncio.AbstractEventLoop, fn: Callable[..., object], *args: object) -> bool:
    """Call ``fn`` in an event loop soon; return False if that is closed: nothing waits in it."""
    try:
        loop.call_soon_threadsafe(fn, *args)
    except RuntimeError:
        return False
    return True


def resolve(future: asyncio.Future[None]) -> None:
    """Give the future its result, unless it has one."""
    if not future.done():
        future.set_result(None)
