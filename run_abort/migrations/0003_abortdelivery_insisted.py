from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("run_abort", "0002_abortdelivery"),
    ]

    operations = [
        migrations.AddField(
            model_name="abortdelivery",
            name="insisted",
            field=models.TextField(
                blank=True, default="", editable=False, verbose_name="forced by"
            ),
        ),
    ]
