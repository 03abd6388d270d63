"""The models of abort requests, of their deliveries and of listener cursors."""

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
    """A request to abort a run. While it stands, it also stops processes that start the run later.

    The primary key is the abort ID. A row says what was requested, not what happened then.
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
        _("published"), default=False, help_text=_("Whether Redis accepted the message.")
    )
    listeners = models.PositiveIntegerField(
        _("listeners"),
        default=0,
        help_text=_("Number of subscribers that Redis reported. A hint, not an acknowledgement."),
    )
    cleared_at = models.DateTimeField(
        _("cleared at"),
        null=True,
        blank=True,
        help_text=_("Since then, the request no longer stops new starts of the run."),
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
    """What a process that held the run did about an abort.

    There is one row for each abort and process. Processes that did not hold the run have none.
    """

    class Way(models.TextChoices):
        """How the process received the request."""

        LOCAL = "local", _("own request")
        CHANNEL = "channel", _("through Redis")
        RECONCILE = "reconcile", _("from the database")
        START = "start", _("when it started")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # No constraint: the request may be committed later than this row, or be rolled back.
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
    way = models.CharField(_("received via"), max_length=10, choices=Way.choices)
    controllers = models.PositiveIntegerField(
        _("blocks"), default=0, help_text=_("Number of blocks of the run that it aborted.")
    )
    received_at = models.DateTimeField(_("received at"), default=timezone.now)
    stopped_at = models.DateTimeField(
        _("stopped at"),
        null=True,
        blank=True,
        help_text=_("When it left the last of those blocks."),
    )
    # JSON; read it by steps(). A JSONField makes the system checks query the database.
    insisted = models.TextField(_("forced by"), blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("abort delivery")
        verbose_name_plural = _("abort deliveries")
        ordering = ("received_at",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    def steps(self) -> list[tuple[str, datetime]]:
        """The escalations, such as ``"interrupt"``, and the time of each, in that order."""
        stored: list[tuple[str, float]] = json.loads(self.insisted or "[]")
        zone = timezone.get_default_timezone()
        steps = [(step, datetime.fromtimestamp(at, zone)) for step, at in stored]
        if settings.USE_TZ:
            return steps
        return [(step, timezone.make_naive(at, zone)) for step, at in steps]

    def set_steps(self, steps: Iterable[tuple[str, datetime]]) -> None:
        """Store the escalations, each with its time, without saving the row."""
        data = [[step, at.timestamp()] for step, at in steps]
        self.insisted = json.dumps(data) if data else ""


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
        return self.name
