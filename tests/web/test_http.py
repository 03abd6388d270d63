from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_control

from run_abort import AbortController, AbortSignal, RunAborted, abort_run, abortable_run
from run_abort._concurrency.throttle import Throttle
from run_abort._core.types import Request
from run_abort._runtime import disconnects
from run_abort._runtime.disconnects import OnDisconnect
from run_abort._runtime.runtime import current
from run_abort.http import (
    LOST,
    AbortableRequest,
    Chunk,
    StreamAborted,
    abortable_stream,
    abortable_view,
)
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_requested
from tests.blocks import connected
from tests.guards import in_event_loop
from tests.jobs.models import Job
from tests.support import TIMEOUT

Link = tuple[socket.socket, HttpRequest]  # a client, and its request

factory = RequestFactory()
happened: list[object] = []


@pytest.fixture(autouse=True)
def alone(settings: Any) -> None:
    """No Redis, no database: what happens inside this process."""
    settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}
    settings.ROOT_URLCONF = __name__
    happened.clear()


def by_name(request: HttpRequest, name: str = "run-1") -> str:
    return name


def abort(run_id: str, reason: str = "", actor: str = "") -> int:
    """Abort the blocks of this process."""
    return current().registry.abort(Request(run_id, reason=reason, actor=actor))


abortable = abortable_view(by_name)


# What is served.


@abortable
def look(request: AbortableRequest, name: str) -> HttpResponse:
    abort(name, "a secret", "ann")
    request.abort_signal.raise_if_aborted()
    return HttpResponse("whole")


@abortable
async def look_async(request: AbortableRequest, name: str) -> HttpResponse:
    asyncio.get_running_loop().call_later(0.01, abort, name)
    await asyncio.sleep(TIMEOUT)
    return HttpResponse("whole")


@abortable
def write(request: AbortableRequest, name: str) -> HttpResponse:
    Job.objects.create(name=name)
    if "abort" in request.GET:
        abort(name)
    return HttpResponse("whole")


@abortable_view(by_name, on_abort=lambda request, aborted: HttpResponse(Job.objects.count()))
def count(request: AbortableRequest, name: str) -> HttpResponse:
    Job.objects.create(name=name)
    abort(name)
    return HttpResponse("whole")


@method_decorator(abortable, name="dispatch")
class Sync(View):
    def get(self, request: AbortableRequest, name: str) -> HttpResponse:
        return look(request, name=name)


class Async(View):
    @method_decorator(abortable)
    async def get(self, request: AbortableRequest, name: str) -> HttpResponse:
        return await look_async(request, name=name)


class Undecorated(View):
    async def get(self, request: AbortableRequest, name: str) -> HttpResponse:
        request.abort_signal.raise_if_aborted()
        return await look_async(request, name=name)


@method_decorator(abortable, name="dispatch")
class Wrong(Undecorated):
    pass


async def wait(request: HttpRequest, name: str) -> HttpResponse:
    try:
        happened.append("began")
        await asyncio.sleep(TIMEOUT)
    finally:
        happened.append("left")
    return HttpResponse("whole")


@abortable_view(by_name, abort_on_disconnect="run")
async def answer(request: HttpRequest, name: str) -> HttpResponse:
    return HttpResponse("whole")


async def rows_async(signal: AbortSignal, *, length: int = 0) -> AsyncGenerator[Chunk, None]:
    try:
        yield "x" * length
        happened.append("went on")
        await asyncio.sleep(TIMEOUT)
    finally:
        await sync_to_async(happened.append)("left")


async def stream_async(request: HttpRequest, name: str) -> StreamingHttpResponse:
    rows = partial(rows_async, length=3)
    tied = "run" if "tied" in request.GET else "block"
    return StreamingHttpResponse(abortable_stream(name, rows, abort_on_disconnect=tied))


