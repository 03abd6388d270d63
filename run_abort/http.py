"""Requests that are abortable runs: a long view, or the stream that it answers with.

    @abortable_view(lambda request, pk: f"report-{pk}")
    def report(request, pk):
        for part in parts(pk):
            request.abort_signal.raise_if_aborted()
            ...

    def export(request, pk):
        def rows(signal):
            for row in Row.objects.filter(report=pk).iterator():
                yield f"{row}\\n"

        return StreamingHttpResponse(abortable_stream(f"export-{pk}", rows))

An aborted view answers with 409. An aborted stream is cut off, so that its client can tell. With
``abort_on_disconnect=True`` the run is aborted, everywhere, when the client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, closing, nullcontext, suppress
from functools import partial, wraps
from inspect import isasyncgenfunction, isawaitable, iscoroutine
from typing import Any, Final, TypeAlias, TypeVar, cast, overload
from uuid import UUID

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.translation import gettext as _

from ._core.controller import GRACE, AbortSignal
from ._core.escalation import Cancellation
from ._core.types import Escalation
from ._store.database import call_from_loop, in_event_loop
from .aborts import aabort_run, abort_run
from .exceptions import RunAborted
from .runs import abortable_run

__all__ = ["AbortableRequest", "StreamAborted", "abortable_stream", "abortable_view"]

LOST: Final = "The connection to the client was lost"  # why it is aborted then

RunID: TypeAlias = str | int | UUID
Chunk: TypeAlias = str | bytes
View = TypeVar("View", bound=Callable[..., Any])


class AbortableRequest(HttpRequest):
    """What a view that is decorated with :func:`abortable_view` gets; for annotations."""

    abort_signal: AbortSignal


class StreamAborted(Exception):  # noqa: N818  it is what became of the stream
    """Raised to the server by an aborted stream, with ``RunAborted`` as the ``__cause__``.

    It is an ``Exception``, because servers deal with these: they log it, close the connection
    without the end of the response, and serve the next request.
    """


def _no_groups(*args: Any, **kwargs: Any) -> Iterable[RunID]:
    return ()


def _refuse(request: HttpRequest, aborted: RunAborted) -> HttpResponse:
    # Neither who nor why: that is not for everybody to know.
    error = _("This was aborted.")
    if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
        return JsonResponse({"ok": False, "error": error}, status=409)
    return HttpResponse(error, status=409, content_type="text/plain; charset=utf-8")


def abortable_view(
    get_run_id: Callable[..., RunID],
    *,
    get_groups: Callable[..., Iterable[RunID]] = _no_groups,
    label: str = "",
    grace: float = GRACE,
    insist: Escalation | Iterable[Escalation] = (),
    abort_on_disconnect: bool = False,
    on_abort: Callable[[HttpRequest, RunAborted], Any] = _refuse,
) -> Callable[[View], View]:
    """Make a view an abortable run, with its signal as ``request.abort_signal``.

    For functions, sync and async, for what ``as_view()`` returns, and with ``method_decorator`` for
    methods; of a class whose methods are async, for these, and not for ``dispatch()``. The run is
    over when the view returns: for what it streams then, there is :func:`abortable_stream`.

    An abort rolls back the transaction of ``ATOMIC_REQUESTS``. One that the view itself opens has
    to be inside of this decorator.

    :param get_run_id: called with what the view is called with, in its thread; so is
        ``get_groups``.
    :param label: as for :class:`abortable_run`; by default the name of the URL.
    :param grace: as for :class:`abortable_run`; ``insist``, too: ``"interrupt"`` is for sync views,
        ``"cancel"`` for async ones.
    :param abort_on_disconnect: whether to abort the run, everywhere, when the client has gone
        before the view has returned. For async views; only under ASGI do they get to know.
    :param on_abort: called with the request and the ``RunAborted``, where the view was; returns the
        response, or for an async view an awaitable of it. By default that is 409 with a sentence,
        as text or JSON, and tells neither who aborted nor why.
    :raises RuntimeError: by the view, if ``abort_on_disconnect`` is for a sync one.
    :raises TypeError: by the view, if it is not async, but returns a coroutine.
    """

    def open_block(request: HttpRequest, *args: Any, **kwargs: Any) -> abortable_run:
        match = request.resolver_match
        return abortable_run(
            get_run_id(request, *args, **kwargs),
            groups=get_groups(request, *args, **kwargs),
            label=label or (match.view_name if match else ""),
            grace=grace,
            insist=insist,
        )

    def decorate(view: View) -> View:
        @wraps(view)
        def abortable(request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if abort_on_disconnect:
                raise RuntimeError("a sync view does not get to know that its client has gone")
            try:
                with open_block(request, *args, **kwargs) as request.abort_signal:
                    return _checked(view(request, *args, **kwargs))
            except RunAborted as aborted:
                response: HttpResponseBase = on_abort(request, aborted)
                _roll_back()
                return response

        @wraps(view)
        async def async_abortable(request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                async with open_block(request, *args, **kwargs) as request.abort_signal:
                    try:
                        response: HttpResponseBase = await view(request, *args, **kwargs)
                    except asyncio.CancelledError:
                        if abort_on_disconnect:
                            await _abort_everywhere(request.abort_signal)
                        raise
                    return response
            except RunAborted as aborted:
                answer = on_abort(request, aborted)
                return cast(HttpResponseBase, await answer if isawaitable(answer) else answer)

        return cast(View, async_abortable if iscoroutinefunction(view) else abortable)

    return decorate


def _checked(response: Any) -> HttpResponseBase:
    if iscoroutine(response):
        response.close()
        raise TypeError("decorate the async methods of the class, or as_view(), not dispatch()")
    return cast(HttpResponseBase, response)


def _roll_back() -> None:
    """Have the transactions of ``ATOMIC_REQUESTS`` rolled back, although there is a response."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)


