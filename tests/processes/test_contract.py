"""The wire contract between two processes and a stranger."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from example.redis_server import RedisServer
from run_abort import subscribe_to_run_aborts
from run_abort._runtime.runtime import current
from tests.conftest import Configure
from tests.support import Child, Foreign, wait_until

SUBSCRIBE = "from tests.workers import subscribe; subscribe()"


@pytest.fixture
def heard(configure: Configure) -> list[str]:
    """What a handler of this process hears."""
    heard: list[str] = []
    assert subscribe_to_run_aborts(heard.append) is True
    wait_until(lambda: current().listener.status().state == "listening")
    return heard


@pytest.fixture
def processes(shared_redis: RedisServer, channel_name: str) -> Iterator[list[Child]]:
    settings = {
        "RUN_ABORT": {
            "REDIS_URL": shared_redis.url,
            "CHANNEL": channel_name,
            "REQUESTS": False,
            "HOLDS": False,
        }
    }
    with Child("-c", SUBSCRIBE, settings=settings) as one:
        with Child("-c", SUBSCRIBE, settings=settings) as other:
            yield [one, other]


class TestTwoProcesses:
    def test_both_hear_a_stranger_and_each_other_but_not_themselves(
        self, processes: list[Child], foreign: Foreign
    ) -> None:
        origins = {child.wait_for("listening").split()[1] for child in processes}
        assert len(origins) == 2
        assert foreign.publish("run-1") == 2
        for child in processes:
            assert child.wait_for("heard") == "heard run-1"
        for mine in origins:
            foreign.publish_raw(json.dumps({"runId": f"from {mine}", "origin": mine}))
        foreign.publish("last")
        for child in processes:
            child.wait_for("heard last")
            (other,) = {line for line in child.output if line.startswith("heard from")}
            own = next(line.split()[1] for line in child.output if line.startswith("listening"))
            assert own not in other
