"""Without redis-py and django-redis everything works but the push."""

from __future__ import annotations

from typing import Any

import pytest

from tests.processes.conftest import Start

USE = """
import sys
sys.modules["redis"] = sys.modules["django_redis"] = None
from tests.child import *
from django.contrib.auth.models import User
from django.core import checks
from django.core.management import call_command
from django.template import engines
from django.test import Client, RequestFactory
from run_abort.models import AbortRequest

for message in checks.run_checks(tags=["run_abort"]):
    say("check", message.id, message.msg)
User.objects.create_superuser("ann", password="secret")
client = Client()
client.login(username="ann", password="secret")


def work():
    with abortable_run("run-1", catch=True) as signal:
        wait_for(lambda: signal.aborted)


thread = threading.Thread(target=work)
thread.start()
wait_for(lambda: current().registry.holders())
request = RequestFactory().get("/")
request.user = User.objects.get()
template = "{% load run_abort %}{% abort_button 'run-1' %}"
say("button", "<button" in engines["django"].from_string(template).render({}, request))
say("live page", client.get("/admin/run_abort/runningnow/").status_code)
say("clicked", client.post("/runs/run-1/abort/", {"reason": "because"}).status_code)
thread.join(20)
outcome = abort_run("run-1")
say("asked", outcome)
call_command("abort_run", "run-2", "--wait=0.1")
call_command("run_abort_status")
say("rows", AbortRequest.objects.count())
say("state", state())
"""


@pytest.fixture
def rows(shared: dict[str, Any]) -> dict[str, Any]:
    """The settings of a process with rows and no Redis."""
    del shared["REDIS_URL"], shared["CHANNEL"]
    return shared


def test_everything_works_but_the_push(
    start: Start, project: dict[str, Any], rows: dict[str, Any]
) -> None:
    rows["PUSH"] = "none"
    process = start("-c", USE, settings=project)
    for line in (
        "button True",
        "live page 200",
        "clicked 302",
        "asked run-1: asked to abort, recorded, NOT published",
        "rows 3",
        "state off",
    ):
        process.wait_for(line)
    assert process.wait() == 0
    assert not [line for line in process.output if line.startswith("check")]


@pytest.mark.parametrize(
    "caches",
    [None, "django.core.cache.backends.redis.RedisCache", "django_redis.cache.RedisCache"],
)
def test_a_redis_that_is_named_is_an_error_that_says_what_is_missing(
    start: Start, project: dict[str, Any], rows: dict[str, Any], caches: str | None
) -> None:
    if caches is None:
        rows["REDIS_URL"] = "redis://localhost"
    else:
        project["CACHES"] = {"default": {"BACKEND": caches, "LOCATION": "redis://localhost"}}
    process = start("-c", USE, settings=project)
    said = process.wait_for("check run_abort.E00")
    if caches and "django_redis" in caches:
        assert "django_redis.cache.RedisCache', which cannot be imported" in said
    else:
        assert said.endswith("names a Redis, but the package redis is not installed")
    process.wait_for("clicked 302")
    process.wait_for("asked run-1: asked to abort, recorded, NOT published")
    assert process.wait() == 0
