"""What the admin shows of an abort: the confirmation page before it, and the messages after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import django
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from run_abort.aborts import AbortOutcome
from run_abort.views.abort import AbortForm

__all__ = ["ask", "context_of", "log_text", "tell"]

Items = Callable[[int], str]  # returns the name for a given number of runs
LeveledText = tuple[int, str]  # level and text of a message


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


def tell(outcomes: Sequence[AbortOutcome], items: Items, *, waited: bool) -> Iterator[LeveledText]:
    """Yield the messages about ``outcomes``, with their levels. They state only what is known.

    :param waited: whether ``abort_run`` waited for answers of the processes.
    """
    published = [each for each in outcomes if each.published]
    if waited:
        yield from _findings(outcomes, items)
    elif published:
        yield messages.SUCCESS, _filled(_("Asked to abort: %(count)d %(items)s."), published, items)

    others = [each for each in outcomes if not each.published]
    if recorded := [each for each in others if each.recorded and not each.stopped]:
        text = _(
            "Asked to abort; other processes read the request from the database some seconds "
            "later: %(count)d %(items)s."
        )
        yield messages.INFO, _filled(text, recorded, items)
    if local := [each for each in others if each.asked and not each.recorded]:
        text = _("Asked to abort in this process only: %(count)d %(items)s.")
        yield messages.WARNING, _filled(text, local, items)
    if unheard := [each for each in others if not each.asked]:
        text = _(
            "Not asked to abort, because neither the database nor Redis accepted the "
            "request: %(count)d %(items)s."
        )
        yield messages.ERROR, _filled(text, unheard, items)


def log_text(reason: str) -> str:
    """Text of the admin's log entry."""
    return _("Asked to abort: %(reason)s") % {"reason": reason} if reason else _("Asked to abort.")


def _findings(outcomes: Sequence[AbortOutcome], items: Items) -> Iterator[LeveledText]:
    """Messages about what the processes answered; each outcome counts in one of them."""
    if stopped := [each for each in outcomes if each.stopped]:
        text = ngettext(
            "%(count)d %(items)s stopped, on %(processes)s.",
            "%(count)d %(items)s stopped, on %(processes)s.",
            len(stopped),
        )
        yield messages.SUCCESS, _filled(text, stopped, items)
    if stopping := [each for each in outcomes if _is_stopping(each)]:
        text = ngettext(
            "%(count)d %(items)s was asked to abort and is still stopping, on %(processes)s.",
            "%(count)d %(items)s were asked to abort and are still stopping, on %(processes)s.",
            len(stopping),
        )
        yield messages.WARNING, _filled(text, stopping, items)

    rest = [each for each in outcomes if each not in stopped and each not in stopping]
    if partly := [each for each in rest if each.holders]:
        text = ngettext(
            "%(count)d %(items)s stopped on %(processes)s, but not all listeners have answered.",
            "%(count)d %(items)s stopped on %(processes)s, but not all listeners have answered.",
            len(partly),
        )
        yield messages.INFO, _filled(text, partly, items)
    idle = [each for each in rest if each.published and not each.holders]
    if finished := [each for each in idle if each.finished and not each.unanswered]:
        text = ngettext(
            "%(count)d %(items)s had already finished.",
            "%(count)d %(items)s had already finished.",
            len(finished),
        )
        yield messages.INFO, _filled(text, finished, items)
    if unknown := [each for each in idle if each not in finished]:
        text = ngettext(
            "%(count)d %(items)s was asked to abort; no process is known to work on it.",
            "%(count)d %(items)s were asked to abort; no process is known to work on them.",
            len(unknown),
        )
        yield messages.INFO, _filled(text, unknown, items)

    # One question covers all outcomes, so each has the same silent listeners: do not add them up.
    if count := max((each.unanswered for each in outcomes), default=0):
        text = ngettext(
            "%(count)d listener did not answer; its runs are unknown.",
            "%(count)d listeners did not answer; their runs are unknown.",
            count,
        )
        yield messages.WARNING, text % {"count": count}


def _is_stopping(outcome: AbortOutcome) -> bool:
    return any(answer.state == "aborting" for answer in outcome.holders)


def _filled(text: str, outcomes: Sequence[AbortOutcome], items: Items) -> str:
    holders = [answer for outcome in outcomes for answer in outcome.holders]
    aborting = [answer for answer in holders if answer.state == "aborting"]
    processes = len({answer.origin for answer in aborting or holders})
    named = ngettext("%(count)d process", "%(count)d processes", processes)
    return text % {
        "count": len(outcomes),
        "items": items(len(outcomes)),
        "processes": named % {"count": processes},
    }
