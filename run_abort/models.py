"""The models: requests to abort runs, the holds of processes that work on runs, and cursors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models.fields.related_descriptors import ForwardManyToOneDescriptor
from django.utils import timezone
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from .exceptions import visible


class _UserOrNone(ForwardManyToOneDescriptor):  # type: ignore[type-arg]
    """Gives None for a user who was deleted."""

    def get_object(self, instance: models.Model) -> Any:
        # Django would hint at the row, whose database may be another than that of the users.
        users = self.field.remote_field.model._base_manager
        return users.filter(pk=getattr(instance, self.field.attname)).first()


class _UserKey(models.ForeignKey):  # type: ignore[type-arg]
    """The key of a user, who may be deleted since."""

    forward_related_accessor_class = _UserOrNone

    def deconstruct(self) -> Any:
        name, _path, args, options = super().deconstruct()
        return name, "django.db.models.ForeignKey", args, options


class AbortRequest(models.Model):
    """A request to abort a run. While it stands, it also stops processes that start the run later.

    A row says what was requested. The holds say what happened then.
    """

    id = models.UUIDField(_("request ID"), primary_key=True, default=uuid.uuid4, editable=False)
    run_id = models.CharField(_("run ID"), max_length=255)
    reason = models.TextField(_("reason"), blank=True)
    cause = models.CharField(
        _("cause"),
        max_length=32,
        blank=True,
        help_text=_(
            "“disconnect”: made because a client hung up. “force”: also ends processes that go on."
        ),
    )
    actor = models.CharField(_("actor"), max_length=255, blank=True)
    # No constraint: it would make each request wait for an update of the user, and would fail for
    # a user who was deleted. And nothing is done when a user is deleted: this table may be in
    # another database than the users, or not be there yet.
    user = _UserKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        related_name="+",
        db_constraint=False,
    )
    origin = models.CharField(_("requested by process"), max_length=64)
    host = models.CharField(_("host"), max_length=255, blank=True)
    requested_at = models.DateTimeField(_("requested at"), default=timezone.now)
    due_at = models.DateTimeField(_("due at"), null=True, blank=True)
    published_at = models.DateTimeField(
        _("published at"),
        null=True,
        blank=True,
        help_text=_("When the server accepted the push."),
    )
    cleared_at = models.DateTimeField(
        _("cleared at"),
        null=True,
        blank=True,
        help_text=_("Since then, the request no longer stops new starts of the run."),
    )
    cleared_by = models.CharField(_("cleared by"), max_length=255, blank=True)

    class Meta:
        verbose_name = _("abort request")
        verbose_name_plural = _("abort requests")
        ordering = ("-requested_at",)
        indexes = (
            models.Index(fields=["run_id", "requested_at"], name="run_abort_run_id_idx"),
            models.Index(fields=["requested_at"], name="run_abort_requested_idx"),
        )
        default_permissions = ("view",)
        permissions = (
            ("abort_run", _("Can abort runs")),
            ("clear_run_abort", _("Can let aborted runs start again")),
            ("end_by_force", _("Can end processes that go on after an abort")),
        )

    def __str__(self) -> str:
        return visible(self.run_id)


class RunProcess(models.Model):
    """A process that holds runs, or has held some."""

    origin = models.CharField(_("process"), primary_key=True, max_length=64)
    host = models.CharField(_("host"), max_length=255, blank=True)
    pid = models.PositiveBigIntegerField(_("process ID"), default=0)
    kind = models.CharField(_("kind"), max_length=255, blank=True)
    started_at = models.DateTimeField(_("started at"), default=timezone.now)
    # Without an index, so that PostgreSQL can refresh it without writing to one.
    seen_until = models.DateTimeField(
        _("seen until"),
        default=timezone.now,
        help_text=_("Until then the process counts as alive while it holds runs."),
    )

    class Meta:
        verbose_name = _("process")
        verbose_name_plural = _("processes")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{visible(self.host)}:{self.pid}"


class RunHold(models.Model):
    """One open block of a process that works on a run.

    A hold that ends without an abort is deleted. One that was aborted stays.
    """

    class State(models.TextChoices):
        """What is known of the block."""

        RUNNING = "running", _("running")
        FINISHING = "finishing", _("finishing")
        ABORTING = "aborting", _("aborting")
        STOPPED = "stopped", _("stopped")

    class Way(models.TextChoices):
        """How the process received the request."""

        LOCAL = "local", _("own request")
        CHANNEL = "channel", _("by push")
        RECONCILE = "reconcile", _("from the database")
        START = "start", _("when it started")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run_id = models.CharField(_("run ID"), max_length=255)
    label = models.CharField(_("label"), max_length=255, blank=True)
    process = models.ForeignKey(
        RunProcess,
        verbose_name=_("process"),
        null=True,
        on_delete=models.DO_NOTHING,
        related_name="holds",
        db_constraint=False,
    )
    entered_at = models.DateTimeField(_("entered at"), default=timezone.now)
    request = models.ForeignKey(
        AbortRequest,
        verbose_name=_("abort request"),
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        related_name="holds",
        db_constraint=False,
    )
    way = models.CharField(_("received via"), max_length=10, choices=Way.choices, blank=True)
    received_at = models.DateTimeField(_("received at"), null=True, blank=True)
    left_at = models.DateTimeField(_("left at"), null=True, blank=True)
    # JSON; read it by steps(). A JSONField makes the system checks query the database.
    escalations = models.TextField(_("escalations"), blank=True, default="", editable=False)
    state = models.CharField(
        _("state"), max_length=10, choices=State.choices, default=State.RUNNING
    )

    class Meta:
        verbose_name = _("hold")
        verbose_name_plural = _("holds")
        ordering = ("entered_at",)
        indexes = (models.Index(fields=["run_id"], name="run_abort_hold_run_idx"),)
        default_permissions = ()

    def __str__(self) -> str:
        return visible(self.run_id)

    def steps(self) -> list[tuple[str, float]]:
        """The escalations, such as ``"interrupt"``, each with its seconds after the abort."""
        steps: list[tuple[str, float]] = json.loads(self.escalations or "[]")
        return steps

    def set_steps(self, steps: Iterable[tuple[str, float]]) -> None:
        """Store the escalations, without saving the row."""
        data = [[step, round(seconds, 3)] for step, seconds in steps]
        self.escalations = json.dumps(data) if data else ""


class RunningNow(RunHold):
    """The open blocks: gives the page "Running now" its entry in the admin."""

    class Meta:
        proxy = True
        verbose_name = _("run that is running now")
        # The admin sorts by this name; HTML drops the space, which makes the entry the first.
        verbose_name_plural = format_lazy(" {}", _("Running now"))
        default_permissions = ()


class RunHoldGroup(models.Model):
    """A group that a held run answers to."""

    hold = models.ForeignKey(
        RunHold, on_delete=models.DO_NOTHING, related_name="groups", db_constraint=False
    )
    run_id = models.CharField(_("group"), max_length=255)

    class Meta:
        verbose_name = _("group of a hold")
        verbose_name_plural = _("groups of holds")
        indexes = (models.Index(fields=["run_id"], name="run_abort_hold_group_idx"),)
        default_permissions = ()

    def __str__(self) -> str:
        return visible(self.run_id)


class ListenerCursor(models.Model):
    """The position of a named ``listen_run_aborts``, from which it resumes after a restart."""

    name = models.CharField(_("name"), primary_key=True, max_length=255)
    began_at = models.DateTimeField(_("began at"), default=timezone.now)
    heard_until = models.DateTimeField(_("heard until"))
    # JSON in a TextField: a JSONField makes the system checks query the database.
    heard = models.TextField(_("recently received abort IDs, as JSON"), default="[]")

    class Meta:
        verbose_name = _("listener cursor")
        verbose_name_plural = _("listener cursors")
        default_permissions = ()

    def __str__(self) -> str:
        return visible(self.name)