async def short_async(request: HttpRequest, name: str) -> StreamingHttpResponse:
    async def rows(signal: AbortSignal) -> AsyncGenerator[Chunk, None]:
        yield b"1"
        yield ""
        yield "2"

    return StreamingHttpResponse(abortable_stream(name, rows, abort_on_disconnect="run"))


async def busy_async(request: HttpRequest, name: str) -> StreamingHttpResponse:
    async def rows(signal: AbortSignal) -> AsyncGenerator[Chunk, None]:
        for _ in range(10_000):
            yield "row"

    return StreamingHttpResponse(abortable_stream(name, rows))


urlpatterns = [
    path("look/<name>/", look, name="the-look"),
    path("look-async/<name>/", look_async),
    path("write/<name>/", write),
    path("write-at-once/<name>/", transaction.non_atomic_requests(partial(write))),
    path("count/<name>/", count),
    path("sync/<name>/", Sync.as_view()),
    path("async/<name>/", Async.as_view()),
    path("wrapped/<name>/", abortable(Undecorated.as_view())),
    path("dispatch/<name>/", Wrong.as_view()),
    path("wait/<name>/", abortable(wait)),
    path("wait-tied/<name>/", abortable_view(by_name, abort_on_disconnect="run")(wait)),
    path("answer/<name>/", answer),
    path("stream-async/<name>/", stream_async),
    path("short-async/<name>/", short_async),
    path("busy-async/<name>/", busy_async),
]


class Handler(ASGIHandler):
    """Django 5.2 leaves the body of the request open if the response fails."""

    async def read_body(self, receive: Any) -> Any:
        self.request_body = await super().read_body(receive)
        return self.request_body


