"""What a server under test is asked over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys

from django.http import HttpRequest, JsonResponse

from run_abort import RunAborted, abort_run, abortable_run, listener


def status(request: HttpRequest) -> JsonResponse:
    now = listener.status()
    return JsonResponse({"pid": os.getpid(), "state": now.state, "origin": now.origin})


def hold(request: HttpRequest, run_id: str) -> JsonResponse:
    """Work on the run until it is aborted; says so in the log, and then in the answer."""
    try:
        with abortable_run(run_id) as signal:
            sys.stdout.write(f"holding {run_id} {os.getpid()}\n")  # print would write twice
            sys.stdout.flush()
            signal.wait(60)
    except RunAborted as error:
        return JsonResponse({"pid": os.getpid(), "aborted": error.reason})
    return JsonResponse({"pid": os.getpid(), "aborted": None})


async def hold_async(request: HttpRequest, run_id: str) -> JsonResponse:
    """The same in the event loop."""
    try:
        async with abortable_run(run_id):
            sys.stdout.write(f"holding {run_id} {os.getpid()}\n")
            sys.stdout.flush()
            await asyncio.sleep(60)
    except RunAborted as error:
        return JsonResponse({"pid": os.getpid(), "aborted": error.reason})
    return JsonResponse({"pid": os.getpid(), "aborted": None})


def abort(request: HttpRequest, run_id: str) -> JsonResponse:
    outcome = abort_run(run_id, reason=f"by {os.getpid()}")
    return JsonResponse({"pid": os.getpid(), "listeners": outcome.listeners})
