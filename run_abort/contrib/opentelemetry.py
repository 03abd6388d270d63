"""Span events and metrics for OpenTelemetry; needs ``opentelemetry-api``::

    def ready(self) -> None:
        from run_abort.contrib import opentelemetry
        opentelemetry.install()

When an aborted block is left, the span that is current there, the one around the block, gets the
event ``run_abort.aborted``, with the time of the abort, and who aborted it and why. The status of
the span stays unset: an abort is no error, and ``RunAborted`` is no ``Exception``.

The metrics are those of ``run_abort.contrib.prometheus``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from run_abort._concurrency.clock import since_epoch
from run_abort._core.types import Event, Left
from run_abort._runtime.facts import Fact
from run_abort._runtime.runtime import current
from run_abort.exceptions import visible

from ._metrics import BUCKETS, COUNTED, OBSERVED, STOP_SECONDS, Observed, amount_of
from ._needs import needs

with needs("opentelemetry-api", "opentelemetry"):
    from opentelemetry import metrics, trace

__all__ = ["install"]


def install(meter_provider: metrics.MeterProvider | None = None) -> None:
    """Add the span events and the metrics of this process; further calls change nothing.

    Call it once, before or after a server forks.

    :param meter_provider: None for the global one, which may be set later.
    """
    current().registry.events.add(_add_span_event)
    if meter_provider not in _installed:
        _installed.append(meter_provider)
        meter = metrics.get_meter("run_abort", meter_provider=meter_provider)
        # is_short makes a fork wait for it: otherwise a lock of the SDK could stay locked in the
        # child.
        current().facts.add_hook(_Metrics(meter).count, is_short=True)


def _add_span_event(event: Event) -> None:
    """Called in the thread of the block. The SDK's spans take an event without waiting."""
    if not isinstance(event, Left):
        return
    span, aborted = trace.get_current_span(), event.signal.aborted_by
    if aborted is not None and span.is_recording():
        request = aborted.request
        attributes = {
            "run_id": event.signal.run_id,
            "request_id": request.id,
            "actor": request.actor,
            "reason": request.reason,
            "way": aborted.way,
        }
        span.add_event(
            "run_abort.aborted",
            {f"run_abort.{key}": visible(value) for key, value in attributes.items() if value},
            timestamp=int(since_epoch(aborted.at) * 1e9),
        )


class _Metrics:
    def __init__(self, meter: metrics.Meter) -> None:
        self._counters = {
            fact: meter.create_counter(f"run_abort_{counted.name}", description=counted.description)
            for fact, counted in COUNTED.items()
        }
        name, description = STOP_SECONDS
        self._stop_seconds = meter.create_histogram(
            f"run_abort_{name}",
            unit="s",
            description=description,
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        for observed in OBSERVED:
            _observe(meter, observed)

    def count(self, fact: Fact) -> None:
        if fact.name == "stopped":
            self._stop_seconds.record(fact.seconds or 0)
            return
        attributes = {label: getattr(fact, label) for label in COUNTED[fact.name].labels}
        self._counters[fact.name].add(amount_of(fact), attributes)


def _observe(meter: metrics.Meter, observed: Observed) -> None:
    name, description, is_counter, read = observed

    def callback(options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        yield metrics.Observation(read())

    create: Callable[..., object] = (
        meter.create_observable_counter if is_counter else meter.create_observable_gauge
    )
    create(f"run_abort_{name}", [callback], description=description)


_installed: Final[list[metrics.MeterProvider | None]] = []
