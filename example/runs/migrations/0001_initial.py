"""The tables of the example."""

from __future__ import annotations

import django.core.validators
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
            name="Run",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="created at"
                    ),
                ),
                (
                    "shard_count",
                    models.PositiveSmallIntegerField(
                        default=6,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(24),
                        ],
                        verbose_name="shards",
                    ),
                ),
                (
                    "owner",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="owner",
                    ),
                ),
            ],
            options={
                "verbose_name": "run",
                "verbose_name_plural": "runs",
                "ordering": ("-pk",),
            },
        ),
        migrations.CreateModel(
            name="Shard",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("number", models.PositiveSmallIntegerField(verbose_name="number")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting"),
                            ("running", "running"),
                            ("stopped", "stopped"),
                            ("failed", "failed"),
                            ("done", "done"),
                        ],
                        default="waiting",
                        max_length=10,
                        verbose_name="state",
                    ),
                ),
                ("worker", models.CharField(blank=True, max_length=255, verbose_name="worker")),
                ("files_done", models.PositiveIntegerField(default=0, verbose_name="files done")),
                (
                    "files_total",
                    models.PositiveIntegerField(null=True, verbose_name="files in all"),
                ),
                ("measures", models.JSONField(default=dict, verbose_name="measures")),
                ("saved_at", models.DateTimeField(null=True, verbose_name="progress saved at")),
                ("received_at", models.DateTimeField(null=True, verbose_name="abort received at")),
                ("stopped_at", models.DateTimeField(null=True, verbose_name="stopped at")),
                (
                    "run",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="shards",
                        to="runs.run",
                        verbose_name="run",
                    ),
                ),
            ],
            options={
                "verbose_name": "shard",
                "verbose_name_plural": "shards",
                "ordering": ("run", "number"),
                "indexes": [models.Index(fields=["state"], name="runs_shard_state_idx")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("run", "number"), name="runs_shard_number_unique"
                    )
                ],
            },
        ),
    ]
