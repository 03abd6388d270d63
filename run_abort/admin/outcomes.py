"""The admin's messages about aborts that were just requested. They state only what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from django.contrib import messages
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from run_abort.aborts import AbortOutcome

__all__ = ["log_text", "tell"]

Items = Callable[[int], str]  # returns the name for a given number of runs
LeveledText = tuple[int, str]  # level and text of a message


def tell(outcomes: Sequence[AbortOutcome], items: Items, *, waited: bool) -> Iterator[LeveledText]:
    """Yield the messages about ``outcomes``, with their levels.

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
