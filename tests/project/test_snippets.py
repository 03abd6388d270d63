"""Every Python block of README and of the how-tos, executed as it stands.

The blocks of a page share one namespace. A page that starts work has a driver below, which says
when each block is executed and checks what becomes of the work. A block whose first line names a
file can be imported by the next ones. The tutorial has a test of its own: ``tests/e2e``.

What is not the real thing: ``openai`` and ``channels``, which are no dependencies of the tests;
two functions of the reader, ``rows`` and ``save``; and the URL of Redis.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import unittest
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError
from django.db import connections
from django.http import Http404, HttpRequest
from django.template import RequestContext, Template
from django.test import Client, RequestFactory
from django.urls import reverse
from dramatiq import Worker
from huey.consumer import Consumer
from huey.exceptions import TaskException
from ninja.security import HttpBearer
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rq import Queue, SimpleWorker

import tests.jobs.models
from example.redis_server import RedisServer
from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort.exceptions import TaskAborted
from run_abort.models import AbortRequest, RunHold
from run_abort.signals import run_aborted
from run_abort.testing import record_aborts
from run_abort.views import may
from tests.blocks import Work, connected
from tests.conftest import Configure
from tests.jobs.models import Job, Team
from tests.processes.conftest import program, run_in
from tests.project.pages import BLOCK, FILE, Page, is_held, wait_until_held
from tests.support import ROOT, TIMEOUT, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]

TOKEN = "s3cret"

Driver = Callable[[Page], None]
DRIVERS: dict[str, Driver] = {}


def drives(name: str) -> Callable[[Driver], Driver]:
    """The driver of the page of that name."""

    def register(driver: Driver) -> Driver:
        DRIVERS[name] = driver
        return driver

    return register


@pytest.fixture
def page(
    request: pytest.FixtureRequest,
    configure: Configure,
    shared_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> Page:
    path = request.param
    configure(REQUESTS=True)
    text = path.read_text().replace("redis://localhost:6379", shared_redis.url)
    page = Page(str(path.relative_to(ROOT)), text, configure, monkeypatch, settings)
    monkeypatch.setitem(sys.modules, "jobs", tests.jobs)
    monkeypatch.setitem(sys.modules, "jobs.models", tests.jobs.models)

    ann, team = User.objects.create_superuser("ann"), Team.objects.create()
    job = Job.objects.create(name="customers.csv", owner=ann, team=team, status="running")

    async def auser() -> User:
        return ann

    http = RequestFactory().get("/")
    http.user, http.auser = ann, auser  # type: ignore[method-assign]
    page.names.update(
        job=job,
        request=http,
        rows=lambda path: range(1_000_000),
        save=lambda row: time.sleep(0.002),
        INSTALLED_APPS=[],
        urlpatterns=[],
    )
    return page


@pytest.fixture
def workers_leave_no_trace() -> Iterator[None]:
    """A worker of a queue sets variables and handlers in the process that it takes for its own."""
    handlers = {each: signal.getsignal(each) for each in signal.valid_signals()}
    with mock.patch.dict(os.environ):
        yield
    for each, handler in handlers.items():
        if signal.getsignal(each) != handler:
            signal.signal(each, handler)


@pytest.mark.parametrize(
    "page", [pytest.param(path, id=path.stem) for path in PAGES], indirect=True
)
@pytest.mark.usefixtures("workers_leave_no_trace")
def test_each_block_runs(page: Page, request: pytest.FixtureRequest) -> None:
    DRIVERS.get(request.node.callspec.id, Page.rest)(page)
    assert page.is_over


def aborted(page: Page, work: Callable[[], Any], run: object = None) -> Any:
    """What becomes of ``work()`` when its run is aborted; the run may start again after it."""
    run = run or page["job"]
    with page.working(work) as working:
        abort_run(run, reason="wrong file", actor="ann")
    clear_run_abort(run)
    return working.outcome


@drives("README")
def drive_readme(page: Page) -> None:
    job = page["job"]
    page.run(3)
    page.serve()
    (source,) = re.findall(r"^```html\+django\n(.*?)^```$", page.text, re.MULTILINE | re.DOTALL)
    context = RequestContext(page["request"], {"job": job})
    url = reverse("run_abort:abort", args=[f"jobs.job:{job.pk}"])
    assert f'action="{url}"' in Template(source).render(context)
    assert aborted(page, lambda: page["import_file"](job)) is None
    assert job.status == "stopped"  # a column for a status is short
    with page.working(lambda: page["import_file"](job)):
        page.run()
    assert page["outcome"].stopped


# The task queues: a worker in this process takes the task, and the page aborts it.


@drives("celery")
def drive_celery(page: Page) -> None:
    app = Celery("page", broker="memory://", backend="cache+memory://", set_as_current=True)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    page.run()
    # Else the worker would set the level of the root logger, and later tests see no warnings.
    with (
        connected(setup_logging, lambda **kwargs: None),
        start_worker(app, pool="solo", perform_ping_check=False),
    ):
        page.run()
        wait_until_held()
        page.run()
        with pytest.raises(TaskAborted, match="wrong file"):
            page["result"].get(timeout=TIMEOUT)
        assert page["result"].state == "ABORTED"
    page.rest()


@drives("rq")
def drive_rq(page: Page) -> None:
    page.run(5)
    queue = page["queue"]
    worker = SimpleWorker([queue], connection=queue.connection, job_class=page["Job"])

    def abort() -> None:
        wait_until_held()
        page.run()

    aborting = Work(abort)
    aborting.start()
    worker.work(burst=True, logging_level="CRITICAL")
    aborting.join(TIMEOUT)
    assert page["job"].get_status() == "stopped"
    assert page["job"].get_meta()["run_abort"]["reason"] == "wrong file"
    queue.connection.close()
    page.rest()


@pytest.mark.parametrize("kind", ["Worker", "SpawnWorker"])
def test_the_worker_of_rq_starts_in_a_process_of_its_own(
    kind: str, tmp_path: Path, own_redis: RedisServer
) -> None:
    """Elsewhere in these tests, Django is set up before the first block."""
    text = (ROOT / "docs/howto/rq.md").read_text()
    text = text.replace("redis://localhost:6379", own_redis.url)
    blocks = BLOCK.findall(text)
    files = {f"{named[1]}.py": each for each in blocks if (named := FILE.match(each))}
    (ready,) = (each for each in blocks if "cancel_aborted(queue)" in each)
    files["jobs/apps.py"] = (
        "from django.apps import AppConfig\n\nclass JobsConfig(AppConfig):\n    name = 'jobs'\n\n"
        f"    def ready(self):\n{indent(ready, ' ' * 8)}"
    )
    files["mysite/settings.py"] += (
        "INSTALLED_APPS = ['django.contrib.auth', 'django.contrib.contenttypes']\n"
        "INSTALLED_APPS += ['run_abort', 'jobs']\n"
        f"RUN_ABORT = {{'REDIS_URL': '{own_redis.url}', 'REQUESTS': False, 'HOLDS': False}}\n"
    )
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (job_class,) = re.findall(r"^\$ .* rq worker --job-class (\S+)$", text, re.MULTILINE)
    with own_redis.client() as connection:
        # It can be imported once Django is set up.
        job = Queue(connection=connection).enqueue("django.contrib.contenttypes.models.ContentType")
        options = ("--burst", "--url", own_redis.url, "--worker-class", f"rq.worker.{kind}")
        for command in (
            ("-m", "django", "check"),
            (program("rq"), "worker", "--job-class", job_class, *options),
        ):
            done = run_in(tmp_path, *command, DJANGO_SETTINGS_MODULE="mysite.settings")
            assert done.returncode == 0, done.stderr
        assert job.get_status() == "finished", done.stderr


@drives("dramatiq")
def drive_dramatiq(page: Page) -> None:
    page.run(2)
    broker = page["broker"]
    worker = Worker(broker, worker_timeout=100)
    worker.start()
    wait_until_held()
    page.run()
    wait_until(lambda: not is_held())
    worker.stop()
    page.rest()
    broker.flush_all()
    broker.close()
    broker.client.close()


@drives("huey")
def drive_huey(page: Page) -> None:
    page.run(3)
    consumer = Consumer(page["huey"], periodic=False, check_worker_health=False)
    consumer.start()
    wait_until_held()
    page.run()
    with pytest.raises(TaskException) as raised:
        page["result"].get(blocking=True, timeout=TIMEOUT)
    assert raised.value.metadata["run_abort"]["reason"] == "wrong file"
    consumer.stop(graceful=True)
    page["huey"].storage.conn.connection_pool.disconnect()


@drives("django-tasks")
def drive_tasks(page: Page) -> None:
    """With the immediate backend, which executes a task as it is enqueued."""
    page.run()
    with page.working(page.run):
        page.names["result"] = SimpleNamespace(id=RunHold.objects.get().run_id)
        page.run()
    assert page["result"].errors[0].exception_class is TaskAborted
    page.rest()


# Work.


@drives("job-table")
def drive_job_table(page: Page) -> None:
    def status_after(name: str) -> str:
        Job.objects.filter(pk=job.pk).update(name=name)
        done = Work(lambda: page["run_job"](job.pk))
        done.start()
        done.join(TIMEOUT)
        job.refresh_from_db()
        return job.status

    job = page["job"]
    Job.objects.update(name="look")
    page.run(2)
    wait_until_held()
    page.run()
    page["thread"].join(TIMEOUT)
    job.refresh_from_db()
    assert job.status == "aborted"
    Job.objects.update(status="running")
    assert status_after("never begins") == "aborted"
    clear_run_abort(job)
    assert [status_after(name) for name in ("done", "fail")] == ["done", "failed"]
    with mock.patch.object(admin.site, "_registry", {}):
        page.rest()
        assert admin.site.is_registered(Job)


@drives("command")
def drive_command(page: Page) -> None:
    job = page["job"]
    page.run()
    command = page["Command"]()
    error = aborted(page, lambda: command.handle("x.csv"), "import:x.csv")
    assert isinstance(error, CommandError)
    assert (str(error), error.returncode) == (
        "run 'import:x.csv' was aborted by ann: wrong file",
        3,
    )
    page.run()
    assert aborted(page, lambda: page["work"]([job])) is None
    page.run()
    assert aborted(page, lambda: page["import_quietly"](job)) == "stopped"


@drives("query")
def drive_query(page: Page) -> None:
    page.run()
    with page.working(lambda: page["refresh"](page["job"])) as working:
        page.run()
    assert isinstance(working.outcome, RunAborted)


@drives("program")
def drive_program(page: Page) -> None:
    page.run()
    assert aborted(page, page.run) is None
    page.run()
    ended = aborted(page, lambda: page["convert_with_library"](page["job"]))
    assert isinstance(ended, RunAborted)


@drives("tenant")
def drive_tenant(page: Page) -> None:
    page.run()
    with page.working(lambda: page["work_on"](page["job"])) as working:
        page.run()
    assert isinstance(working.outcome, RunAborted)
    assert page["outcome"].stopped
    page.run()
    assert [each.run_id for each in page["outcomes"]] == [f"jobs.job:{page['job'].pk}"]
    page.run()
    admin = User(is_superuser=True)
    with mock.patch.object(connections["default"], "schema_name", "alpha", create=True):
        run_id = page["run_of"](page["job"])
        assert run_id != page["run_of"](Team(pk=page["job"].pk))
        assert page["may_abort"](admin, run_id, "abort")
        assert not page["may_abort"](admin, run_id.replace("alpha", "beta"), "abort")
    page.run()
    router = page["OneForAborts"]()
    assert router.db_for_write(AbortRequest) == router.db_for_read(AbortRequest) == "default"
    assert router.db_for_write(Team) is None


class Stream:
    """In place of an answer of OpenAI."""

    closed = 0
    length = 1_000_000

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        Stream.closed += 1

    async def __aiter__(self) -> AsyncIterator[Any]:
        for _number in range(self.length):
            await asyncio.sleep(0.005)
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content="word "))])

    async def create(self, **kwargs: Any) -> Stream:
        return Stream()

    @property
    def chat(self) -> Any:
        return SimpleNamespace(completions=self)


class WebsocketConsumer:
    """In place of a consumer of Channels."""

    def __init__(self, user: User) -> None:
        self.scope = {"user": user}
        self.sent: list[Any] = []

    async def send_json(self, content: Any) -> None:
        self.sent.append(content)


@drives("llm-answer")
def drive_answer(page: Page) -> None:
    page.provide("openai", AsyncOpenAI=Stream)
    page.provide("channels")
    page.provide("channels.generic")
    page.provide("channels.generic.websocket", AsyncJsonWebsocketConsumer=WebsocketConsumer)
    job, request = page["job"], page["request"]
    page.rest()
    Stream.closed = 0

    async def stream() -> list[str]:
        response = await page["answer"](request, job.pk)
        chunks = []
        async for chunk in response:
            chunks.append(chunk.decode())
            if len(chunks) == 4:
                await page["stop"](request, job)
        return chunks

    async def converse() -> list[Any]:
        consumer = page["Answer"](request.user)
        await consumer.receive_json({"job": job.pk, "do": "write"})
        while len(consumer.sent) < 2:
            await asyncio.sleep(0.005)
        await consumer.receive_json({"job": job.pk, "do": "stop"})
        await consumer.task
        await consumer.disconnect(1000)
        return list(consumer.sent)

    chunks = async_to_sync(stream)()
    job.refresh_from_db()
    assert (chunks[0], chunks[-1]) == ('data: "word "\n\n', "event: stopped\ndata:\n\n")
    assert job.answer == "word " * (len(chunks) - 1)
    assert Stream.closed == 2  # the stream, and the client
    clear_run_abort(job)
    with mock.patch.object(Stream, "length", 2):
        assert async_to_sync(stream)()[-1] == "event: done\ndata:\n\n"
    assert async_to_sync(converse)()[-1] == {"stopped": True}

    with mock.patch.object(request, "auser", mock.AsyncMock(return_value=AnonymousUser())):
        assert async_to_sync(page["answer"])(request, job.pk).status_code == 302
    Job.objects.update(owner=User.objects.create_user("bob"))
    with pytest.raises(Http404):
        async_to_sync(page["answer"])(request, job.pk)


# Users.


@drives("permissions")
def drive_permissions(page: Page) -> None:
    owner, job = User.objects.create_user("owner"), page["job"]
    Job.objects.filter(pk=job.pk).update(owner=owner)
    admin = User.objects.create_user("admin of the team")
    job.team.admins.add(admin)
    # That of django-guardian, further down on the page.
    of_jobs = ContentType.objects.get_for_model(Job)
    Permission.objects.create(codename="abort_run", content_type=of_jobs)
    run_id = f"jobs.job:{job.pk}"
    page.run(2)
    users = (owner, admin, page["request"].user, AnonymousUser())
    assert [may(user, job, "abort") for user in users] == [True, False, True, False]
    assert not may(owner, f"jobs.job:0{job.pk}", "abort")
    page.run()
    rule = page["may_abort"]
    for each in (run_id, f"jobs.team:{job.team.pk}"):
        assert [rule(user, each, "abort") for user in users] == [False, True, False, False]
    assert not rule(admin, "run-1", "abort")
    page.rest()
    page.serve()
    for name in ("abort", "abort/progress"):
        assert Client().get(f"/jobs/{job.pk}/{name}/").status_code in {302, 401}


@drives("status-column")
def drive_status(page: Page) -> None:
    job = page["job"]

    def status() -> str:
        job.refresh_from_db()
        return str(job.status)

    def only_hold() -> None:
        with abortable_run(job) as signal:
            signal.wait(TIMEOUT)

    page.run()
    assert aborted(page, lambda: page["work_on"](job)) is None
    assert status() == "stopped"
    page.run()
    page["note"](job, "running")
    aborted(page, only_hold)
    wait_until(lambda: status() == "stopping")
    run_aborted.disconnect(dispatch_uid="jobs.status")
    page.run()
    with page.working(only_hold):
        page["repair"]()
        assert status() == "stopping"
        abort_run(job)
    wait_until(lambda: page["repair"]() or status() == "stopped")  # leaving waits for no row
    page["note"](job, "running")
    page["repair"]()
    assert status() == "lost"


@drives("run-again")
def drive_again(page: Page) -> None:
    page.rest()
    job = page["job"]
    assert page["work_on"](job) == "done"
    wait_until(lambda: not page["is_at_work"](job))  # leaving waits for no row
    with page.working(lambda: page["work_on"](job)):
        assert page["is_at_work"](job)
        abort_run(job)


class Tokens(TokenAuthentication):  # type: ignore[misc]
    """Without the model that stores tokens."""

    def authenticate_credentials(self, key: str) -> tuple[User, str]:
        if key != TOKEN:
            raise AuthenticationFailed
        return User.objects.get(), key


class TokenAuth(HttpBearer):  # type: ignore[misc]
    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        return User.objects.get() if token == TOKEN else None


@drives("api")
def drive_api(page: Page) -> None:
    page.run(2)
    page["AbortJob"].authentication_classes = [Tokens, SessionAuthentication]
    path = f"/jobs/{page['job'].pk}/abort/"
    check_api(page, path, "Token")
    with mock.patch.object(page["AbortJob"], "authentication_classes", [SessionAuthentication]):
        assert Client().post(path).status_code == 403
    token = {"authorization": f"Token {TOKEN}"}
    for body in ([], {"reason": ["because"]}):
        response = Client().post(path, body, content_type="application/json", headers=token)
        assert response.status_code == 400
    AbortRequest.objects.all().delete()
    User.objects.update(is_superuser=True)
    page.provide("jobs.auth", TokenAuth=TokenAuth)
    page.run(2)
    check_api(page, f"/api/jobs/{page['job'].pk}/abort/", "Bearer")


def check_api(page: Page, path: str, scheme: str) -> None:
    """A token needs no CSRF token, a session needs one, and a visitor may learn nothing."""
    page.serve()
    for method in (Client().get, Client().post):
        found = [method(each).status_code for each in (path, path.replace("/abort/", "9/abort/"))]
        assert found == [401, 401]
    client = Client(enforce_csrf_checks=True)

    def post(**headers: str) -> int:
        body = {"reason": "because"}
        response = client.post(path, body, content_type="application/json", headers=headers)
        return response.status_code

    assert post() in {401, 403}
    assert post(authorization=f"{scheme} wrong") in {401, 403}
    assert not AbortRequest.objects.exists()
    token = {"authorization": f"{scheme} {TOKEN}"}
    assert post(**token) == 202
    row = AbortRequest.objects.get()
    assert (row.run_id, row.reason) == (f"jobs.job:{page['job'].pk}", "because")
    assert client.get(f"{path}?abort={row.pk}", headers=token).json()["state"] == "idle"
    client.force_login(User.objects.get())
    assert post() in {401, 403}
    client.cookies["csrftoken"] = "x" * 32
    assert post(**{"x-csrftoken": "x" * 32}) == 202
    User.objects.update(is_superuser=False)
    assert post(**token) == 403


# Operation and tests.


@drives("without-redis")
def drive_without_redis(page: Page) -> None:
    page.run(2)
    with page.working(lambda: page["work_on"](page["job"])) as working:
        page.run()
    assert "wrong file" in working.outcome
    outcome = page["outcome"]
    assert (outcome.recorded, outcome.published, outcome.stopped) == (True, False, True)
    page.run()


@drives("test-jobs")
def drive_test_jobs(page: Page) -> None:
    page.rest()
    page["test_stops"]()
    page["test_survives_an_abort_anywhere"]()


@drives("tests")
def drive_tests(page: Page) -> None:
    page.rest()
    with record_aborts() as aborts:
        page["test_stop_button"](aborts, page["job"])
    for case in (page["StopTests"], page["LateStartTests"]):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert (result.testsRun, result.errors, result.failures) == (1, [], [])
