"""The admin's messages about aborts that were just requested. They state only what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from django.contrib import messages
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from run_abort._core.answers import ProcessAnswer
from run_abort.aborts import AbortOutcome

__all__ = ["log_text", "tell"]

LeveledText = tuple[int, str]  # level and text of a message


def tell(
    outcomes: Sequence[AbortOutcome], items: Callable[[int], str], *, waited: bool
) -> Iterator[LeveledText]:
    """Yield the messages about ``outcomes``, with their levels.

    :param items: returns the name for a given number of runs.
    :param waited: whether ``abort_run`` waited for answers of the processes.
    """
    published = [outcome for outcome in outcomes if outcome.published]
    if waited:
        yield from _findings(outcomes, items)
    elif published:
        text = _("Asked to abort: %(count)d %(items)s.")
        yield messages.SUCCESS, _filled(text, len(published), items)
    yield from _not_published([outcome for outcome in outcomes if not outcome.published], items)


def log_text(reason: str) -> str:
    """Text of the admin's log entry."""
    if reason:
        return _("Asked to abort: %(reason)s") % {"reason": reason}
    return _("Asked to abort.")


def _findings(
    outcomes: Sequence[AbortOutcome], items: Callable[[int], str]
) -> Iterator[LeveledText]:
    """Messages about what the processes answered."""
    stopped = [outcome for outcome in outcomes if outcome.stopped]
    if count := len(stopped):
        text = ngettext(
            "%(count)d %(items)s stopped, on %(processes)s.",
            "%(count)d %(items)s stopped, on %(processes)s.",
            count,
        )
        yield messages.SUCCESS, _filled(text, count, items, _holders(stopped))

    stopping = [outcome for outcome in outcomes if _aborting([outcome])]
    if count := len(stopping):
        text = ngettext(
            "%(count)d %(items)s was asked to abort and is still stopping, on %(processes)s.",
            "%(count)d %(items)s were asked to abort and are still stopping, on %(processes)s.",
            count,
        )
        yield messages.WARNING, _filled(text, count, items, _aborting(stopping))

    known = {outcome.run_id for outcome in (*stopped, *stopping)}
    rest = [outcome for outcome in outcomes if outcome.run_id not in known]
    partly = [outcome for outcome in rest if outcome.holders]
    if count := len(partly):
        text = ngettext(
            "%(count)d %(items)s stopped on %(processes)s, but not all listeners have answered.",
            "%(count)d %(items)s stopped on %(processes)s, but not all listeners have answered.",
            count,
        )
        yield messages.INFO, _filled(text, count, items, _holders(partly))

    idle = [outcome for outcome in rest if outcome.published and not outcome.holders]
    finished = [outcome for outcome in idle if outcome.finished and not outcome.unanswered]
    if count := len(finished):
        text = ngettext(
            "%(count)d %(items)s had already finished.",
            "%(count)d %(items)s had already finished.",
            count,
        )
        yield messages.INFO, _filled(text, count, items)
    if count := len(idle) - len(finished):
        text = ngettext(
            "%(count)d %(items)s was asked to abort; no process is known to work on it.",
            "%(count)d %(items)s were asked to abort; no process is known to work on them.",
            count,
        )
        yield messages.INFO, _filled(text, count, items)

    # One question covers all outcomes, so each has the same silent listeners: do not add them up.
    if count := max((outcome.unanswered for outcome in outcomes), default=0):
        text = ngettext(
            "%(count)d listener did not answer; its runs are unknown.",
            "%(count)d listeners did not answer; their runs are unknown.",
            count,
        )
        yield messages.WARNING, text % {"count": count}


def _not_published(
    outcomes: Sequence[AbortOutcome], items: Callable[[int], str]
) -> Iterator[LeveledText]:
    recorded = sum(outcome.recorded and not outcome.stopped for outcome in outcomes)
    local = sum(outcome.asked and not outcome.recorded for outcome in outcomes)
    unheard = sum(not outcome.asked for outcome in outcomes)
    if recorded:
        text = _(
            "Asked to abort; other processes read the request from the database some seconds "
            "later: %(count)d %(items)s."
        )
        yield messages.INFO, _filled(text, recorded, items)
    if local:
        text = _("Asked to abort in this process only: %(count)d %(items)s.")
        yield messages.WARNING, _filled(text, local, items)
    if unheard:
        text = _(
            "Not asked to abort, because neither the database nor Redis accepted the "
            "request: %(count)d %(items)s."
        )
        yield messages.ERROR, _filled(text, unheard, items)


def _holders(outcomes: Sequence[AbortOutcome]) -> list[ProcessAnswer]:
    return [answer for outcome in outcomes for answer in outcome.holders]


def _aborting(outcomes: Sequence[AbortOutcome]) -> list[ProcessAnswer]:
    return [answer for answer in _holders(outcomes) if answer.state == "aborting"]


def _filled(
    text: str, count: int, items: Callable[[int], str], answers: Sequence[ProcessAnswer] = ()
) -> str:
    processes = len({answer.origin for answer in answers})
    named = ngettext("%(count)d process", "%(count)d processes", processes)
    return text % {
        "count": count,
        "items": items(count),
        "processes": named % {"count": processes},
    }
