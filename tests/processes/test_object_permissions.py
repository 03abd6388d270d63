"""Object permissions of django-guardian and django-rules, by the default rule."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings

from tests.processes.conftest import Start, package

SCRIPT = """
import django
django.setup()
import rules
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from guardian.shortcuts import assign_perm
from run_abort.views import may
from tests.jobs.models import Job

call_command("migrate", run_syncdb=True, verbosity=0)
ann = User.objects.create_user("ann")
names = ("assigned", "ruled", "neither")
jobs = {name: Job.objects.create(name=name) for name in names}
print([may(ann, job, "abort") for job in jobs.values()])

kind = ContentType.objects.get_for_model(Job)
for name in ("abort_run", "clear_run_abort"):
    Permission.objects.create(codename=name, name=name, content_type=kind)
assign_perm("jobs.abort_run", ann, jobs["assigned"])
rules.add_perm("run_abort.abort_run", rules.predicate(lambda user, job: job == jobs["ruled"]))
ann = User.objects.get(pk=ann.pk)
print([may(ann, job, "abort") for job in jobs.values()])
print([may(ann, job, "clear") for job in jobs.values()])
print("over")
"""


def test_they_count_as_they_are(start: Start, project: dict[str, Any]) -> None:
    package("guardian")
    package("rules")
    project["INSTALLED_APPS"] = [*settings.INSTALLED_APPS, "guardian"]
    project["ANONYMOUS_USER_NAME"] = None
    project["DATABASES"] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    project["AUTHENTICATION_BACKENDS"] = [
        "django.contrib.auth.backends.ModelBackend",
        "rules.permissions.ObjectPermissionBackend",
        "guardian.backends.ObjectPermissionBackend",
    ]
    child = start("-c", SCRIPT, program=(sys.executable,))
    child.wait_for("over")
    answers = [line for line in child.output if line.startswith("[")]
    assert answers == ["[False, False, False]", "[True, True, False]", "[False, False, False]"]
    assert "Traceback" not in str(child)
