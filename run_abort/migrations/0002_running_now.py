from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("run_abort", "0001_initial")]

    operations = [
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
