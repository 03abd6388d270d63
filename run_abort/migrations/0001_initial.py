from __future__ import annotations

import uuid

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="ListenerCursor",
            fields=[
                (
                    "name",
                    models.CharField(
                        max_length=255, primary_key=True, serialize=False, verbose_name="name"
                    ),
                ),
                (
                    "began_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="began at"
                    ),
                ),
                ("heard_until", models.DateTimeField(verbose_name="heard until")),
                (
                    "heard",
                    models.TextField(
                        default="[]", verbose_name="recently received abort IDs, as JSON"
                    ),
                ),
            ],
            options={
                "verbose_name": "listener cursor",
                "verbose_name_plural": "listener cursors",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="AbortRequest",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                        verbose_name="abort ID",
                    ),
                ),
                ("run_id", models.CharField(max_length=255, verbose_name="run ID")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("actor", models.CharField(blank=True, max_length=255, verbose_name="actor")),
                ("origin", models.CharField(max_length=64, verbose_name="requested by process")),
                ("host", models.CharField(blank=True, max_length=255, verbose_name="host")),
                (
                    "requested_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="requested at"
                    ),
                ),
                (
                    "published",
                    models.BooleanField(
                        default=False,
                        help_text="Whether Redis accepted the message.",
                        verbose_name="published",
                    ),
                ),
                (
                    "listeners",
                    models.PositiveIntegerField(
                        default=0,
                        help_text="Number of subscribers that Redis reported. A hint, not an acknowledgement.",
                        verbose_name="listeners",
                    ),
                ),
                (
                    "cleared_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="Since then, the request no longer stops new starts of the run.",
                        null=True,
                        verbose_name="cleared at",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="user",
                    ),
                ),
            ],
            options={
                "verbose_name": "abort request",
                "verbose_name_plural": "abort requests",
                "ordering": ("-requested_at",),
                "permissions": (("abort_run", "Can abort runs"),),
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(fields=["run_id", "requested_at"], name="run_abort_run_id_idx"),
                    models.Index(fields=["requested_at"], name="run_abort_requested_idx"),
                ],
            },
        ),
    ]
