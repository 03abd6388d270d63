"""What the tests of all queues need: rows that the workers share, and a broker of their own."""

from __future__ import annotations

from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.conftest import Configure
from tests.processes.conftest import LOGGING, start
from tests.support import shared_rows

__all__ = ["start"]  # a fixture


@pytest.fixture
def project(
    shared_redis: RedisServer,
    channel_name: str,
    transactional_db: None,
    configure: Configure,
) -> dict[str, Any]:
    """The settings of the workers; this process asks, and keeps the rows where they do."""
    configure(INTENTS=True, LISTEN=False)
    return {
        "RUN_ABORT": {"REDIS_URL": shared_redis.url, "CHANNEL": channel_name},
        "DATABASES": shared_rows(),
        "LOGGING": LOGGING,
    }
