"""The rows in which requests to abort are kept."""

from __future__ import annotations

import uuid

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