class Asgi:
    """One request to Django's ASGI application; made in an event loop."""

    def __init__(self, path: str, *, reads: bool = True) -> None:
        address, _, query = path.partition("?")
        scope = {"type": "http", "method": "GET", "path": address, "headers": []}
        scope["query_string"] = query.encode()
        self.sent: list[dict[str, Any]] = []
        self.is_gone = asyncio.Event()
        self.reads = asyncio.Event()  # whether the client reads the body
        if reads:
            self.reads.set()
        self._asks = iter([{"type": "http.request", "body": b""}])
        self._handler = Handler()
        self.task = asyncio.ensure_future(self._handler(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        for message in self._asks:
            return message
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body"):
            await self.reads.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_whole(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body", False) is False

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                assert not self.task.done(), self.sent
                await asyncio.sleep(0.002)

    async def leave(self, condition: Callable[[], object]) -> None:
        """The client goes as soon as the condition is true."""
        await self.until(condition)
        self.is_gone.set()
        await self.end()

    async def end(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                await self.task
        finally:
            self._handler.request_body.close()


def requested(run_id: str = "run-1") -> None:
    """As if it had been requested in another process."""
    facts = {"reason": "because", "actor": "ann", "origin": "inst_x"}
    AbortRequest.objects.create(run_id=run_id, **facts)


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What people see of the blocks that are entered."""
    found: list[str] = []
    enter = current().holder.enter

    def noting(controller: AbortController, ids: tuple[str, ...], label: str) -> Any:
        found.append(label)
        return enter(controller, ids, label)

    monkeypatch.setattr(current().holder, "enter", noting)
    return found


class TestView:
    def test_what_is_not_aborted_answers_as_ever(self, labels: list[str]) -> None:
        @abortable_view(by_name, get_groups=lambda request: ["parent"], label="a report")
        def view(request: AbortableRequest) -> JsonResponse:
            signal = request.abort_signal
            return JsonResponse(
                [*list(current().registry.holders()), *labels, signal.run_id], safe=False
            )

        response = view(factory.get("/"))
        assert (response.status_code, response.content.decode()) == (
            200,
            '["run-1", "parent", "a report", "run-1"]',
        )
        assert list(current().registry.holders()) == []

    @pytest.mark.parametrize("url", ["look", "sync"])
    def test_an_aborted_one_says_so_and_not_by_whom(self, client: Client, url: str) -> None:
        response = client.get(f"/{url}/run-1/", headers={"accept": "text/html"})
        assert (response.status_code, response.content) == (409, b"This was aborted.")
        assert response["Content-Type"] == "text/plain; charset=utf-8"
        response = client.get(f"/{url}/run-1/", headers={"accept": "application/json"})
        assert (response.status_code, response.json()) == (
            409,
            {"ok": False, "error": "This was aborted."},
        )

    def test_its_answer_is_not_kept_in_place_of_the_views(self) -> None:
        kept = cache_control(max_age=3600, public=True)(look)
        response = kept(factory.get("/"), name="run-1")
        assert response.status_code == 409
        assert "no-store" in response["Cache-Control"]
        assert "3600" not in response["Cache-Control"]

    @pytest.mark.parametrize("url", ["look-async", "async", "wrapped"])
    def test_an_async_one_is_cancelled(self, url: str) -> None:
        response = asyncio.run(AsyncClient().get(f"/{url}/run-1/"))
        assert (response.status_code, response.content) == (409, b"This was aborted.")

    def test_an_async_one_is_served_under_wsgi_too(self, client: Client) -> None:
        assert client.get("/look-async/run-1/").status_code == 409

    def test_what_people_see_of_it_is_the_name_of_its_url(
        self, client: Client, labels: list[str]
    ) -> None:
        client.get("/look/run-1/")
        assert labels == ["the-look"]

    def test_what_cannot_work_is_an_error(self, client: Client) -> None:
        with pytest.raises(TypeError, match="async methods"):
            client.get("/dispatch/run-1/")
        assert list(current().registry.holders()) == []

    def test_an_unknown_effect_of_a_disconnect_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="'block', 'run' or None, not True"):
            abortable_view(by_name, abort_on_disconnect=True)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'block', 'run' or None, not True"):
            abortable_stream("run-1", rows_async, abort_on_disconnect=True)  # type: ignore[call-overload]

    def test_a_wrong_option_is_told_at_once(self) -> None:
        with pytest.raises(TypeError, match="grace must be a number"):
            abortable_view(by_name, grace="10")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="insist must be of"):
            abortable_view(by_name, insist="kill")

    def test_what_get_run_id_raises_is_the_answer(self) -> None:
        def missing(request: HttpRequest) -> str:
            raise Http404

        with pytest.raises(Http404):
            abortable_view(missing)(look)(factory.get("/"))

    def test_one_that_calls_another_one_keeps_its_signal(self) -> None:
        @abortable_view(lambda request: "inner")
        async def inner(request: AbortableRequest) -> HttpResponse:
            return HttpResponse(request.abort_signal.run_id)

        @abortable_view(lambda request: "outer")
        async def outer(request: AbortableRequest) -> HttpResponse:
            assert (await inner(request)).content == b"inner"
            return HttpResponse(request.abort_signal.run_id)

        assert asyncio.run(outer(factory.get("/"))).content == b"outer"

    def test_its_own_errors_are_the_abort_if_they_come_after_it(self) -> None:
        @abortable
        def view(request: HttpRequest) -> HttpResponse:
            if "abort" in request.GET:
                abort("run-1")
            raise OSError("a full disk, or a killed subprocess")

        assert view(factory.get("/", {"abort": ""})).status_code == 409
        with pytest.raises(OSError, match="full"):
            view(factory.get("/"))
        assert list(current().registry.holders()) == []

    def test_one_that_does_not_look_is_interrupted(self) -> None:
        @abortable_view(by_name, grace=0, insist="interrupt")
        def view(request: HttpRequest) -> HttpResponse:
            threading.Timer(0.01, abort, ["run-1"]).start()
            while True:
                pass

        assert view(factory.get("/")).status_code == 409

    def test_the_project_answers(self) -> None:
        def on_abort(request: HttpRequest, aborted: RunAborted) -> HttpResponse:
            return HttpResponse(f"{request.path} {aborted.reason}", status=503)

        @abortable_view(by_name, on_abort=on_abort)
        def view(request: HttpRequest) -> HttpResponse:
            abort("run-1", "because")
            return HttpResponse("whole")

        response = view(factory.get("/path/"))
        assert (response.status_code, response.content) == (503, b"/path/ because")

    def test_the_project_answers_asynchronously(self) -> None:
        async def on_abort(request: HttpRequest, aborted: RunAborted) -> HttpResponse:
            await asyncio.sleep(0)
            return HttpResponse(aborted.run_id)

        view = abortable_view(by_name, on_abort=on_abort)(look_async.__wrapped__)
        response = asyncio.run(view(factory.get("/"), "run-1"))
        assert response.content == b"run-1"


@pytest.mark.django_db(transaction=True)
class TestDatabase:
    @pytest.fixture
    def atomic_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    @pytest.mark.parametrize("url", ["write", "wait", "look-async"])
    def test_what_was_requested_before_does_not_begin(self, settings: Any, url: str) -> None:
        settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": True}
        requested()
        if url == "write":
            response: Any = Client().get("/write/run-1/")
        else:
            response = asyncio.run(AsyncClient().get(f"/{url}/run-1/"))
        assert response.status_code == 409
        assert happened == []
        assert not Job.objects.exists()

    def test_a_stream_that_was_requested_before_does_not_begin(self, settings: Any) -> None:
        settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": True}
        requested()
        with pytest.raises(StreamAborted, match="because"):
            next(abortable_stream("run-1", lambda signal: happened))

        async def main() -> None:
            with pytest.raises(StreamAborted, match="because"):
                await anext(abortable_stream("run-1", rows_async))

        asyncio.run(main())
        assert happened == []

    def test_an_abort_rolls_the_request_back(self, atomic_requests: None) -> None:
        client = Client()
        assert client.get("/write/run-1/?abort").status_code == 409
        assert not Job.objects.exists()
        assert client.get("/write/run-1/").status_code == 200
        assert Job.objects.count() == 1

    def test_it_is_rolled_back_when_the_answer_is_made(self, atomic_requests: None) -> None:
        assert Client().get("/count/run-1/").content == b"1"
        assert not Job.objects.exists()

    def test_the_transaction_of_a_test_is_left_alone(self) -> None:
        with transaction.atomic():
            assert Client().get("/write/run-1/?abort").status_code == 409
            assert Job.objects.count() == 1

    @pytest.mark.django_db
    @pytest.mark.usefixtures("atomic_requests")
    def test_a_view_without_a_transaction_leaves_that_of_a_test_case_alone(self) -> None:
        assert Client().get("/write-at-once/run-1/?abort").status_code == 409
        request = factory.get("/", {"abort": ""})
        assert write(request, name="run-1").status_code == 409  # type: ignore[arg-type]
        assert Job.objects.count() == 2
        assert Client().get("/write/run-1/?abort").status_code == 409
        assert Job.objects.count() == 2

    def test_a_disconnect_is_recorded_and_stops_no_later_start(self, settings: Any) -> None:
        settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": True}

        async def main() -> None:
            asgi = Asgi("/wait-tied/run-1/")
            await asgi.leave(lambda: happened)

        asyncio.run(main())
        (row,) = AbortRequest.objects.all()
        assert (row.run_id, row.reason, row.actor) == ("run-1", LOST, "")
        assert (row.cause, row.cleared_at is None) == ("disconnect", False)
        with abortable_run("run-1"):
            pass


@pytest.fixture
def client_and_request() -> Iterator[Link]:
    """A connection, and the request that gunicorn makes of it."""
    client, server = socket.socketpair()
    with client, server:
        yield client, factory.get("/", **{"gunicorn.socket": server})


class TestSyncDisconnect:
    @pytest.mark.parametrize("tied", ["block", "run"])
    def test_the_view_ends(self, client_and_request: Link, tied: OnDisconnect) -> None:
        client, request = client_and_request

        @abortable_view(by_name, abort_on_disconnect=tied)
        def view(request: AbortableRequest) -> HttpResponse:
            client.close()
            assert request.abort_signal.wait(TIMEOUT)
            return HttpResponse("whole")

        with other_holder() as other:
            response = view(request)
            assert response.status_code == 409
            assert (other.aborted, other.reason) == ((True, LOST) if tied == "run" else (False, ""))

    def test_one_that_has_answered_is_watched_no_more(self, client_and_request: Link) -> None:
        client, request = client_and_request
        signals: list[AbortSignal] = []

        @abortable_view(by_name)
        def view(request: AbortableRequest) -> HttpResponse:
            signals.append(request.abort_signal)
            return HttpResponse("whole")

        assert view(request).content == b"whole"
        client.close()
        server = request.META["gunicorn.socket"]
        with gone(server) as seen:
            assert seen.wait(TIMEOUT)
        assert not signals[0].aborted

    def test_a_view_that_calls_another_one(self, client_and_request: Link) -> None:
        client, request = client_and_request

        @abortable_view(lambda request: "inner")
        def inner(request: AbortableRequest) -> HttpResponse:
            return HttpResponse("whole")

        @abortable_view(lambda request: "inner")
        def inner_left_alone(request: AbortableRequest) -> HttpResponse:
            client.close()
            assert request.abort_signal.wait(TIMEOUT)
            return HttpResponse("whole")

        @abortable_view(lambda request: "outer")
        def outer(request: AbortableRequest) -> HttpResponse:
            assert inner(request).content == b"whole"
            assert inner_left_alone(request).status_code == 409
            assert request.abort_signal.run_id == "outer"
            assert request.abort_signal.wait(TIMEOUT)
            return HttpResponse("whole")

        assert outer(request).status_code == 409

    def test_none_watches_nothing(self, client_and_request: Link) -> None:
        client, request = client_and_request

        @abortable_view(by_name, abort_on_disconnect=None)
        def view(request: AbortableRequest) -> HttpResponse:
            client.close()
            with gone(request.META["gunicorn.socket"]) as seen:
                assert seen.wait(TIMEOUT)
            return HttpResponse(str(request.abort_signal.aborted))

        assert view(request).content == b"False"

    def test_a_request_that_is_not_of_the_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> int:
            raise SystemError("you can call uwsgi api function only from the main callable")

        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(connection_fd=refuse))
        view = abortable_view(by_name)(lambda request: HttpResponse("whole"))
        assert view(factory.get("/")).content == b"whole"

    def test_a_server_that_cannot_tell_is_an_error_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.argv", ["/usr/bin/uvicorn", "shop.asgi"])
        with pytest.raises(ImproperlyConfigured, match="with uvicorn, which does not tell"):
            abortable_view(by_name, abort_on_disconnect="run")(lambda request: HttpResponse())

    def test_one_that_does_not_say_so_is_warned_of(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disconnects, "_unwatched", Throttle())  # another test may have warned
        view = abortable_view(by_name, abort_on_disconnect="run")(lambda request: HttpResponse())
        assert view(factory.get("/import/")).status_code == 200
        assert "does not tell a sync view" in caplog.text


@contextmanager
def gone(server: socket.socket) -> Iterator[threading.Event]:
    """Whether the client of a connection has gone."""
    seen = threading.Event()
    forget = current().disconnects.watch(server.fileno(), seen.set)
    yield seen
    forget()


class TestStream:
    def test_it_is_held_from_the_first_chunk_to_the_end(self, labels: list[str]) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            yield signal.run_id
            yield b"2"

        stream = abortable_stream("run-1", rows, groups=["parent"], label="an export")
        assert list(current().registry.holders()) == []
        assert next(stream) == "run-1"
        assert list(current().registry.holders()) == ["run-1", "parent"]
        assert labels == ["an export"]
        assert list(stream) == [b"2"]
        assert list(current().registry.holders()) == []

    def test_a_wrong_id_is_told_at_once(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            abortable_stream("", lambda signal: [])

    def test_it_is_cut_by_an_abort(self) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            try:
                yield "1"
                happened.append("went on")
                yield "2"
            finally:
                happened.append(signal.aborted)

        response = StreamingHttpResponse(abortable_stream("run-1", rows))
        chunks = iter(response)
        assert next(chunks) == b"1"
        abort("run-1", "because")
        with pytest.raises(StreamAborted, match="because") as raised:
            next(chunks)
        assert isinstance(raised.value.__cause__, RunAborted)
        assert happened == [True]
        assert list(current().registry.holders()) == []
        response.close()

    def test_what_comes_after_the_abort_is_not_sent(self) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            abort("run-1")
            yield "too late"

        with pytest.raises(StreamAborted):
            next(abortable_stream("run-1", rows))

    def test_what_ends_after_the_abort_was_aborted(self) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            yield "1"
            abort("run-1")

        with pytest.raises(StreamAborted):
            list(abortable_stream("run-1", rows))

    @pytest.mark.parametrize("aborted", [False, True])
    def test_its_own_errors(self, aborted: bool) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            yield "1"
            if aborted:
                abort("run-1")
            raise OSError

        with pytest.raises(StreamAborted if aborted else OSError):
            list(abortable_stream("run-1", rows))
        assert list(current().registry.holders()) == []

    def test_the_project_says_the_last_word(self) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            yield "1"
            signal.sleep(TIMEOUT)

        def on_abort(aborted: RunAborted) -> Chunk:
            return f"event: aborted\ndata: {aborted.reason}\n\n"

        stream = abortable_stream("run-1", rows, on_abort=on_abort)
        assert next(stream) == "1"
        abort("run-1", "because")
        assert list(stream) == ["event: aborted\ndata: because\n\n"]

    @pytest.mark.parametrize("tied", [False, True])
    def test_closed_before_its_end(self, tied: bool) -> None:
        def rows(signal: AbortSignal) -> Iterator[Chunk]:
            try:
                yield from "12"
            finally:
                happened.append(signal.aborted)

        stream = abortable_stream("run-1", rows, abort_on_disconnect="run" if tied else "block")
        response = StreamingHttpResponse(stream)
        assert next(iter(response)) == b"1"
        with other_holder() as other:
            response.close()
            assert (other.aborted, other.reason) == ((True, LOST) if tied else (False, ""))
        assert happened == [tied]
        assert list(current().registry.holders()) == []

    @pytest.mark.parametrize("begun", [False, True])
    def test_closed_before_its_beginning_or_after_its_end(self, begun: bool) -> None:
        stream = abortable_stream("run-1", lambda signal: ["1"], abort_on_disconnect="run")
        response = StreamingHttpResponse(stream)
        if begun:
            assert list(response) == [b"1"]
        with other_holder() as other:
            response.close()
            assert not other.aborted


class other_holder(abortable_run):  # noqa: N801
    """Somebody else who works on run-1."""

    def __init__(self) -> None:
        super().__init__("run-1")

    def __exit__(self, *exc_info: object) -> None:
        try:
            super().__exit__(*exc_info)
        except RunAborted:
            if exc_info[0] is not None:
                raise


class TestAsyncStream:
    def test_whole(self) -> None:
        async def main() -> None:
            asgi = Asgi("/short-async/run-1/")
            await asgi.end()
            assert (asgi.body, asgi.is_whole) == (b"12", True)
            assert len(current().registry.controllers()) == 1

        with other_holder() as other:
            asyncio.run(main())
            assert not other.aborted

    @in_event_loop
    async def test_an_abort_cancels_what_waits_for_the_next_chunk(self) -> None:
        asgi = Asgi("/stream-async/run-1/")
        await asgi.until(lambda: happened)
        assert list(current().registry.holders()) == ["run-1"]
        abort_run("run-1", reason="because")
        with pytest.raises(StreamAborted, match="because"):
            await asgi.end()
        assert (asgi.body, asgi.is_whole) == (b"xxx", False)
        assert happened == ["went on", "left"]
        assert list(current().registry.holders()) == []

    @in_event_loop
    async def test_an_abort_does_not_cancel_the_sending(self) -> None:
        asgi = Asgi("/stream-async/run-1/", reads=False)
        await asgi.until(lambda: asgi.body)
        abort_run("run-1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asgi.task.done()
        asgi.reads.set()
        with pytest.raises(StreamAborted):
            await asgi.end()
        assert happened == ["left"]

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("while_sending", [False, True])
    def test_disconnected(self, tied: bool, while_sending: bool) -> None:
        async def main() -> None:
            asgi = Asgi("/stream-async/run-1/" + "?tied" * tied, reads=not while_sending)
            await asgi.leave(lambda: asgi.body if while_sending else happened)
            assert happened == (["left"] if while_sending else ["went on", "left"])
            assert len(current().registry.controllers()) == 1

        with other_holder() as other:
            asyncio.run(main())
            assert (other.aborted, other.reason) == ((True, LOST) if tied else (False, ""))
        assert list(current().registry.holders()) == []

    def test_one_that_never_waits_does_not_keep_the_disconnect_from_being_noticed(self) -> None:
        async def main() -> None:
            asgi = Asgi("/busy-async/run-1/")
            await asgi.leave(lambda: asgi.body)
            assert not asgi.is_whole

        asyncio.run(main())
        assert list(current().registry.holders()) == []

    def test_an_abort_may_come_with_the_disconnect(self) -> None:
        async def main() -> None:
            asgi = Asgi("/stream-async/run-1/?tied")
            await asgi.until(lambda: happened)
            abort_run("run-1", reason="because")
            asgi.is_gone.set()
            with suppress(StreamAborted):  # whichever comes first
                await asgi.end()
            assert len(current().registry.controllers()) == 1

        with other_holder() as other:
            asyncio.run(main())
            assert other.reason == "because"
        assert list(current().registry.holders()) == []

    @in_event_loop
    async def test_one_that_swallows_the_cancellation_goes_no_further_than_its_next_chunk(
        self,
    ) -> None:
        async def rows(signal: AbortSignal) -> AsyncGenerator[Chunk, None]:
            yield "1"
            try:
                await asyncio.sleep(TIMEOUT)
            except asyncio.CancelledError:
                yield "too late"
            yield "never"

        stream = abortable_stream("run-1", rows)
        assert await anext(stream) == "1"
        asyncio.get_running_loop().call_later(0.01, abort, "run-1")
        with pytest.raises(StreamAborted):
            await anext(stream)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert list(current().registry.holders()) == []

    @pytest.mark.parametrize("aborted", [False, True])
    @in_event_loop
    async def test_its_own_errors(self, aborted: bool) -> None:
        async def rows(signal: AbortSignal) -> AsyncGenerator[Chunk, None]:
            yield "1"
            if aborted:
                abort("run-1")
            raise OSError

        stream = abortable_stream("run-1", rows)
        assert await anext(stream) == "1"
        with pytest.raises(StreamAborted if aborted else OSError):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert list(current().registry.holders()) == []

    @in_event_loop
    async def test_the_project_says_the_last_word(self) -> None:
        stream = abortable_stream("run-1", rows_async, on_abort=lambda aborted: "aborted")
        assert await anext(stream) == ""
        asyncio.get_running_loop().call_later(0.01, abort, "run-1")
        assert [chunk async for chunk in stream] == ["aborted"]
        assert happened == ["went on", "left"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    def test_within_a_block_that_may_be_interrupted(self) -> None:
        async def main() -> None:
            for run_id in ("run-1", "outer"):
                stream = abortable_stream(run_id, rows_async)
                assert await anext(stream) == ""
                abort(run_id)
                with pytest.raises(StreamAborted):
                    await anext(stream)

        with pytest.raises(RunAborted), abortable_run("outer", insist="interrupt"):
            asyncio.run(main())
        assert happened == ["left", "left"]
        assert list(current().registry.holders()) == []

    @in_event_loop
    async def test_closed_in_the_event_loop_it_ends_soon(self) -> None:
        response = StreamingHttpResponse(abortable_stream("run-1", rows_async))
        async for chunk in response:
            assert chunk == b""
            break
        response.close()
        while current().registry.holders():
            await asyncio.sleep(0.002)
        assert happened == ["left"]

    @pytest.mark.django_db(transaction=True)
    @in_event_loop
    async def test_one_that_is_cancelled_while_it_begins_is_not_held_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        settings.RUN_ABORT = {"LISTEN": False}

        async def never(future: object) -> None:
            happened.append("entering")
            await asyncio.sleep(TIMEOUT)

        monkeypatch.setattr(current().recorder, "await_", never)

        asgi = Asgi("/stream-async/run-1/")
        await asgi.until(lambda: happened)
        assert list(current().registry.holders()) == ["run-1"]
        asgi.is_gone.set()
        await asgi.end()
        assert not current().registry.holders()
        assert happened == ["entering"]


class TestDisconnect:
    @pytest.mark.parametrize("tied", [False, True])
    def test_a_view_that_waits(self, tied: bool) -> None:
        async def main() -> None:
            asgi = Asgi("/wait-tied/run-1/" if tied else "/wait/run-1/")
            await asgi.leave(lambda: happened)
            assert asgi.sent == []
            assert happened == ["began", "left"]
            assert len(current().registry.controllers()) == 1

        with other_holder() as other:
            asyncio.run(main())
            assert (other.aborted, other.reason) == ((True, LOST) if tied else (False, ""))

    def test_the_request_ends_when_everybody_was_asked(self) -> None:
        async def slowly(**facts: Any) -> None:
            await asyncio.sleep(0.05)
            happened.append(facts["run_id"])

        async def main() -> None:
            asgi = Asgi("/wait-tied/run-1/")
            await asgi.leave(lambda: happened)
            assert happened == ["began", "left", "run-1"]

        with connected(run_abort_requested, slowly):
            asyncio.run(main())

    def test_a_task_that_the_view_awaits_is_no_client(self) -> None:
        """Somebody else has cancelled it."""

        async def rows(signal: AbortSignal) -> AsyncGenerator[str, None]:
            await cancelled()
            yield "1"

        @abortable_view(by_name, abort_on_disconnect="run")
        async def view(request: HttpRequest, name: str) -> HttpResponse:
            await cancelled()
            return HttpResponse()

        async def cancelled() -> None:
            task = asyncio.ensure_future(asyncio.sleep(TIMEOUT))
            asyncio.get_running_loop().call_soon(task.cancel)
            await task

        async def main() -> None:
            with pytest.raises(asyncio.CancelledError):
                await view(factory.get("/"), name="run-1")
            with pytest.raises(asyncio.CancelledError):
                await anext(abortable_stream("run-1", rows, abort_on_disconnect="run"))

        with other_holder() as other:
            asyncio.run(main())
            assert not other.aborted

    @in_event_loop
    async def test_what_was_attached_to_it_hears_of_it(self) -> None:
        heard = threading.Event()

        @abortable_view(by_name, abort_on_disconnect="run")
        async def view(request: AbortableRequest) -> HttpResponseBase:
            request.abort_signal.add_callback(heard.set)
            await asyncio.sleep(TIMEOUT)
            raise AssertionError

        task = asyncio.ensure_future(view(factory.get("/")))
        while not list(current().registry.holders()):
            await asyncio.sleep(0.002)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert heard.wait(TIMEOUT)

    def test_a_view_that_has_answered(self) -> None:
        async def main() -> None:
            asgi = Asgi("/answer/run-1/")
            await asgi.end()
            asgi.is_gone.set()
            assert (asgi.body, asgi.is_whole) == (b"whole", True)

        with other_holder() as other:
            asyncio.run(main())
            assert not other.aborted
