"""The rows in which requests to abort are kept."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class AbortRequest(models.Model):
    """Somebody asked to abort a run. While it stands, it stops whoever starts the run late.

    The key is the abort ID. A row says what was requested, not what came of it.
    """

    id = models.UUIDField(_("abort ID"), primary_key=True, default=uuid.uuid4, editable=False)
    run_id = models.CharField(_("run ID"), max_length=255)
    reason = models.TextField(_("reason"), blank=True)
    actor = models.CharField(_("actor"), max_length=255, blank=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    origin = models.CharField(_("requested by process"), max_length=64)
    host = models.CharField(_("host"), max_length=255, blank=True)
    requested_at = models.DateTimeField(_("requested at"), default=timezone.now)
    published = models.BooleanField(
        _("published"), default=False, help_text=_("Whether Redis took the message.")
    )
    listeners = models.PositiveIntegerField(
        _("listeners"),
        default=0,
        help_text=_("How many subscribers Redis knew of: a hint, not an acknowledgement."),
    )
    cleared_at = models.DateTimeField(
        _("cleared at"),
        null=True,
        blank=True,
        help_text=_("Since then the request stops nobody any more."),
    )

    class Meta:
        verbose_name = _("abort request")
        verbose_name_plural = _("abort requests")
        ordering = ("-requested_at",)
        indexes = (
            models.Index(fields=["run_id", "requested_at"], name="run_abort_run_id_idx"),
            models.Index(fields=["requested_at"], name="run_abort_requested_idx"),
        )
        default_permissions = ("view",)
        permissions = (("abort_run", _("Can abort runs")),)

    def __str__(self) -> str:
        return self.run_id


class AbortDelivery(models.Model):
    """A process that worked on the run when it was to be aborted, and what it did about it.

    One row for each abort and process. Only a process that held the run has one.
    """

    class Way(models.TextChoices):
        """How the process heard of the abort."""

        LOCAL = "local", _("asked itself")
        CHANNEL = "channel", _("through Redis")
        RECONCILE = "reconcile", _("from the database")
        START = "start", _("at its start")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # Without a constraint: the request may not be committed yet, or never be.
    request = models.ForeignKey(
        AbortRequest,
        verbose_name=_("abort request"),
        on_delete=models.CASCADE,
        related_name="deliveries",
        db_constraint=False,
    )
    origin = models.CharField(_("process"), max_length=64)
    host = models.CharField(_("host"), max_length=255, blank=True)
    pid = models.PositiveBigIntegerField(_("process ID"), default=0)
    way = models.CharField(_("heard"), max_length=10, choices=Way.choices)
    controllers = models.PositiveIntegerField(
        _("blocks"), default=0, help_text=_("How many blocks of the run it aborted.")
    )
    received_at = models.DateTimeField(_("received at"), default=timezone.now)
    stopped_at = models.DateTimeField(
        _("stopped at"),
        null=True,
        blank=True,
        help_text=_("When it left the last of those blocks."),
    )
    # Read it by steps(). A JSONField would have the system checks ask the database about JSON.
    insisted = models.TextField(_("insisted by"), blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("abort delivery")
        verbose_name_plural = _("abort deliveries")
        ordering = ("received_at",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    def steps(self) -> list[tuple[str, datetime]]:
        """What was done as asking was not enough, and when, in that order."""
        zone = timezone.get_default_timezone()
        steps = [(rung, datetime.fromtimestamp(at, zone)) for rung, at in self._steps()]
        if settings.USE_TZ:
            return steps
        return [(rung, timezone.make_naive(at, zone)) for rung, at in steps]

    def _steps(self) -> list[tuple[str, float]]:
        steps: list[tuple[str, float]] = json.loads(self.insisted or "[]")
        return steps

    def set_steps(self, steps: Iterable[tuple[str, datetime]]) -> None:
        """Have the row say what was done."""
        told = [[rung, at.timestamp()] for rung, at in steps]
        self.insisted = json.dumps(told) if told else ""


class ListenerCursor(models.Model):
    """How far a named ``listen_run_aborts`` has come, so that it can go on from there."""

    name = models.CharField(_("name"), primary_key=True, max_length=255)
    began_at = models.DateTimeField(_("began at"), default=timezone.now)
    heard_until = models.DateTimeField(_("heard until"))
    # A JSONField would have the system checks ask the database whether it knows JSON.
    heard = models.TextField(_("abort IDs heard lately, as JSON"), default="[]")

    class Meta:
        verbose_name = _("listener cursor")
        verbose_name_plural = _("listener cursors")
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
