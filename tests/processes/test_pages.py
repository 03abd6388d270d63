"""What the pages say of several processes."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.blocks import held
from tests.conftest import Configure
from tests.support import Child
from tests.web.test_admin_live import cells, keys, login, text, url
from tests.web.test_progress import look_until, post

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("recorded_and_published", "listening"),
]


@pytest.fixture
def recorded_and_published(configure: Configure) -> None:
    configure(REQUESTS=True, POLL_INTERVAL=0.2)


class TestLive:
    def test_shows_who_runs_what(self, shared_redis: RedisServer, channel_name: str) -> None:
        project = {"RUN_ABORT": {"REDIS_URL": shared_redis.url, "CHANNEL": channel_name}}
        program = "from tests.workers import linger; linger('run-2', 'second step', '0')"
        with Child("-c", program, settings=project) as child, held("run-1", "first step"):
            child.wait_for("holding")
            page = text(login("view_abortrequest", "abort_run").get(url()))
        host, pid = socket.gethostname(), child.process.pid
        (heading, first, second, processes, *rest) = cells(page)
        assert heading == ["Run", "Abort", "Label", "Host", "Process", "Duration", "State"]
        ours, theirs = sorted([first, second])
        assert ours[:4] == ["run-1", "Abort", "first step", host]
        assert theirs[:5] == ["run-2", "Abort", "second step", host, f"{pid} python -c"]
        assert ours[6] == theirs[6] == "running"
        assert sorted(keys(page)) == ["run-1", "run-2"]
        assert processes[0] == "Host"
        assert [row[2] for row in rest] == ["listening", "listening"]
        assert "2 runs on 2 processes." in page
        assert "cannot be reached" not in page


class TestProgress:
    def test_a_part_that_has_stopped_is_not_the_whole(self, settings: Any) -> None:
        client = login("abort_run")
        redis = {"RUN_ABORT": settings.RUN_ABORT | {"REQUESTS": False}}
        work = "from tests import workers; workers.linger('run-1', 'label', '0', after='live')"
        with Child("-c", work, settings=redis) as child:
            with held("run-1", is_stubborn=True):
                child.wait_for("holding")
                abort_id = post(client)
                answer = look_until(client, abort_id, processes=2, stopped=1, unanswered=0)
                assert (answer["state"], answer["over"]) == ("aborting", False)
                assert answer["text"] == "Aborting on 1 process. 1 process has stopped so far."
            answer = look_until(client, abort_id, over=True)
            assert answer["state"] == "stopped"
            assert answer["text"] == "Stopped on 2 processes."
