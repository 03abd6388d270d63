"""What a server under test is asked over HTTP."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Iterator

from asgiref.sync import sync_to_async
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse

from run_abort import AbortSignal, RunAborted, abort_run, abortable_run
from run_abort._runtime.disconnects import OnDisconnect
from run_abort._runtime.runtime import current
from run_abort.http import AbortableRequest, abortable_stream, abortable_view
from tests.workers import say, wait_for_abort


def status(request: HttpRequest) -> JsonResponse:
    now = current().listener.status()
    return JsonResponse({"pid": os.getpid(), "state": now.state, "origin": now.origin})


def hold(request: HttpRequest, run_id: str) -> JsonResponse:
    """Work on the run until it is aborted; says so in the log, and then in the answer."""
    try:
        with abortable_run(run_id) as signal:
            say("holding", run_id, os.getpid())
            wait_for_abort(signal)
    except RunAborted as error:
        return JsonResponse({"pid": os.getpid(), "aborted": error.reason})
    return JsonResponse({"pid": os.getpid(), "aborted": None})


async def hold_async(request: HttpRequest, run_id: str) -> JsonResponse:
    """The same in the event loop."""
    try:
        async with abortable_run(run_id):
            say("holding", run_id, os.getpid())
            await asyncio.sleep(60)
    except RunAborted as error:
        return JsonResponse({"pid": os.getpid(), "aborted": error.reason})
    return JsonResponse({"pid": os.getpid(), "aborted": None})


def abort(request: HttpRequest, run_id: str) -> JsonResponse:
    outcome = abort_run(run_id, reason=f"by {os.getpid()}")
    return JsonResponse({"pid": os.getpid(), "published": outcome.published})


def inside(request: HttpRequest) -> JsonResponse:
    """What this process holds, and which threads of ours it has.

    Without the one that sleeps until a client disconnects.
    """
    names = {t.name for t in threading.enumerate() if t.name.startswith("run_abort")}
    names.discard("run_abort-disconnects")
    return JsonResponse({"held": list(current().registry.holders()), "threads": sorted(names)})


@abortable_view(lambda request, run_id: run_id)
def report(request: AbortableRequest, run_id: str) -> JsonResponse:
    """Works until it is aborted, or its client has gone."""
    say(f"holding {run_id}")
    request.abort_signal.sleep(60)
    return JsonResponse({"whole": True})


@abortable_view(lambda request, run_id: run_id, insist="interrupt", grace=0)
def report_deaf(request: AbortableRequest, run_id: str) -> JsonResponse:
    """Does not look whether it is aborted."""
    say(f"holding {run_id}")
    while True:
        time.sleep(0.01)


async def _report(request: AbortableRequest, run_id: str) -> JsonResponse:
    say(f"holding {run_id}")
    await asyncio.sleep(60)
    return JsonResponse({"whole": True})


report_async = abortable_view(lambda request, run_id: run_id)(_report)
report_tied = abortable_view(lambda request, run_id: run_id, abort_on_disconnect="run")(_report)


def stream(request: HttpRequest, run_id: str) -> StreamingHttpResponse:
    """Streams rows until it is aborted, or its client has gone; or a number of rows."""
    number = int(request.GET.get("rows", 100_000))

    def rows(signal: AbortSignal) -> Iterator[str]:
        try:
            for _ in range(number):
                yield "row\n"
                signal.sleep(0.02)
        finally:
            say(f"left {run_id} {signal.aborted}")

    tied: OnDisconnect = "run" if "tied" in request.GET else "block"
    return StreamingHttpResponse(abortable_stream(run_id, rows, abort_on_disconnect=tied))


async def stream_async(request: HttpRequest, run_id: str) -> StreamingHttpResponse:
    """The same in the event loop; or rows that are longer than a client reads in one go."""
    number = int(request.GET.get("rows", 100_000))
    length = int(request.GET.get("length", 0))

    async def rows(signal: AbortSignal) -> AsyncGenerator[str, None]:
        try:
            for _ in range(number):
                yield "row\n"
                if length:
                    yield "x" * length
                else:
                    await asyncio.sleep(0.02)
        finally:
            await sync_to_async(say)(f"left {run_id} {signal.aborted}")

    tied: OnDisconnect = "run" if "tied" in request.GET else "block"
    return StreamingHttpResponse(abortable_stream(run_id, rows, abort_on_disconnect=tied))
