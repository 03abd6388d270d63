from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from run_abort import RunAborted, abort_run, abortable_run
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime, current
from run_abort.contrib import opentelemetry
from tests.conftest import Configure
from tests.support import Foreign, wait_until


@pytest.fixture
def reader(runtime: Runtime) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.install(provider)
    opentelemetry.install(provider)  # changes nothing
    yield reader
    provider.shutdown()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("tests")


def values(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The metrics: their values, or for a histogram their numbers, by their labels."""
    assert current().facts.wait_recorded(20)
    data = reader.get_metrics_data()
    assert data is not None
    return {
        "".join([metric.name, *map(str, point.attributes.values())]): getattr(
            point, "value", getattr(point, "count", None)
        )
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def events(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(each.name, dict(each.attributes or {})) for each in span.events]


def test_the_span_around_an_aborted_block_says_who_and_why(
    configure: Configure,
    reader: InMemoryMetricReader,
    tracer: trace.Tracer,
    spans: InMemorySpanExporter,
) -> None:
    with pytest.raises(RunAborted), tracer.start_as_current_span("job"):
        with tracer.start_as_current_span("child"), abortable_run("run-0"):
            pass
        with abortable_run("run-1"):
            outcome = abort_run("run-1", reason="wrong\nfile", actor="ann")
            with tracer.start_as_current_span("step"):
                current().registry.abort(Request("run-1"))  # by then it is aborted
    child, step, job = spans.get_finished_spans()
    assert events(child) == events(step) == []
    name, attributes = events(job)[0]
    assert len(job.events) == 1
    assert name == "run_abort.aborted"
    assert attributes == {
        "run_abort.run_id": "run-1",
        "run_abort.request_id": str(outcome.request_id),
        "run_abort.actor": "ann",
        "run_abort.reason": "wrong\\nfile",
        "run_abort.way": "local",
    }
    assert (job.start_time or 0) <= job.events[0].timestamp <= (job.end_time or 0)
    assert job.status.status_code is trace.StatusCode.UNSET


def test_the_metrics_are_those_of_prometheus(
    listening: None, reader: InMemoryMetricReader, foreign: Foreign
) -> None:
    with pytest.raises(RunAborted):
        with abortable_run("run-1", groups=["group"]), abortable_run("run-1"):
            assert values(reader)["run_abort_held_runs"] == 1
            abort_run("run-1")
    with pytest.raises(RunAborted):
        with abortable_run("run-2") as signal:
            foreign.publish("run-2")
            assert signal.wait(20)
    wait_until(lambda: values(reader).get("run_abort_stop_seconds") == 2)
    assert values(reader) == {
        "run_abort_requested": 1,
        "run_abort_published": 1,
        "run_abort_abortedlocal": 2,
        "run_abort_abortedchannel": 1,
        "run_abort_stop_seconds": 2,
        "run_abort_held_runs": 0,
        "run_abort_listener_up": 1,
        "run_abort_reconnects": 0,
        "run_abort_unsigned": 1,
        "run_abort_refused": 0,
    }


@pytest.mark.parametrize(
    ("package", "module"),
    [("opentelemetry", "opentelemetry"), ("prometheus_client", "prometheus")],
)
def test_without_its_package_a_module_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"run_abort.contrib.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'django-run-abort\[{module}\]'"):
        __import__(f"run_abort.contrib.{module}")
