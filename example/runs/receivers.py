"""What the example does when somebody asks to abort one of its runs."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver
from django.utils import timezone

from run_abort.signals import run_abort_requested

from .models import Run, Shard


@receiver(run_abort_requested, dispatch_uid="example.runs.withdraw_waiting_shards")
def withdraw_waiting_shards(run_id: str, **kwargs: Any) -> None:
    """Do not leave shards in the queue until a worker has time to find out that it may not start.

    One that is claimed at this very moment is stopped by ``abortable_run``.
    """
    waiting = Shard.objects.filter(run__in=Run.known_as(run_id), state=Shard.State.WAITING)
    waiting.update(state=Shard.State.STOPPED, stopped_at=timezone.now())
