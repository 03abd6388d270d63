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
            name="RunProcess",
            fields=[
                (
                    "origin",
                    models.CharField(
                        max_length=64, primary_key=True, serialize=False, verbose_name="process"
                    ),
                ),
                ("host", models.CharField(blank=True, max_length=255, verbose_name="host")),
                ("pid", models.PositiveBigIntegerField(default=0, verbose_name="process ID")),
                ("kind", models.CharField(blank=True, max_length=255, verbose_name="kind")),
                (
                    "started_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="started at"
                    ),
                ),
                (
                    "seen_until",
                    models.DateTimeField(
                        default=django.utils.timezone.now,
                        help_text="Until then the process counts as alive while it holds runs.",
                        verbose_name="seen until",
                    ),
                ),
            ],
            options={
                "verbose_name": "process",
                "verbose_name_plural": "processes",
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
                        verbose_name="request ID",
                    ),
                ),
                ("run_id", models.CharField(max_length=255, verbose_name="run ID")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                (
                    "cause",
                    models.CharField(
                        blank=True,
                        help_text="“disconnect”: made because a client hung up. “force”: also ends processes that go on.",
                        max_length=32,
                        verbose_name="cause",
                    ),
                ),
                ("actor", models.CharField(blank=True, max_length=255, verbose_name="actor")),
                ("origin", models.CharField(max_length=64, verbose_name="requested by process")),
                ("host", models.CharField(blank=True, max_length=255, verbose_name="host")),
                (
                    "requested_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="requested at"
                    ),
                ),
                ("due_at", models.DateTimeField(blank=True, null=True, verbose_name="due at")),
                (
                    "published_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When the server accepted the push.",
                        null=True,
                        verbose_name="published at",
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
                    "cleared_by",
                    models.CharField(blank=True, max_length=255, verbose_name="cleared by"),
                ),
                (
                    "user",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
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
                "permissions": (
                    ("abort_run", "Can abort runs"),
                    ("clear_run_abort", "Can let aborted runs start again"),
                    ("end_by_force", "Can end processes that go on after an abort"),
                ),
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="RunHold",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("run_id", models.CharField(max_length=255, verbose_name="run ID")),
                ("label", models.CharField(blank=True, max_length=255, verbose_name="label")),
                (
                    "entered_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="entered at"
                    ),
                ),
                (
                    "way",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("local", "own request"),
                            ("channel", "by push"),
                            ("reconcile", "from the database"),
                            ("start", "when it started"),
                        ],
                        max_length=10,
                        verbose_name="received via",
                    ),
                ),
                (
                    "received_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="received at"),
                ),
                ("left_at", models.DateTimeField(blank=True, null=True, verbose_name="left at")),
                (
                    "escalations",
                    models.TextField(
                        blank=True, default="", editable=False, verbose_name="escalations"
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "running"),
                            ("finishing", "finishing"),
                            ("aborting", "aborting"),
                            ("stopped", "stopped"),
                        ],
                        default="running",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                (
                    "request",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="holds",
                        to="run_abort.abortrequest",
                        verbose_name="abort request",
                    ),
                ),
                (
                    "process",
                    models.ForeignKey(
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="holds",
                        to="run_abort.runprocess",
                        verbose_name="process",
                    ),
                ),
            ],
            options={
                "verbose_name": "hold",
                "verbose_name_plural": "holds",
                "ordering": ("entered_at",),
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="RunHoldGroup",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("run_id", models.CharField(max_length=255, verbose_name="group")),
                (
                    "hold",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="groups",
                        to="run_abort.runhold",
                    ),
                ),
            ],
            options={
                "verbose_name": "group of a hold",
                "verbose_name_plural": "groups of holds",
                "default_permissions": (),
            },
        ),
        migrations.AddIndex(
            model_name="abortrequest",
            index=models.Index(fields=["run_id", "requested_at"], name="run_abort_run_id_idx"),
        ),
        migrations.AddIndex(
            model_name="abortrequest",
            index=models.Index(fields=["requested_at"], name="run_abort_requested_idx"),
        ),
        migrations.AddIndex(
            model_name="runholdgroup",
            index=models.Index(fields=["run_id"], name="run_abort_hold_group_idx"),
        ),
        migrations.AddIndex(
            model_name="runhold",
            index=models.Index(fields=["run_id"], name="run_abort_hold_run_idx"),
        ),
        migrations.CreateModel(
            name="RunningNow",
            fields=[],
            options={
                "verbose_name": "run that is running now",
                "verbose_name_plural": " Running now",
                "proxy": True,
                "default_permissions": (),
                "indexes": [],
                "constraints": [],
            },
            bases=("run_abort.runhold",),
        ),
    ]
