"""Runs and their shards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from run_abort.models import AbortRequest

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

MAX_SHARDS = 24
RUN_PREFIX = "example-"
OWNER_PREFIX = "example-owner-"


class Run(models.Model):
    """A long piece of work, split into shards that several processes work on."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting for a worker")
        RUNNING = "running", _("running")
        REQUESTED = "requested", _("asked to abort")
        STOPPED = "stopped", _("stopped")
        FAILED = "failed", _("failed")
        DONE = "done", _("done")

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("owner"),
        null=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    shard_count = models.PositiveSmallIntegerField(
        _("shards"), default=6, validators=[MinValueValidator(1), MaxValueValidator(MAX_SHARDS)]
    )

    objects: ClassVar[models.Manager[Run]] = models.Manager()

    if TYPE_CHECKING:
        owner_id: int | None
        shards: RelatedManager[Shard]

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.run_id

    def get_absolute_url(self) -> str:
        return reverse("runs:detail", args=[self.pk])

    @transaction.atomic
    def save_with_shards(self, styles: Sequence[Shard.Style]) -> None:
        """Save a new run, so that workers find all of its shards or none.

        :param styles: that the shards have in turn.
        """
        self.save()
        numbers = range(1, self.shard_count + 1)
        self.shards.bulk_create(
            Shard(run=self, number=number, style=style)
            for number, style in zip(numbers, cycle(styles), strict=False)
        )

    @property
    def run_id(self) -> str:
        """What ``run_abort`` knows the run as."""
        return f"{RUN_PREFIX}{self.pk}"

    @property
    def groups(self) -> list[str]:
        """Further IDs to which the run answers: here, that of everything of its owner."""
        return [f"{OWNER_PREFIX}{self.owner_id}"] if self.owner_id else []

    @classmethod
    def known_as(cls, run_id: str) -> models.QuerySet[Run]:
        """The runs that answer to ``run_id``."""
        for prefix, field in ((OWNER_PREFIX, "owner"), (RUN_PREFIX, "pk")):
            key = run_id.removeprefix(prefix)
            if key != run_id and key.isdecimal():
                return cls.objects.filter(**{field: int(key)})
        return cls.objects.none()

    @cached_property
    def abort_request(self) -> AbortRequest | None:
        """The first request to abort the run that stands."""
        return (
            AbortRequest.objects.filter(run_id__in=[self.run_id, *self.groups], cleared_at=None)
            .order_by("requested_at")
            .first()
        )

    @property
    def state(self) -> State:
        """What is known of the run as a whole, and no more than that."""
        states = {shard.state for shard in self.shards.all()}
        if states <= Shard.OVER:
            if Shard.State.STOPPED in states:
                return self.State.STOPPED
            return self.State.FAILED if Shard.State.FAILED in states else self.State.DONE
        if self.abort_request is not None:
            return self.State.REQUESTED
        return self.State.WAITING if states == {Shard.State.WAITING} else self.State.RUNNING

    @property
    def is_over(self) -> bool:
        """Whether nobody works on the run any more, or will."""
        return {shard.state for shard in self.shards.all()} <= Shard.OVER


class Shard(models.Model):
    """A part of a run: one file in so many."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("running")
        STOPPED = "stopped", _("stopped")
        FAILED = "failed", _("failed")
        DONE = "done", _("done")

    class Style(models.TextChoices):
        """How a shard is worked on, and so, what stops it."""

        THREAD = "thread", _("thread")
        SUBPROCESS = "subprocess", _("subprocess")
        ASYNCIO = "asyncio", _("asyncio")
        INTERRUPT = "interrupt", _("interrupt")

    OVER = frozenset({State.STOPPED, State.FAILED, State.DONE})

    run = models.ForeignKey(
        Run, verbose_name=_("run"), on_delete=models.CASCADE, related_name="shards"
    )
    number = models.PositiveSmallIntegerField(_("number"))
    state = models.CharField(
        _("state"), max_length=10, choices=State.choices, default=State.WAITING
    )
    style = models.CharField(_("style"), max_length=10, choices=Style.choices, default=Style.THREAD)
    worker = models.CharField(_("worker"), max_length=255, blank=True)
    program_pid = models.PositiveIntegerField(_("process of its program"), null=True)
    files_done = models.PositiveIntegerField(_("files done"), default=0)
    files_total = models.PositiveIntegerField(_("files in all"), null=True)
    measures: models.JSONField[Any, Any] = models.JSONField(_("measures"), default=dict)
    saved_at = models.DateTimeField(_("progress saved at"), null=True)
    received_at = models.DateTimeField(_("abort received at"), null=True)
    stopped_at = models.DateTimeField(_("stopped at"), null=True)

    objects: ClassVar[models.Manager[Shard]] = models.Manager()

    class Meta:
        verbose_name = _("shard")
        verbose_name_plural = _("shards")
        ordering = ("run", "number")
        constraints = (
            models.UniqueConstraint(fields=["run", "number"], name="runs_shard_number_unique"),
        )
        indexes = (models.Index(fields=["state"], name="runs_shard_state_idx"),)

    def __str__(self) -> str:
        return f"{self.run} / {self.number}"
