"""Figures of a server, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..protocol import AnyEngine
from ..ticket import Ticket

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Figures of a server.

    Args:
        engines: by the name of their model.
    """

    def __init__(self, engines: Mapping[str, AnyEngine]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.registry.register(_Engines(engines))
        kinds = ("model", "status")
        self._latency = Histogram(
            "guidestar_request_seconds",
            "From a request's arrival to its end.",
            kinds,
            buckets=LATENCIES,
            registry=self.registry,
        )
        self._waited = Histogram(
            "guidestar_queue_seconds",
            "From a request's arrival to its first step.",
            ("model",),
            buckets=LATENCIES,
            registry=self.registry,
        )
        self._answers = Counter(
            "guidestar_http_responses", "Answers by status.", ("status",), registry=self.registry
        )

    def observe(self, model: str, ticket: Ticket) -> None:
        """Count a request that is over."""
        ended = ticket.ended or ticket.submitted
        self._latency.labels(model, ticket.status).observe(ended - ticket.submitted)
        if ticket.started is not None:
            self._waited.labels(model).observe(ticket.started - ticket.submitted)

    def count_answer(self, status: int) -> None:
        """Count an answer."""
        self._answers.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """The engines' own counts, read at each request."""

    def __init__(self, engines: Mapping[str, AnyEngine]) -> None:
        self.engines = engines

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "queued": "Requests that wait.",
            "running": "Requests that are being sampled.",
            "samples": "Samples of the running requests.",
            "replicas": "Processes that sample.",
        }
        counters = {
            "ticks": "Times that rows of requests were evaluated together.",
            "rows": "Rows of all ticks; by ticks, the rows of one.",
            "seconds": "Seconds of all ticks; by ticks, those of one.",
            "repeated": "Ticks that failed and were repeated in parts.",
        }
        calls = {
            "calls": ("calls", "Network calls."),
            "call_rows": ("rows", "Rows of all network calls; by calls, the rows of one."),
            "call_seconds": ("seconds", "Seconds of all network calls; by calls, those of one."),
        }
        stats = {name: engine.stats for name, engine in self.engines.items()}
        for key, text in gauges.items():
            gauge = GaugeMetricFamily(f"guidestar_{key}", text, labels=["model"])
            for name, found in stats.items():
                gauge.add_metric([name], getattr(found, key))
            yield gauge
        for key, text in counters.items():
            counter = CounterMetricFamily(f"guidestar_engine_{key}", text, labels=["model"])
            for name, found in stats.items():
                counter.add_metric([name], getattr(found, key))
            yield counter
        for key, (word, text) in calls.items():
            counter = CounterMetricFamily(f"guidestar_network_{word}", text, labels=["model"])
            for name, found in stats.items():
                counter.add_metric([name], getattr(found, key))
            yield counter
        ended = CounterMetricFamily(
            "guidestar_requests", "Requests by how they ended.", labels=["model", "status"]
        )
        for name, found in stats.items():
            for status, count in found.ended.items():
                ended.add_metric([name, status], count)
        yield ended
