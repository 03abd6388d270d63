"""The confirmation page of the admin's abort action and buttons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import django
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from run_abort.views.abort import AbortForm

__all__ = ["ask", "context_of"]


def context_of(
    model_admin: admin.ModelAdmin[Any], request: HttpRequest, title: str
) -> dict[str, Any]:
    """Template context shared by this app's pages in the admin of a model."""
    request.current_app = model_admin.admin_site.name
    return {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "subtitle": None,
        "opts": model_admin.opts,
        "breadcrumbs_in_list": django.VERSION >= (6, 1),
    }


def ask(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    form: AbortForm,
    *,
    title: str,
    runs: Sequence[tuple[object, str]],
    items: str,
    back: str,
    echoed: Iterable[tuple[str, str]] = (),
    max_display: int = 100,
    templates: Sequence[str] = ("run_abort/admin/abort_confirmation.html",),
) -> HttpResponse:
    """Render the page that asks whether to abort ``runs``.

    :param runs: each run with the reason why it cannot be aborted; empty if it can.
    :param items: name of the abortable runs, in the singular or plural that fits their number.
    :param back: URL of the "No" link.
    :param echoed: hidden fields that make the submitted form act on the same runs.
    """
    context = {
        **context_of(model_admin, request, title),
        "form": form,
        "runs": runs[:max_display],
        "unlisted": max(len(runs) - max_display, 0),
        "asked": sum(not why_not for _run, why_not in runs),
        "items": items,
        "echoed": echoed,
        "back": back,
    }
    return TemplateResponse(request, templates, context)