async def _abort_everywhere(signal: AbortSignal) -> None:
    """Abort the run whose request was cancelled; to the end, though that cancels this task, too."""
    if signal.aborted:
        return
    asking = asyncio.ensure_future(aabort_run(signal.run_id, reason=LOST))
    while not asking.done():
        with suppress(asyncio.CancelledError):  # the caller goes on with the one that it has
            await asyncio.wait({asking})


@overload
def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], AsyncGenerator[Chunk, None]],
    *,
    groups: Iterable[RunID] = (),
    label: str = "",
    grace: float = GRACE,
    abort_on_disconnect: bool = False,
    on_abort: Callable[[RunAborted], Chunk] | None = None,
) -> AsyncIterator[Chunk]: ...


@overload
def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], Iterable[Chunk]],
    *,
    groups: Iterable[RunID] = (),
    label: str = "",
    grace: float = GRACE,
    abort_on_disconnect: bool = False,
    on_abort: Callable[[RunAborted], Chunk] | None = None,
) -> Iterator[Chunk]: ...


def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], Any],
    *,
    groups: Iterable[RunID] = (),
    label: str = "",
    grace: float = GRACE,
    abort_on_disconnect: bool = False,
    on_abort: Callable[[RunAborted], Chunk] | None = None,
) -> AsyncIterator[Chunk] | Iterator[Chunk]:
    """Make what a ``StreamingHttpResponse`` streams an abortable run.

    It is held from when the first chunk is asked for until the stream has ended or is closed. The
    signal is looked at after each chunk. What waits for the next one in an async generator is
    cancelled by an abort; elsewhere it has to look by itself. While a chunk is being sent, nothing
    is done about an abort: a client that does not read keeps the run from being left.

    Sync generators are for WSGI and async ones for ASGI; the other way round, Django has them end
    before it sends anything. A sync one is called in the threads that ask for chunks, an async one
    in the event loop.

    :param run_id: as for :class:`abortable_run`; ``groups``, ``label`` and ``grace``, too.
    :param make: called with the signal; a generator function, sync or async, or a ``partial`` of
        one. Another function that returns an iterable is taken for a sync one.
    :param abort_on_disconnect: whether to abort the run, everywhere, when the stream is closed or
        cancelled before its end, because the client has gone. Under WSGI that shows when the next
        chunk cannot be sent.
    :param on_abort: called with the ``RunAborted``, where the chunks are made; returns a last
        chunk, after which the stream ends as if it were whole. By default it is cut off.
    :raises TypeError: and ``ValueError``, as :class:`abortable_run`, at once.
    :raises StreamAborted: by the iterator, if the run was aborted, and there is no ``on_abort``.
    """
    block = abortable_run(run_id, groups=groups, label=label, grace=grace)
    end = on_abort or _cut
    if isasyncgenfunction(make):
        return _ClosableStream(_async_chunks(block, make, abort_on_disconnect, end))
    return _chunks(block, make, abort_on_disconnect, end)


