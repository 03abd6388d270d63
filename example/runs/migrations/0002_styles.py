"""The styles in which shards are worked on."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("runs", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="shard",
            name="style",
            field=models.CharField(
                choices=[
                    ("thread", "thread"),
                    ("subprocess", "subprocess"),
                    ("asyncio", "asyncio"),
                    ("interrupt", "interrupt"),
                ],
                default="thread",
                max_length=10,
                verbose_name="style",
            ),
        ),
        migrations.AddField(
            model_name="shard",
            name="program_pid",
            field=models.PositiveIntegerField(null=True, verbose_name="process of its program"),
        ),
    ]
