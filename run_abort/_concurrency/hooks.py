"""Callbacks: "call me when this happens"."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from inspect import iscoroutinefunction
from types import BuiltinMethodType, MethodType
from typing import Generic, ParamSpec

logger = logging.getLogger("run_abort")

P = ParamSpec("P")


def check_function(function: object, name: str) -> None:
    """Check that a function can be called in a thread without an event loop.

    :param name: of the parameter, for the error.
    :raises TypeError: if it is not callable, or is a coroutine function.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable, not {type(function).__name__}")
    if iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__):
        raise TypeError(
            f"{name} must not be a coroutine function, because it is called in a thread without "
            f"an event loop: pass a function, or async_to_sync({name}) of asgiref"
        )


def identity(function: Callable[..., object]) -> Hashable:
    """A key that is the same for one function, or for one method of one object.

    Two equal objects are two functions. Each access to a method makes a new method object, and
    Python compares these by the identity of their objects. Valid while the function is kept.
    """
    return function if isinstance(function, MethodType | BuiltinMethodType) else id(function)


def call_logged(function: Callable[[], object]) -> bool:
    """Call ``function``; log what it raises, with its traceback, and raise nothing.

    :return: whether it has raised nothing.
    """
    try:
        function()
    except BaseException as error:
        _log_failure(function, error)
        return False
    return True


def _log_failure(function: Callable[[], object], error: BaseException) -> None:
    try:
        logger.error("%s failed", name_of(function), exc_info=error)
    except Exception:  # of a log handler or a filter of the project
        traceback.print_exc()


def call_each(functions: Iterable[Callable[[], object]], *, again: bool = False) -> None:
    """Call each; log an ``Exception``, and raise at the end what a signal handler has raised.

    :param again: whether to call one that was ended by an ``Exception`` once more.
    """
    interrupted_by: BaseException | None = None
    for function in functions:
        try:
            function()
        except Exception as error:
            _log_failure(function, error)
            if again:
                call_each([function])
        except BaseException as error:
            interrupted_by = error
    if interrupted_by is not None:
        raise interrupted_by


def name_of(function: Callable[..., object]) -> str:
    """The name of a function for the log, also of one inside a ``partial``."""
    while isinstance(function, partial):
        is_wrapper = function.args and callable(function.args[0])
        function = function.args[0] if is_wrapper else function.func
    return getattr(function, "__qualname__", None) or repr(function)


class Hook(Generic[P]):
    """The functions to call when one thing happens, in the order in which they were added.

    Calling the hook calls each function in the calling thread. If one raises, the others are called
    all the same. An ``Exception`` is logged. Anything else comes from a signal handler, such as
    that of Ctrl-C, and is raised at the end. A call that is already running finishes with the
    functions that it began with. Any thread may add and remove functions, which are hashable.
    """

    def __init__(self) -> None:
        # Needs no lock: each step is one call of C code.
        self._functions: dict[Callable[P, object], None] = {}

    def add(self, function: Callable[P, object]) -> Callable[[], object]:
        """Call ``function`` from now on; adding it again changes nothing.

        :return: a function that removes it.
        """
        self._functions.setdefault(function)
        return partial(self._functions.pop, function, None)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._functions:
            call_each(self._calls_with(*args, **kwargs))

    def _calls_with(self, *args: P.args, **kwargs: P.kwargs) -> list[Callable[[], object]]:
        # No generator: what a signal handler raises as it is closed would be lost.
        return [partial(function, *args, **kwargs) for function in self._functions.copy()]


class _Calls(threading.local):
    """The calls of a :class:`SerialHook` that one thread has still to make."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], object]] = deque()
        self.is_calling = False

    def taken(self) -> Iterator[Callable[[], object]]:
        """Take the calls one by one, until none waits."""
        while self.waiting:
            yield self.waiting.popleft()


class SerialHook(Hook[P]):
    """A hook whose calls do not nest: one within another of the same thread comes after it.

    A signal handler may call it at any moment, and so may a finaliser. Its functions need not
    expect that. They raise nothing by themselves: if an ``Exception`` of a signal handler arrives
    in one, such as the time limit of a queue, it is logged, and the function is called again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls = _Calls()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        calls = self._calls
        calls.waiting.extend(self._calls_with(*args, **kwargs))
        if calls.is_calling:
            return
        calls.is_calling = True
        try:
            call_each(calls.taken(), again=True)
        finally:
            calls.is_calling = False