def _cut(aborted: RunAborted) -> Chunk:
    raise StreamAborted(str(aborted)) from aborted


def _chunks(
    block: abortable_run,
    make: Callable[[AbortSignal], Iterable[Chunk]],
    abort_on_disconnect: bool,
    end: Callable[[RunAborted], Chunk],
) -> Iterator[Chunk]:
    try:
        with block as signal, _closing(make(signal)) as chunks:
            try:
                for chunk in chunks:
                    signal.raise_if_aborted()
                    yield chunk
                    signal.raise_if_aborted()
            except GeneratorExit:
                if abort_on_disconnect and not signal.aborted:
                    abort_run(signal.run_id, reason=LOST)
                raise
    except RunAborted as aborted:
        yield end(aborted)


def _closing(chunks: Any) -> AbstractContextManager[Iterable[Chunk]]:
    return closing(chunks) if hasattr(chunks, "close") else nullcontext(chunks)


async def _async_chunks(
    block: abortable_run,
    make: Callable[[AbortSignal], AsyncGenerator[Chunk, None]],
    abort_on_disconnect: bool,
    end: Callable[[RunAborted], Chunk],
) -> AsyncGenerator[Chunk, None]:
    try:
        # Not "async with block": an abort would cancel whatever the task does between two chunks.
        signal = await _entered(block)
        with ExitStack() as stack:
            stack.push(block)
            async with aclosing(make(signal)) as chunks:
                try:
                    with suppress(StopAsyncIteration):
                        while True:
                            yield await _next(chunks, signal)
                except (GeneratorExit, asyncio.CancelledError):
                    if abort_on_disconnect:
                        await _abort_everywhere(signal)
                    raise
    except RunAborted as aborted:
        yield end(aborted)


async def _entered(block: abortable_run) -> AbortSignal:
    entering = asyncio.ensure_future(call_from_loop(block.__enter__))
    try:
        return await asyncio.shield(entering)
    except asyncio.CancelledError:
        entering.add_done_callback(partial(_leave, block))
        raise


def _leave(block: abortable_run, entering: asyncio.Future[AbortSignal]) -> None:
    if not entering.cancelled() and entering.exception() is None:
        with suppress(RunAborted):
            block.__exit__(None, None, None)


async def _next(chunks: AsyncGenerator[Chunk, None], signal: AbortSignal) -> Chunk:
    """The next chunk; an abort cancels the waiting for it.

    :raises RunAborted: if the run was aborted, before or meanwhile.
    :raises StopAsyncIteration: at the end.
    """
    signal.raise_if_aborted()
    cancellation = Cancellation()
    forget = signal._when_aborted(cancellation.send)
    try:
        # Where neither making nor sending a chunk ever waits, the loop comes to nothing else, and
        # does not even learn that the client has gone.
        await asyncio.sleep(0)
        chunk = await anext(chunks)
    except BaseException as error:
        forget()
        if cancellation.withdraw() and isinstance(error, asyncio.CancelledError):
            raise signal.exception() from error
        raise
    forget()
    cancellation.withdraw()
    signal.raise_if_aborted()
    return chunk


class _ClosableStream:
    """An asynchronous iterator that Django can close, which it does from a thread.

    What Django does not close by itself would last until it is garbage.
    """

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = chunks
        self._is_open = False
        self._closing: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        self._is_open = False
        chunk = await anext(self._chunks)
        self._is_open = True
        return chunk

    def close(self) -> None:
        """End the stream, if it has begun and not ended; in an event loop, soon."""
        if not self._is_open:
            return
        self._is_open = False
        if in_event_loop():
            self._closing = asyncio.ensure_future(self.aclose())
        else:
            async_to_sync(self.aclose)()

    async def aclose(self) -> None:
        """End the stream, in the event loop that it is in."""
        await self._chunks.aclose()
