"""What the service counts, for Prometheus; names and labels are in docs/service.md."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rltemp.service.refusals import Refusal
from rltemp.service.served_models import PolicyModel

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the latency histogram."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "By route, model and status code.", "route", "model", "code")
        self._rejections = self._counter("rejections", "Requests that were refused, by reason.", "reason")
        self._non_finite = self._counter("non_finite_inputs", "Numbers that were not finite, in refused requests.")
        self._clamped = self._counter("clamped_actions", "Numbers of actions that lay outside [-1, 1].", "model")
        self._samples = self._counter("samples", "Samples answered, by model.", "model")
        text = "From the end of an inference request's headers to its answer."
        self._seconds = Histogram("rltemp_infer_seconds", text, ["model"], buckets=SECONDS, registry=self.registry)
        text, labels = "1 for each policy that is served.", ["model", "version", "sha256"]
        self._policies = Gauge("rltemp_policy_info", text, labels, registry=self.registry)

    def inferred(self, model: str, seconds: float, samples: int, clamped: int) -> None:
        """Count an inference."""
        self._seconds.labels(model).observe(seconds)
        self._samples.labels(model).inc(samples)
        if clamped:
            self._clamped.labels(model).inc(clamped)

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal."""
        self._rejections.labels(refusal.reason).inc()
        if refusal.values:
            self._non_finite.inc(refusal.values)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rltemp_{name}", text, labels, registry=self.registry)

    def text(self, policies: list[PolicyModel]) -> bytes:
        """All of it, with the policies that are served now."""
        self._policies.clear()
        for model in policies:
            self._policies.labels(model.name, model.version, model.sha256).set(1)
        return generate_latest(self.registry)
