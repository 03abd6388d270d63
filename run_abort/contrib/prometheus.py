"""Metrics for Prometheus; needs ``prometheus_client``::

    def ready(self) -> None:
        from run_abort.contrib import prometheus
        prometheus.install()

No metric has run IDs as a label, because their number is unbounded.

In the multiprocess mode of ``prometheus_client`` these metrics cover all processes. Only those that
are read at each scrape are missing; ``manage.py run_abort_status`` shows the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "run_abort.contrib.prometheus needs prometheus_client: "
        "pip install 'django-run-abort[prometheus]'"
    ) from error

from run_abort._runtime.facts import Fact
from run_abort._runtime.health import health
from run_abort._runtime.runtime import current

__all__ = ["install"]

# Seconds, from loops that check their signal at every step to jobs that stop slowly.
BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Register the metrics of this process in ``registry``; further calls change nothing.

    Calling it once, before a server forks, is enough: each child has its own counts. The reference
    lists the metrics.
    """
    if registry not in _installed:
        _installed[registry] = metrics = _Metrics(registry)
        # is_short makes a fork wait for it: otherwise a lock of prometheus_client could stay locked
        # in the child.
        current().facts.add_hook(metrics.count, is_short=True)
        registry.register(_AtScrape())


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self._requested = counter("run_abort_requested", "Aborts that this process requested")
        self._published = counter("run_abort_published", "Requested aborts that Redis accepted")
        self._aborted = counter("run_abort_aborted", "Blocks aborted in this process", ["way"])
        self._insisted = counter("run_abort_insisted", "Escalations in this process", ["rung"])
        self._stop_seconds = Histogram(
            "run_abort_stop_seconds",
            "From an abort until its last block here was left",
            buckets=BUCKETS,
            registry=registry,
        )

    def count(self, fact: Fact) -> None:
        if fact.name == "requested":
            self._requested.inc()
        elif fact.name == "published":
            self._published.inc()
        elif fact.name == "aborted":
            self._aborted.labels(fact.way).inc(fact.controllers or 0)
        elif fact.name == "insisted":
            self._insisted.labels(fact.rung).inc()
        else:
            self._stop_seconds.observe(fact.seconds or 0)


class _AtScrape(Collector):
    def collect(self) -> Iterator[Metric]:
        now = health()
        held = {controller.signal.run_id for controller, _ in current().registry.holdings()}
        yield GaugeMetricFamily("run_abort_held_runs", "Runs that this process works on", len(held))
        yield GaugeMetricFamily(
            "run_abort_listener_up", "Whether this process listens", now.state == "listening"
        )
        yield CounterMetricFamily(
            "run_abort_reconnects", "Times a lost subscription was re-established", now.reconnects
        )
        yield CounterMetricFamily(
            "run_abort_unsigned", "Messages without a signature", now.unsigned
        )
        yield CounterMetricFamily("run_abort_refused", "Messages without authority", now.refused)


_installed: Final[WeakKeyDictionary[CollectorRegistry, _Metrics]] = WeakKeyDictionary()
