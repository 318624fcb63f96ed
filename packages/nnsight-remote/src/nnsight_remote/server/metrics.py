"""`Metrics`: the numbers that Prometheus collects.

The one idea: nothing in them names a user, so that whoever may see how busy the server is, sees no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .jobs import Job
from .models import Models

_SHORT = (0.0003, 0.001, 0.003)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_BYTES = tuple(4.0**power for power in range(4, 18))


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        to = self._registry
        self._jobs = Counter("nnsight_jobs", "Jobs that are finished", ["model", "outcome"], registry=to)
        self._refused = Counter("nnsight_refused", "Requests that were not accepted", ["reason"], registry=to)
        self._waited = Histogram(
            "nnsight_wait_seconds", "From request to start", ["model"], buckets=_SECONDS, registry=to
        )
        self._ran = Histogram("nnsight_run_seconds", "From start to end", ["model"], buckets=_SECONDS, registry=to)
        self._stages = Histogram(
            "nnsight_stage_seconds",
            "Where the time of a job went",
            ["model", "stage"],
            buckets=(*_SHORT, *_SECONDS),
            registry=to,
        )
        self._in = Histogram("nnsight_request_bytes", "Sizes of requests", buckets=_BYTES, registry=to)
        self._out = Histogram("nnsight_result_bytes", "Sizes of results", buckets=_BYTES, registry=to)
        self._queued = Gauge("nnsight_queued", "Jobs that wait", ["model"], registry=to)
        self._loaded = Gauge("nnsight_model_loaded", "Whether a model is loaded", ["model"], registry=to)
        self._loads = Gauge("nnsight_model_loads", "How often a model was loaded", ["model"], registry=to)

    def accepted(self, job: Job) -> None:
        """Count a job that came in."""
        self._in.observe(job.request_bytes)

    def refused(self, reason: str) -> None:
        """Count a request that was turned away."""
        self._refused.labels(reason).inc()

    def finished(self, job: Job) -> None:
        """Count a job that is finished."""
        self._jobs.labels(job.model, job.failure.reason if job.failure else job.state).inc()
        if job.started is not None and job.finished is not None:
            self._waited.labels(job.model).observe(max(0.0, job.started - job.submitted))
            self._ran.labels(job.model).observe(max(0.0, job.finished - job.started))
        self.passed(job.model, job.stages)
        if job.state == "completed":
            self._out.observe(job.result_bytes)

    def passed(self, model: str, stages: Mapping[str, float]) -> None:
        """Count stages that a job is through."""
        for stage, seconds in stages.items():
            self._stages.labels(model, stage).observe(seconds)

    def text(self, models: Models) -> bytes:
        """All numbers, as Prometheus reads them."""
        for model in models:
            self._queued.labels(model.spec.name).set(len(model.queue))
            self._loaded.labels(model.spec.name).set(model.host.alive)
            self._loads.labels(model.spec.name).set(model.loads)
        return generate_latest(self._registry)
