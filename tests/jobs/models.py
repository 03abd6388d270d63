from __future__ import annotations

from django.db import models


class Job(models.Model):
    name = models.CharField(max_length=100)
    is_over = models.BooleanField(default=False)

    class Meta:
        verbose_name = "job"
        verbose_name_plural = "jobs"

    def __str__(self) -> str:
        return self.name
