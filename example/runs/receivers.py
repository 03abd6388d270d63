"""What the example does when the abort of one of its runs is requested."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver
from django.utils import timezone

from run_abort.signals import run_abort_requested

from .models import Part, Run


@receiver(run_abort_requested, dispatch_uid="example.runs.withdraw_waiting_parts")
def withdraw_waiting_parts(run_id: str, **kwargs: Any) -> None:
    """Take parts that wait out of the queue, instead of leaving that to a worker.

    A part that a worker claims at this very moment is stopped by ``abortable_run``.
    """
    waiting = Part.objects.filter(run__in=Run.known_as(run_id), state=Part.State.WAITING)
    waiting.update(state=Part.State.STOPPED, stopped_at=timezone.now())
