from __future__ import annotations

import os

from django.conf import settings
from django.db import models

from run_abort import current_signal


class Team(models.Model):
    # No constraint: this app has no migrations, so its tables are made before those of users.
    admins = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="+", db_constraint=False)

    def __str__(self) -> str:
        return f"team {self.pk}"


class Lap(models.Model):
    time = models.DurationField(primary_key=True)

    def __str__(self) -> str:
        return str(self.time)


class Photo(models.Model):
    content = models.BinaryField(primary_key=True)

    class Meta:
        managed = False  # not every database can have such a key

    def __str__(self) -> str:
        return "photo"


class Seat(models.Model):
    pk = models.CompositePrimaryKey("row", "number")
    row = models.IntegerField()
    number = models.IntegerField()

    def __str__(self) -> str:
        return f"seat {self.row}-{self.number}"


class Job(models.Model):
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_constraint=False,
    )
    team = models.ForeignKey(Team, models.SET_NULL, null=True, blank=True)
    name = models.CharField(max_length=100)
    is_over = models.BooleanField(default=False)
    status = models.CharField(max_length=20, default="pending")
    answer = models.TextField(blank=True)

    class Meta:
        verbose_name = "job"
        verbose_name_plural = "jobs"

    def __str__(self) -> str:
        return self.name

    def note(self, status: str) -> None:
        """Store the status."""
        Job.objects.filter(pk=self.pk).update(status=status)

    def work(self) -> None:
        """What workers of a task queue do for a job, by its name."""
        os.write(1, f"began {self.name}\n".encode())
        signal = current_signal()
        assert signal is not None
        while self.name == "look":
            signal.sleep(0.05)
        if self.name == "fail":
            raise ValueError("of its own")


class UrgentJob(Job):
    class Meta:
        proxy = True
