"""Texts from elsewhere, on their way to a log, a terminal or a page."""

from __future__ import annotations

import logging
import pickle
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.template import RequestContext, Template
from django.test import Client, RequestFactory
from django.urls import reverse

from run_abort import RunAborted, abort_run
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime
from run_abort.admin import RunningNowAdmin
from run_abort.exceptions import TaskAborted, visible
from run_abort.models import AbortRequest, ListenerCursor, RunHold, RunHoldGroup, RunProcess
from tests.conftest import Configure
from tests.jobs.models import Job
from tests.rows import hold_row, process_row
from tests.support import wait_until

NASTY = "a\x1b[2J\r\nb\x9b\u2028\u202ec\ud800"
SHOWN = r"a\x1b[2J\r\nb\x9b\u2028\u202ec\ud800"
RUN = "run\u202e\u2066-1"  # what an ID may contain
SHOWN_RUN = r"run\u202e\u2066-1"


def test_is_made_visible() -> None:
    assert visible(NASTY) == SHOWN
    assert visible("Zoë's 🏃 run") == "Zoë's 🏃 run"


def test_in_the_text_of_each_row() -> None:
    rows = [
        AbortRequest(run_id=NASTY),
        RunHold(run_id=NASTY),
        RunHoldGroup(run_id=NASTY),
        ListenerCursor(name=NASTY),
    ]
    assert {str(row) for row in rows} == {SHOWN}
    assert str(RunProcess(host=NASTY, pid=17)) == f"{SHOWN}:17"


@pytest.mark.parametrize("kind", [RunAborted, TaskAborted])
def test_in_an_exception(kind: Any) -> None:
    error = kind(RUN, NASTY, NASTY)
    assert str(error) == f"run '{SHOWN_RUN}' was aborted by {SHOWN}: {SHOWN}"
    assert repr(error).isprintable()
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, str(again)) == (NASTY, str(error))


class TestLog:
    @pytest.fixture(autouse=True)
    def _all(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "run_abort")

    def check(self, caplog: pytest.LogCaptureFixture, *parts: str) -> None:
        assert all(record.getMessage().isprintable() for record in caplog.records)
        assert all(part in caplog.text for part in parts)

    def test_of_facts(
        self, configure: Configure, runtime: Runtime, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL=False)
        abort_run(RUN, reason=NASTY, actor=NASTY)
        assert runtime.facts.wait_recorded(20)
        self.check(caplog, SHOWN_RUN)
        (extra,) = [vars(record) for record in caplog.records if "abort_reason" in vars(record)]
        for key in ("abort_reason", "abort_actor", "abort_run_id"):
            assert extra[key].isprintable()

    def test_of_what_a_server_says(
        self,
        configure: Configure,
        runtime: Runtime,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(NASTY[:-1])

        transport = runtime.push.transport()
        for name in ("publish", "subscribe", "count"):
            monkeypatch.setattr(type(transport), name, fail)
        runtime.push.publish([Request(RUN)])
        runtime.push.publish([Request(RUN), Request(RUN)])
        runtime.push.notify(["6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
        runtime.push.subscribers()
        runtime.recorder.outage.report(OSError(NASTY[:-1]))
        runtime.listener.start()
        wait_until(lambda: runtime.listener.status().last_error)
        assert runtime.listener.stop()
        assert runtime.listener.status().last_error == f"OSError: {SHOWN[:-6]}"
        self.check(caplog, SHOWN[:-6])


@pytest.mark.django_db
class TestPage:
    def test_of_the_button(self, configure: Configure, admin_user: User) -> None:
        request = RequestFactory().get("/")
        request.user = admin_user
        text = "{% load run_abort %}{% abort_button run %}{% abort_button run name=nasty %}"
        context = RequestContext(request, {"run": RUN, "nasty": NASTY})
        page = Template(text).render(context)
        assert SHOWN_RUN in page
        assert SHOWN in page
        assert "\u202e" not in page

    def test_of_the_abort_view(self, configure: Configure, admin_client: Client) -> None:
        url = reverse("run_abort:abort", args=[RUN])
        page = admin_client.get(url).content.decode()
        assert SHOWN_RUN in page
        assert "\u202e" not in page
        admin_client.post(url, {"reason": NASTY.removesuffix("\ud800"), "next": "/admin/"})
        page = admin_client.get("/admin/").content.decode()
        assert SHOWN_RUN in page
        assert "\u202e" not in page

    def test_of_the_admins_question(self, admin_client: Client) -> None:
        job = Job.objects.create(name="<b>job\u202e-1")
        changelist = reverse("admin:jobs_job_changelist")
        data = {"action": "abort_selected_runs", "_selected_action": str(job.pk)}
        for answer in (
            admin_client.get(reverse("admin:jobs_job_abort", args=[job.pk])),
            admin_client.post(changelist, data),
        ):
            page = answer.content.decode()
            assert r"&lt;b&gt;job\u202e-1" in page
            assert "<b>" not in page
            assert "\u202e" not in page

    @pytest.mark.parametrize("by", ["button", "live", "force"])
    def test_of_the_admins_log(self, configure: Configure, admin_client: Client, by: str) -> None:
        configure(REQUESTS=True, HOLDS=True, REDIS_URL=False)
        hold_row(RUN, process_row())
        url = {
            "button": reverse("admin:jobs_job_abort", args=[Job.objects.create(name="one").pk]),
            "live": reverse("admin:run_abort_live_abort"),
            "force": reverse("admin:run_abort_live_force"),
        }[by]
        with mock.patch.object(RunningNowAdmin, "abort_wait", 0):
            admin_client.post(url, {"run": quote(RUN), "post": "yes", "reason": "wrong\u202e"})
        (entry,) = LogEntry.objects.all()
        assert r"wrong\u202e" in entry.get_change_message()
        assert entry.get_change_message().isprintable()
