"""The abort view and the progress view as functions, for views of API frameworks.

They check the permission, not a CSRF token: that is for the authentication of the framework.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from django.http import JsonResponse
from django.utils.cache import add_never_cache_headers

from run_abort._concurrency.workers import shielded, submit
from run_abort._core.ids import clean_id

from .abort import AbortForm, abort_answer
from .guarded import Answer, denial, refusal
from .permissions import amay, may
from .progress import asked_of, find, progress_answer
from .requesting import request_aborts

T = TypeVar("T")


def abort_response(user: Any, run: object, *, reason: str = "") -> JsonResponse:
    """Abort a run for a user. The response is the JSON of ``AbortView``.

    :param user: the requester; ``AnonymousUser()`` or None if unknown.
    :param run: what names the run, as for ``abort_run``.
    :param reason: the optional reason.
    :raises TypeError: if ``run`` is of a type that names no run.
    """
    run_id, form = _clean(run), AbortForm({"reason": reason})
    if run_id is None or not may(user, run_id, "abort"):
        return _response(denial(user, run_id))
    if not form.is_valid():
        return _response(_invalid(form))
    return _response(
        abort_answer(request_aborts([run_id], user=user, reason=form.cleaned_data["reason"]))
    )


async def aabort_response(user: Any, run: object, *, reason: str = "") -> JsonResponse:
    """:func:`abort_response` for asyncio code. ``user`` must be loaded: ``request.auser()``."""
    run_id, form = _clean(run), AbortForm({"reason": reason})
    if run_id is None or not await amay(user, run_id, "abort"):
        return _response(denial(user, run_id))
    if not form.is_valid():
        return _response(_invalid(form))
    reason = form.cleaned_data["reason"]
    return _response(
        abort_answer(await _threaded(partial(request_aborts, [run_id], user=user, reason=reason)))
    )


def progress_response(user: Any, run: object, request_id: object) -> JsonResponse:
    """The progress of an abort, as the JSON of ``AbortProgressView``.

    :param user: and ``run``, as for :func:`abort_response`.
    :param request_id: the ``requestId`` of the abort.
    :raises TypeError: if ``run`` is of a type that names no run.
    """
    run_id = _clean(run)
    if run_id is None or not may(user, run_id, "see"):
        return _response(denial(user, run_id))
    asked = asked_of(run_id, request_id)
    return _response(progress_answer(asked, find(asked)))


async def aprogress_response(user: Any, run: object, request_id: object) -> JsonResponse:
    """:func:`progress_response` for asyncio code. ``user`` must be loaded: ``request.auser()``."""
    run_id = _clean(run)
    if run_id is None or not await amay(user, run_id, "see"):
        return _response(denial(user, run_id))
    asked = asked_of(run_id, request_id)
    return _response(progress_answer(asked, await _threaded(partial(find, asked))))


def _clean(run: object) -> str | None:
    try:
        return clean_id(run)
    except ValueError:
        return None


def _invalid(form: AbortForm) -> Answer:
    return refusal(400, " ".join(map(str, form.errors["reason"])))


def _response(answer: Answer) -> JsonResponse:
    response = JsonResponse(answer.data, status=answer.status)
    add_never_cache_headers(response)
    return response


async def _threaded(function: Callable[[], T]) -> T:
    """The result; on a thread of its own, because thread pools may be full."""
    return await shielded(submit(function, name="run_abort-abort", daemon=False))
