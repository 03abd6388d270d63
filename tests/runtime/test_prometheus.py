from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from run_abort import RunAborted, abort_run, abortable_run
from run_abort._runtime.runtime import Runtime, current
from run_abort.contrib import prometheus
from tests.conftest import Configure
from tests.support import Foreign, Proxy, wait_until


@pytest.fixture
def registry(runtime: Runtime) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    prometheus.install(registry)
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    assert current().facts.wait_recorded(20)
    return registry.get_sample_value(f"run_abort_{name}", labels)


def test_counts_what_happens(
    listening: None, registry: CollectorRegistry, foreign: Foreign
) -> None:
    assert value(registry, "requested_total") == 0
    assert value(registry, "held_runs") == 0
    assert value(registry, "stop_seconds_count") == 0

    with pytest.raises(RunAborted):
        with abortable_run("run-1", groups=["group"]), abortable_run("run-1"):
            assert value(registry, "held_runs") == 1
            abort_run("run-1")
    with pytest.raises(RunAborted):
        with abortable_run("run-2") as signal:
            foreign.publish("run-2")
            assert signal.wait(20)
    # The listener's thread yields to the one that it has woken before it tells of that.
    wait_until(lambda: value(registry, "stop_seconds_count") == 2)
    assert value(registry, "requested_total") == 1
    assert value(registry, "published_total") == 1
    assert value(registry, "aborted_total", way="local") == 2
    assert value(registry, "aborted_total", way="channel") == 1
    assert (value(registry, "unsigned_total"), value(registry, "refused_total")) == (1, 0)
    assert 0 <= (value(registry, "stop_seconds_sum") or 0) < 20
    assert value(registry, "held_runs") == 0
    assert "run-1" not in generate_latest(registry).decode()


def test_shows_how_the_listener_is(
    configure: Configure, proxy: Proxy, registry: CollectorRegistry
) -> None:
    configure(REDIS_URL=proxy.url)
    assert value(registry, "listener_up") == 0
    current().listener.ensure_started()
    wait_until(lambda: value(registry, "listener_up") == 1)
    assert value(registry, "reconnects_total") == 0
    proxy.cut()
    wait_until(lambda: value(registry, "reconnects_total") == 1)
    wait_until(lambda: value(registry, "listener_up") == 1)


def test_each_registry_counts_once_however_often_it_was_installed(
    configure: Configure, registry: CollectorRegistry
) -> None:
    other = CollectorRegistry()
    for each in (other, registry):
        prometheus.install(each)
    abort_run("run-1")
    assert value(registry, "requested_total") == value(other, "requested_total") == 1
