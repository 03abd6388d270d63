"""What the admin shows of an abort: the confirmation page before it, and the messages after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import django
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import BadRequest
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from run_abort._core.types import HoldState
from run_abort.aborts import AbortOutcome
from run_abort.exceptions import visible
from run_abort.views.abort import AbortForm
from run_abort.views.links import filled

Items = Callable[[int], str]  # returns the name for a given number of runs
Link = Callable[[str], SafeString]  # returns the link to the run with this ID
LeveledText = tuple[int, SafeString]  # level and text of a message
Fact = tuple[int, str, Sequence[AbortOutcome], Sequence[HoldState]]

MAX_NAMED: Final = 5  # runs
RESERVE: Final = 10_000  # bytes of a request, for the reason and the CSRF token

STOPPING: Final[Sequence[HoldState]] = ("running", "aborting", "finishing")


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


def confirm(
    model_admin: admin.ModelAdmin[Any],
    request: HttpRequest,
    *,
    title: str,
    runs: Sequence[tuple[str, str]],
    text: Callable[[int], str],
    nothing: str = "",
    yes: str,
    back: str,
    form: AbortForm | None = None,
    echoed: Iterable[tuple[str, str]] | None = (),
    max_display: int = 100,
    templates: Sequence[str] = ("run_abort/admin/abort_confirmation.html",),
) -> HttpResponse:
    """Render the page that asks whether to do something to ``runs``.

    :param runs: each run with the reason why it is left out; empty if it is not.
    :param text: returns what will happen, for the number of runs that are not left out.
    :param nothing: the text if all of them are. Then there is no button.
    :param yes: text of the button.
    :param back: URL of the "No" link.
    :param form: further fields.
    :param echoed: hidden fields that make the submitted form act on the same runs; None if they
        would be too many for one request. Then there is no button, either.
    """
    asked = sum(not why_not for _run, why_not in runs)
    if echoed is None:
        asked, nothing = 0, _("Too many are selected to be confirmed at once. Select fewer.")
    context = {
        **context_of(model_admin, request, title),
        "form": form,
        "runs": runs[:max_display],
        "unlisted": max(len(runs) - max_display, 0),
        "text": text(asked) if asked else nothing,
        "yes": yes if asked else "",
        "echoed": echoed,
        "back": back,
    }
    return TemplateResponse(request, templates, context)


def confirm_abort(
    model_admin: admin.ModelAdmin[Any], request: HttpRequest, *, items: Items, **options: Any
) -> HttpResponse:
    """:func:`confirm` an abort; ``options`` are its other arguments."""

    def text(asked: int) -> str:
        sentence = ngettext(
            "Every process working on this %(items)s will be asked to stop. This cannot be undone.",
            "Every process working on these %(counter)s %(items)s will be asked to stop. This "
            "cannot be undone.",
            asked,
        )
        return sentence % {"counter": asked, "items": items(asked)}

    nothing = _("None of the selected items can be aborted.")
    yes = _("Yes, abort")
    return confirm(model_admin, request, text=text, nothing=nothing, yes=yes, **options)


def shown(request: HttpRequest, rows: QuerySet[Any]) -> Iterable[Any]:
    """Leave out the rows that the confirmation page has not shown, if this is its form.

    :raises BadRequest: if the form does not name what was shown.
    """
    if "post" not in request.POST or request.POST.get("select_across") != "1":
        return rows
    try:
        keys = json.loads(request.POST.get("shown", ""))
        if not isinstance(keys, list):
            raise TypeError("not a list")
        known = frozenset(keys)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest("The form does not name the rows that it has shown") from error
    return [row for row in rows if str(row.pk) in known]


def echoed(request: HttpRequest, rows: Iterable[Any], action: str) -> list[tuple[str, str]] | None:
    """Hidden fields that make the confirmation page submit the same action on the same rows.

    :return: None if Django would refuse a request with that many.
    """
    # Since Django 6.1 the field has a prefix on a change form. A model can have an "action", too.
    naming = [name for name, values in request.POST.lists() if action in values]
    field = next((name for name in naming if name.endswith("-action")), "action")
    fields = [(field, action), ("post", "yes")]
    selected = [str(row.pk) for row in rows]
    if request.POST.get("select_across") == "1":
        # One field per row could exceed Django's limit, DATA_UPLOAD_MAX_NUMBER_FIELDS.
        keys = json.dumps(selected, separators=(",", ":"))
        limit: Any = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        if limit is not None and len(urlencode({"shown": keys})) + RESERVE > limit:
            return None
        fields += [("select_across", "1"), ("shown", keys)]
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)[:1]
    return fields + [(ACTION_CHECKBOX_NAME, pk) for pk in selected]


def names(run_ids: Sequence[str], link: Link) -> SafeString:
    """The first few runs, for a message."""
    named = [filled(_("“%(run)s”"), run=link(run_id)) for run_id in run_ids[:MAX_NAMED]]
    more = ["…"] * (len(run_ids) > MAX_NAMED)
    return format_html_join(", ", "{}", [(name,) for name in (*named, *more)])


def tell(
    outcomes: Sequence[AbortOutcome], items: Items, link: Link, *, is_known: bool
) -> Iterator[LeveledText]:
    """Yield the messages about ``outcomes``, with their levels. They state only what is known.

    What may be without effect is a warning, because the admin shows an information in green. What
    is lost is an error, which is red.

    :param is_known: whether the outcomes have the holds.
    """
    for level, text, some, states in _facts(outcomes, is_known=is_known):
        if not some:
            continue
        holds = [hold for outcome in some for hold in outcome.holds if hold.state in states]
        processes = len({hold.origin for hold in holds})
        named = ngettext("%(count)d process", "%(count)d processes", processes)
        message = filled(
            text,
            count=str(len(some)),
            items=items(len(some)),
            runs=names([outcome.run_id for outcome in some], link),
            processes=named % {"count": processes},
        )
        yield level, message


def _facts(outcomes: Sequence[AbortOutcome], *, is_known: bool) -> Iterator[Fact]:
    """Level and text of each message, its outcomes, and the states of the blocks it counts."""
    asked = [each for each in outcomes if each.asked]
    idle = [each for each in asked if is_known and not each.holds and not each.local]
    held = [each for each in asked if each not in idle]
    yield from _findings(held)
    yield (
        messages.WARNING,
        _("Asked to abort: %(count)s %(items)s, %(runs)s."),
        [each for each in held if each.published and not each.holds],
        (),
    )
    text = ngettext(
        "%(count)s %(items)s was asked to abort; no process is known to work on %(runs)s.",
        "%(count)s %(items)s were asked to abort; no process is known to work on %(runs)s.",
        len(idle),
    )
    yield messages.WARNING, text, idle, ()
    others = [each for each in held if not each.published]
    text = _(
        "Asked to abort; other processes read the request from the database some seconds "
        "later: %(count)s %(items)s, %(runs)s."
    )
    yield messages.WARNING, text, [e for e in others if e.recorded and _is_under_way(e)], ()
    text = _("Asked to abort in this process only: %(count)s %(items)s, %(runs)s.")
    yield messages.WARNING, text, [each for each in others if not each.recorded], ()
    text = _(
        "Not asked to abort, as far as is known, because neither the database nor Redis has "
        "accepted the request in time: %(count)s %(items)s, %(runs)s."
    )
    yield messages.ERROR, text, [each for each in outcomes if not each.asked], ()


def log_text(reason: str) -> str:
    """Text of the admin's log entry."""
    text = _("Asked to abort: %(reason)s") if reason else _("Asked to abort.")
    return text % {"reason": visible(reason)}


