"""What the tests of all queues need: rows that the workers share, and a broker of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.conftest import Configure
from tests.processes.conftest import LOGGING, Start, start
from tests.queues.drivers import DRIVERS, Driver, Place
from tests.support import Child, shared_rows

__all__ = ["start"]  # a fixture


@pytest.fixture
def project(
    shared_redis: RedisServer,
    channel_name: str,
    transactional_db: None,
    configure: Configure,
) -> dict[str, Any]:
    """The settings of the workers; this process asks, and keeps the rows where they do."""
    configure(REQUESTS=True, LISTEN=False)
    return {
        "RUN_ABORT": {"REDIS_URL": shared_redis.url, "CHANNEL": channel_name},
        "DATABASES": shared_rows(),
        "LOGGING": LOGGING,
    }


@pytest.fixture
def place(
    start: Start, own_redis: RedisServer, shared_redis: RedisServer, project: dict[str, Any]
) -> Place:
    return Place(start, own_redis, shared_redis, project)


@pytest.fixture
def driver(place: Place, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """The queue that the test names, perhaps with a kind of worker: ``"huey-process"``."""
    name, _, kind = request.param.partition("-")
    with DRIVERS[name](place, kind) as driver:
        yield driver


@pytest.fixture
def worker(driver: Driver) -> Iterator[Child]:
    """A worker that has begun before the test; it ends when it is asked to."""
    worker = driver.start()
    yield worker
    driver.end(worker)
