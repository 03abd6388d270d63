from __future__ import annotations

import uuid

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("run_abort", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="AbortDelivery",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("origin", models.CharField(max_length=64, verbose_name="process")),
                ("host", models.CharField(blank=True, max_length=255, verbose_name="host")),
                ("pid", models.PositiveBigIntegerField(default=0, verbose_name="process ID")),
                (
                    "way",
                    models.CharField(
                        choices=[
                            ("local", "own request"),
                            ("channel", "through Redis"),
                            ("reconcile", "from the database"),
                            ("start", "when it started"),
                        ],
                        max_length=10,
                        verbose_name="received via",
                    ),
                ),
                (
                    "controllers",
                    models.PositiveIntegerField(
                        default=0,
                        help_text="Number of blocks of the run that it aborted.",
                        verbose_name="blocks",
                    ),
                ),
                (
                    "received_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="received at"
                    ),
                ),
                (
                    "stopped_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When it left the last of those blocks.",
                        null=True,
                        verbose_name="stopped at",
                    ),
                ),
                (
                    "request",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="run_abort.abortrequest",
                        verbose_name="abort request",
                    ),
                ),
            ],
            options={
                "verbose_name": "abort delivery",
                "verbose_name_plural": "abort deliveries",
                "ordering": ("received_at",),
                "default_permissions": ("view",),
            },
        ),
    ]