def _findings(outcomes: Sequence[AbortOutcome]) -> Iterator[Fact]:
    """What the holds say; each outcome counts in one of the facts."""
    stopped = [each for each in outcomes if each.stopped]
    text = ngettext(
        "%(count)s %(items)s stopped, on %(processes)s: %(runs)s.",
        "%(count)s %(items)s stopped, on %(processes)s: %(runs)s.",
        len(stopped),
    )
    yield messages.SUCCESS, text, stopped, ("stopped",)
    stopping = [each for each in outcomes if _has(each, *STOPPING)]
    text = ngettext(
        "%(count)s %(items)s was asked to abort and is still stopping, on %(processes)s: %(runs)s.",
        "%(count)s %(items)s were asked to abort and are still stopping, on %(processes)s: "
        "%(runs)s.",
        len(stopping),
    )
    yield messages.WARNING, text, stopping, STOPPING
    lost = [each for each in outcomes if _has(each, "lost") and each not in stopping]
    text = ngettext(
        "%(count)s %(items)s was asked to abort, but may still work: %(runs)s, on %(processes)s, "
        "not heard of for a while.",
        "%(count)s %(items)s were asked to abort, but may still work: %(runs)s, on %(processes)s, "
        "not heard of for a while.",
        len(lost),
    )
    yield messages.ERROR, text, lost, ("lost",)


def _is_under_way(outcome: AbortOutcome) -> bool:
    """Whether a process may work on the run that has not received the request."""
    return not outcome.holds or any(hold.received_at is None for hold in outcome.holds)


def _has(outcome: AbortOutcome, *states: HoldState) -> bool:
    return any(hold.state in states for hold in outcome.holds)
