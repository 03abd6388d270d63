"""HTTP requests as abortable runs: long views and streaming responses::

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

An aborted view responds with 409. An aborted stream is cut off, so that its client can notice. A
disconnect of the client ends its own view or stream, and no other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, aclosing, suppress
from functools import wraps
from inspect import isasyncgenfunction, isawaitable, iscoroutine
from typing import Any, Final, TypeAlias, TypedDict, TypeVar, Unpack, cast, overload

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from ._concurrency.workers import in_event_loop, spawn
from ._core.controller import GRACE, AbortSignal
from ._core.escalation import Cancellation, clean_grace, clean_insist
from ._core.ids import RunID
from ._core.types import Escalation
from ._runtime.disconnects import OnDisconnect, check, check_server, socket_of
from ._runtime.runtime import current
from ._store.database import is_in_block
from .aborts import aabort_disconnected, abort_disconnected
from .exceptions import RunAborted
from .runs import abortable_run

__all__ = ["AbortableRequest", "StreamAborted", "abortable_stream", "abortable_view"]

LOST: Final = "The connection to the client was lost"  # reason of an abort on disconnect

Chunk: TypeAlias = str | bytes
View = TypeVar("View", bound=Callable[..., Any])


class AbortableRequest(HttpRequest):
    """The request that a view decorated with :func:`abortable_view` gets; for annotations."""

    abort_signal: AbortSignal


class StreamAborted(Exception):  # noqa: N818  a state, not a mistake
    """Raised to the server by an aborted stream, with ``RunAborted`` as the ``__cause__``.

    It is an ``Exception``, because servers handle those: they log it, close the connection without
    completing the response, and serve the next request.
    """


@never_cache  # also where the view's own responses are kept for a while
def _refuse(request: HttpRequest, aborted: RunAborted) -> HttpResponse:
    # No actor and no reason: not every visitor may know them.
    error = _("This was aborted.")
    if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
        return JsonResponse({"ok": False, "error": error}, status=409)
    return HttpResponse(error, status=409, content_type="text/plain; charset=utf-8")


def abortable_view(
    get_run_id: Callable[..., RunID],
    *,
    get_groups: Callable[..., Iterable[RunID]] | None = None,
    label: str = "",
    grace: float = GRACE,
    insist: Escalation | Iterable[Escalation] = (),
    abort_on_disconnect: OnDisconnect = "block",
    on_abort: Callable[[HttpRequest, RunAborted], Any] = _refuse,
) -> Callable[[View], View]:
    """Make a view an abortable run, with its signal as ``request.abort_signal``.

    Decorates sync and async functions, the result of ``as_view()`` and, through
    ``method_decorator``, methods. If the methods of a class are async, decorate these and not
    ``dispatch()``. The run ends when the view returns. Use :func:`abortable_stream` for a
    streaming response.

    An abort rolls back the transaction of ``ATOMIC_REQUESTS``. A transaction that the view opens
    itself must be inside of this decorator.

    :param get_run_id: called with the arguments of the view, in the view's thread.
    :param get_groups: called like ``get_run_id``; returns further IDs.
    :param label: as for :class:`abortable_run`; by default the name of the URL.
    :param grace: as for :class:`abortable_run`, in seconds.
    :param insist: as for :class:`abortable_run`: ``"interrupt"`` for sync views, ``"cancel"`` for
        async views.
    :param abort_on_disconnect: what to abort if the client disconnects before the view returns:
        ``"block"``, this view alone; ``"run"``, the run in every process, as it runs now: no later
        start of the run is stopped. None: nothing, but Django itself cancels an async view. It is
        noticed for async views under ASGI, and for sync views under gunicorn and uWSGI on Linux,
        without gevent and eventlet.
    :param on_abort: called with the request and the ``RunAborted``, in the thread or event loop of
        the view; returns the response or, for an async view, an awaitable of it. The default is a
        409 with a sentence, as text or JSON, that names neither actor nor reason.
    :raises TypeError: and ``ValueError``, at once, if an option is not valid.
    :raises ImproperlyConfigured: when a sync view is decorated with ``"run"``, if this server or
        platform cannot tell that a client has disconnected.
    :raises TypeError: raised by the view if it is not async but returns a coroutine.
    """

    def open_block(request: HttpRequest, *args: Any, **kwargs: Any) -> abortable_run:
        match = request.resolver_match
        return abortable_run(
            get_run_id(request, *args, **kwargs),
            groups=get_groups(request, *args, **kwargs) if get_groups else (),
            label=label or (match.view_name if match else ""),
            grace=grace,
            insist=insist,
        )

    check(abort_on_disconnect)
    grace, insist = clean_grace(grace), clean_insist(insist)

    def decorate(view: View) -> View:
        is_async = iscoroutinefunction(view)
        if not is_async:
            check_server(abort_on_disconnect)

        @wraps(view)
        def abortable(request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
            forget: Callable[[], object] = list
            outer = getattr(request, "abort_signal", None)  # of a view that calls this one
            try:
                block = open_block(request, *args, **kwargs)
                with block as request.abort_signal:
                    forget = _watch(request, block, abort_on_disconnect)
                    return _checked(view(request, *args, **kwargs))
            except RunAborted as aborted:
                response: HttpResponseBase = on_abort(request, aborted)
                _roll_back()
                return response
            finally:
                forget()
                request.abort_signal = outer or getattr(request, "abort_signal", None)

        @wraps(view)
        async def async_abortable(request: Any, *args: Any, **kwargs: Any) -> HttpResponseBase:
            outer = getattr(request, "abort_signal", None)
            try:
                async with open_block(request, *args, **kwargs) as request.abort_signal:
                    try:
                        return cast(HttpResponseBase, await view(request, *args, **kwargs))
                    except asyncio.CancelledError as error:
                        if abort_on_disconnect == "run":
                            await _abort_everywhere(request.abort_signal, error)
                        raise
            except RunAborted as aborted:
                answer = on_abort(request, aborted)
                return cast(HttpResponseBase, await answer if isawaitable(answer) else answer)
            finally:
                request.abort_signal = outer or getattr(request, "abort_signal", None)

        return cast(View, async_abortable if is_async else abortable)

    return decorate


def _watch(
    request: HttpRequest, block: abortable_run, on_disconnect: OnDisconnect
) -> Callable[[], object]:
    """Abort when the client of a sync view disconnects, until the returned function is called."""
    fd = socket_of(request, on_disconnect)
    if fd is None:
        return list
    run_id = request.abort_signal.run_id  # type: ignore[attr-defined]

    def closed() -> None:
        if on_disconnect == "run":
            spawn(lambda: abort_disconnected(run_id, LOST), name="run_abort-disconnect")
        else:
            block.abort_alone(LOST)

    return current().disconnects.watch(fd, closed)


def _checked(response: Any) -> HttpResponseBase:
    if iscoroutine(response):
        response.close()
        raise TypeError("decorate the async methods of the class, or as_view(), not dispatch()")
    return cast(HttpResponseBase, response)


def _roll_back() -> None:
    """Roll back the transactions of ``ATOMIC_REQUESTS``, although the view returns a response."""
    for each in connections.all(initialized_only=True):
        if each.settings_dict["ATOMIC_REQUESTS"] and is_in_block(each):
            each.set_rollback(True)


async def _abort_everywhere(signal: AbortSignal, error: BaseException) -> None:
    """Abort the run whose client is gone, and wait for it: the abort cancels this task, too."""
    task = asyncio.current_task()
    # Else only something that the view awaits was cancelled, which tells nothing of the client.
    is_gone = isinstance(error, GeneratorExit) or (task is not None and task.cancelling())
    if signal.aborted or not is_gone:
        return
    asking = asyncio.ensure_future(aabort_disconnected(signal.run_id, LOST))
    while not asking.done():
        with suppress(asyncio.CancelledError):  # the caller re-raises its own
            await asyncio.wait({asking})


class _StreamOptions(TypedDict, total=False):
    groups: Iterable[RunID]
    label: str
    grace: float
    abort_on_disconnect: OnDisconnect
    on_abort: Callable[[RunAborted], Chunk] | None


@overload
def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], AsyncGenerator[Chunk, None]],
    **options: Unpack[_StreamOptions],
) -> AsyncIterator[Chunk]: ...


@overload
def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], Iterable[Chunk]],
    **options: Unpack[_StreamOptions],
) -> Iterator[Chunk]: ...


def abortable_stream(
    run_id: RunID,
    make: Callable[[AbortSignal], Any],
    *,
    groups: Iterable[RunID] = (),
    label: str = "",
    grace: float = GRACE,
    abort_on_disconnect: OnDisconnect = "block",
    on_abort: Callable[[RunAborted], Chunk] | None = None,
) -> AsyncIterator[Chunk] | Iterator[Chunk]:
    """Make the content of a ``StreamingHttpResponse`` an abortable run.

    The stream holds the run from the request of the first chunk until the stream ends or is closed,
    and checks the signal after each chunk. An abort cancels an async generator that waits for the
    next chunk. A sync generator must check the signal itself. An abort has no effect while a chunk
    is being sent: a client that does not read delays the stop.

    Use sync generators under WSGI and async generators under ASGI. In the other combinations,
    Django reads the whole stream before it sends anything. Sync generators run in the threads that
    request the chunks, async generators in the event loop.

    :param run_id: as for :class:`abortable_run`; so are ``groups``, ``label`` and ``grace``, which
        is in seconds.
    :param make: called with the signal; a sync or async generator function, or a ``partial`` of
        one. Any other function must return an iterable, which is treated as a sync generator.
    :param abort_on_disconnect: ``"run"``: abort the run in every process, as it runs now, if the
        stream is closed or cancelled before its end because the client has disconnected. No later
        start of the run is stopped. Otherwise a disconnect ends just this stream. Under WSGI the
        server notices it when it sends the next chunk.
    :param on_abort: called with the ``RunAborted``, in the thread or event loop of the generator;
        returns a last chunk, after which the stream ends normally. By default the stream is cut
        off.
    :raises TypeError: as :class:`abortable_run`, on the call.
    :raises ValueError: as :class:`abortable_run`, on the call; and if ``abort_on_disconnect`` is
        unknown.
    :raises StreamAborted: raised by the iterator if the run was aborted and ``on_abort`` is None.
    """
    check(abort_on_disconnect)
    block = abortable_run(run_id, groups=groups, label=label, grace=grace)
    everywhere = abort_on_disconnect == "run"
    end = on_abort or _cut
    if isasyncgenfunction(make):
        return _ClosableStream(_async_chunks(block, make, everywhere, end))
    return _chunks(block, make, everywhere, end)


def _cut(aborted: RunAborted) -> Chunk:
    raise StreamAborted(str(aborted)) from aborted


def _chunks(
    block: abortable_run,
    make: Callable[[AbortSignal], Iterable[Chunk]],
    everywhere: bool,
    end: Callable[[RunAborted], Chunk],
) -> Iterator[Chunk]:
    try:
        with block as signal, ExitStack() as stack:
            chunks = make(signal)
            if hasattr(chunks, "close"):
                stack.callback(chunks.close)
            try:
                for chunk in chunks:
                    signal.raise_if_aborted()
                    yield chunk
                    signal.raise_if_aborted()
            except GeneratorExit:
                if everywhere and not signal.aborted:
                    abort_disconnected(signal.run_id, LOST)
                raise
    except RunAborted as aborted:
        yield end(aborted)


async def _async_chunks(
    block: abortable_run,
    make: Callable[[AbortSignal], AsyncGenerator[Chunk, None]],
    everywhere: bool,
    end: Callable[[RunAborted], Chunk],
) -> AsyncGenerator[Chunk, None]:
    try:
        # Not "async with block": an abort would cancel what the server's task does between chunks.
        signal = await block.enter_in_loop()
        with ExitStack() as stack:
            stack.push(block)
            async with aclosing(make(signal)) as chunks:
                try:
                    with suppress(StopAsyncIteration):
                        while True:
                            yield await _next(chunks, signal)
                except (GeneratorExit, asyncio.CancelledError) as error:
                    if everywhere:
                        await _abort_everywhere(signal, error)
                    raise
    except RunAborted as aborted:
        yield end(aborted)


async def _next(chunks: AsyncGenerator[Chunk, None], signal: AbortSignal) -> Chunk:
    """Return the next chunk; an abort cancels the wait for it.

    :raises RunAborted: if the run was aborted, before this call or during it.
    :raises StopAsyncIteration: at the end of the stream.
    """
    signal.raise_if_aborted()
    cancellation = signal.cancellation = Cancellation()
    forget = signal._when_aborted(cancellation.begin)
    try:
        # If making and sending chunks never suspends, the loop runs nothing else and does not
        # notice that the client has disconnected.
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
    """An asynchronous iterator with a ``close()`` method, which Django calls from a thread.

    Django does not call ``aclose()``, so a plain async generator would stay open until it is
    garbage-collected.
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
        """End the stream if it is open; from within an event loop, schedule its end."""
        if not self._is_open:
            return
        self._is_open = False
        if in_event_loop():
            self._closing = asyncio.ensure_future(self.aclose())
        else:
            async_to_sync(self.aclose)()

    async def aclose(self) -> None:
        """End the stream; call it in the event loop of the stream."""
        await self._chunks.aclose()
