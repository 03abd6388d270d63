"""Metrics for Prometheus, where ``prometheus_client`` is installed::

    class ProjectConfig(AppConfig):
        def ready(self) -> None:
            from run_abort.contrib import prometheus
            prometheus.install()

No metric has run IDs among its labels: there is no end of them.

In the multiprocess mode of ``prometheus_client`` the counters and the histogram are those of all
processes. The others are read when this process is scraped, which that mode does not support: they
are missing there, and ``manage.py run_abort_status`` tells the same of every process.
"""

from __future__ import annotations

from collections.abc import Iterator
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

# Seconds: from a loop that looks at its signal at every step to a job that is slow to let go.
BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Have the metrics of this process in ``registry``; doing it again changes nothing.

    Once before a server forks is enough: each child counts for itself.

    ==============================  =========  ====================================================
    ``run_abort_requested_total``   counter    aborts that this process requested
    ``run_abort_published_total``   counter    those of them that Redis took
    ``run_abort_aborted_total``     counter    blocks that were aborted here, by ``way``
    ``run_abort_insisted_total``    counter    what was done as asking was not enough, by ``rung``
    ``run_abort_stop_seconds``      histogram  from the abort until its last block here was left
    ``run_abort_held_runs``         gauge      runs that this process works on
    ``run_abort_listener_up``       gauge      1 while this process listens, else 0
    ``run_abort_reconnects_total``  counter    subscriptions that were lost and had again
    ==============================  =========  ====================================================
    """
    if registry not in _installed:
        _installed[registry] = metrics = _Metrics(registry)
        # A fork waits for it, as the locks of prometheus_client would stay locked in the child.
        current().facts.add_hook(metrics.count, is_short=True)
        registry.register(_AtScrape())


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._requested = Counter(
            "run_abort_requested", "Aborts that this process requested", registry=registry
        )
        self._published = Counter(
            "run_abort_published", "Requested aborts that Redis took", registry=registry
        )
        self._aborted = Counter(
            "run_abort_aborted", "Blocks that were aborted here", ["way"], registry=registry
        )
        self._insisted = Counter(
            "run_abort_insisted",
            "What was done as asking was not enough",
            ["rung"],
            registry=registry,
        )
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
            "run_abort_reconnects", "Subscriptions lost and had again", now.reconnects
        )


_installed: Final[WeakKeyDictionary[CollectorRegistry, _Metrics]] = WeakKeyDictionary()
