"""Runs, their parts, and what an import saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from run_abort.models import AbortRequest

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

RUN_PREFIX = "example-"
OWNER_PREFIX = "example-owner-"
SAVE_EVERY = 0.4  # seconds


class Run(models.Model):
    """A long piece of work, split into parts that several processes work on."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting for a worker")
        RUNNING = "running", _("running")
        REQUESTED = "requested", _("asked to stop")
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

    objects: ClassVar[models.Manager[Run]] = models.Manager()

    if TYPE_CHECKING:
        owner_id: int | None
        parts: RelatedManager[Part]

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.run_id

    def get_absolute_url(self) -> str:
        return reverse("runs:detail", args=[self.pk])

    @classmethod
    @transaction.atomic  # workers find all parts or none
    def start(cls, kinds: Sequence[Part.Kind], *, owner_id: int | None = None) -> Run:
        """Add a run with a part of each of these kinds; workers find it by themselves."""
        run = cls.objects.create(owner_id=owner_id)
        run.parts.bulk_create(
            Part(run=run, number=number, kind=kind, total=Part.TOTALS[kind])
            for number, kind in enumerate(kinds, start=1)
        )
        return run

    @property
    def run_id(self) -> str:
        """The ID by which ``run_abort`` knows the run."""
        return f"{RUN_PREFIX}{self.pk}"

    @property
    def groups(self) -> list[str]:
        """Further IDs that abort the run: here, the ID of all runs of its owner."""
        return [f"{OWNER_PREFIX}{self.owner_id}"] if self.owner_id else []

    @classmethod
    def known_as(cls, run_id: str) -> models.QuerySet[Run]:
        """The runs that ``run_id`` aborts."""
        for prefix, field in ((OWNER_PREFIX, "owner"), (RUN_PREFIX, "pk")):
            key = run_id.removeprefix(prefix)
            if key != run_id and key.isdecimal():
                return cls.objects.filter(**{field: int(key)})
        return cls.objects.none()

    @cached_property
    def abort_request(self) -> AbortRequest | None:
        """The first standing request to abort the run."""
        return (
            AbortRequest.objects.filter(run_id__in=[self.run_id, *self.groups], cleared_at=None)
            .order_by("requested_at")
            .first()
        )

    @property
    def state(self) -> State:
        """The state of the run as a whole, derived from its parts and the requests to abort it."""
        states = {part.state for part in self.parts.all()}
        if states <= Part.OVER:
            if Part.State.STOPPED in states:
                return self.State.STOPPED
            return self.State.FAILED if Part.State.FAILED in states else self.State.DONE
        if self.abort_request is not None:
            return self.State.REQUESTED
        return self.State.WAITING if states == {Part.State.WAITING} else self.State.RUNNING

    @property
    def is_over(self) -> bool:
        """Whether all of its parts have ended."""
        return {part.state for part in self.parts.all()} <= Part.OVER


class Part(models.Model):
    """What one thread of one worker works on at a time."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("running")
        STOPPED = "stopped", _("stopped")
        FAILED = "failed", _("failed")
        DONE = "done", _("done")

    class Kind(models.TextChoices):
        """What the work is; :mod:`example.runs.jobs` has a function for each."""

        IMPORT = "import", _("import")
        ANSWER = "answer", _("answer")
        CONVERT = "convert", _("convert")
        TRAIN = "train", _("train")

    OVER = frozenset({State.STOPPED, State.FAILED, State.DONE})
    TOTALS: ClassVar = {
        Kind.IMPORT: 40_000,
        Kind.ANSWER: 1_500,
        Kind.CONVERT: 4_000,
        Kind.TRAIN: 4_000,
    }
    UNITS: ClassVar = {
        Kind.IMPORT: _("rows"),
        Kind.ANSWER: _("words"),
        Kind.CONVERT: _("frames"),
        Kind.TRAIN: _("steps"),
    }

    run = models.ForeignKey(
        Run, verbose_name=_("run"), on_delete=models.CASCADE, related_name="parts"
    )
    number = models.PositiveSmallIntegerField(_("number"))
    kind = models.CharField(_("kind"), max_length=10, choices=Kind.choices)
    state = models.CharField(
        _("state"), max_length=10, choices=State.choices, default=State.WAITING
    )
    worker = models.CharField(_("worker"), max_length=255, blank=True)
    processes: models.JSONField[Any, Any] = models.JSONField(
        _("processes of its program"), default=list
    )
    done = models.PositiveIntegerField(_("done"), default=0)
    total = models.PositiveIntegerField(_("total"))
    saved_at = models.DateTimeField(_("progress saved at"), null=True)
    stopped_at = models.DateTimeField(_("stopped at"), null=True)

    objects: ClassVar[models.Manager[Part]] = models.Manager()

    if TYPE_CHECKING:
        customers: RelatedManager[Customer]

    class Meta:
        verbose_name = _("part")
        verbose_name_plural = _("parts")
        ordering = ("run", "number")
        constraints = (
            models.UniqueConstraint(fields=["run", "number"], name="runs_part_number_unique"),
        )
        indexes = (models.Index(fields=["state"], name="runs_part_state_idx"),)

    def __str__(self) -> str:
        return f"{self.run} / {self.number}"

    @property
    def kind_label(self) -> str:
        return str(self.Kind(self.kind).label)

    def advance(self, count: int = 1) -> None:
        """Count what has been done; save that from time to time."""
        self.done += count
        if time.monotonic() - self._last_save > SAVE_EVERY:
            self.save_progress()

    def save_progress(self, **changes: object) -> None:
        """Save how much has been done, and further fields."""
        self._last_save = time.monotonic()
        Part.objects.filter(pk=self.pk).update(done=self.done, saved_at=timezone.now(), **changes)

    _last_save = 0.0


class Customer(models.Model):
    """What a row of an import becomes."""

    part = models.ForeignKey(Part, on_delete=models.CASCADE, related_name="customers")
    name = models.CharField(_("name"), max_length=100)
    email = models.EmailField(_("email"))
    city = models.CharField(_("city"), max_length=100)

    objects: ClassVar[models.Manager[Customer]] = models.Manager()

    class Meta:
        verbose_name = _("customer")
        verbose_name_plural = _("customers")

    def __str__(self) -> str:
        return self.name
