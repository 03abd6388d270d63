"""Metrics for Prometheus; needs ``prometheus_client``::

    def ready(self) -> None:
        from run_abort.contrib import prometheus
        prometheus.install()

In the multiprocess mode of ``prometheus_client`` these metrics cover all processes. Only those that
are read at each scrape are missing. ``manage.py run_abort_status`` shows the open blocks of all
processes, and the number of subscribers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from weakref import WeakKeyDictionary

from run_abort._runtime.facts import Fact
from run_abort._runtime.runtime import current

from ._metrics import BUCKETS, COUNTED, OBSERVED, STOP_SECONDS, amount_of
from ._needs import needs

with needs("prometheus_client", "prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client import core as client
    from prometheus_client.registry import Collector

__all__ = ["install"]


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
        self._counters = {
            fact: Counter(
                f"run_abort_{counted.name}", counted.description, counted.labels, registry=registry
            )
            for fact, counted in COUNTED.items()
        }
        name, description = STOP_SECONDS
        self._stop_seconds = Histogram(
            f"run_abort_{name}", description, buckets=BUCKETS, registry=registry
        )

    def count(self, fact: Fact) -> None:
        if fact.name == "stopped":
            self._stop_seconds.observe(fact.seconds or 0)
            return
        counter, labels = self._counters[fact.name], COUNTED[fact.name].labels
        if labels:
            counter = counter.labels(*(getattr(fact, label) for label in labels))
        counter.inc(amount_of(fact))


class _AtScrape(Collector):
    def collect(self) -> Iterator[client.Metric]:
        for name, description, is_counter, read in OBSERVED:
            family = client.CounterMetricFamily if is_counter else client.GaugeMetricFamily
            yield family(f"run_abort_{name}", description, read())


_installed: Final[WeakKeyDictionary[CollectorRegistry, _Metrics]] = WeakKeyDictionary()
