"""What the server says in JSON: these shapes are its interface, and the OpenAPI page is made from them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from .engine import ModelSpec
from .jobs import Job
from .keys import User
from .models import Model
from .stages import STAGES


class Problem(BaseModel):
    """Why a request was refused."""

    reason: str = Field(description="one word, for programs")
    message: str = Field(description="a sentence, for people")


class FailureView(BaseModel):
    """Why a job failed."""

    reason: str = Field(description="error, refused, time, memory, result, crash, host, model, storage or restart")
    message: str
    type: str = Field(description="the name of the exception, if there was one")
    traceback: str
    encoded: bool = Field(description="whether /result gives the exception itself")


class JobView(BaseModel):
    """A job; times are seconds since the epoch."""

    id: str
    user: str
    model: str
    state: str = Field(description="queued, running, completed, failed or cancelled")
    position: int | None = Field(description="how many jobs are to run before it; null unless it is queued")
    submitted: float
    started: float | None
    finished: float | None
    expires: float | None = Field(description="when what is left of it is thrown away")
    attempts: int
    request_bytes: int
    result_bytes: int
    streams: bool = Field(description="whether values arrive while it runs")
    streamed_bytes: int = Field(description="how many bytes of them are kept; known when it is finished")
    stages: dict[str, float] = Field(
        description="seconds in each stage so far: " + "; ".join(f"{name}: {what}" for name, what in STAGES.items())
    )
    failure: FailureView | None

    @classmethod
    def of(cls, job: Job, model: Model | None) -> JobView:
        """Show a job."""
        position = model.queue.position(job.id) if model and job.state == "queued" else None
        failure = FailureView(**vars(job.failure)) if job.failure else None
        shown = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls(**{**shown, "position": position, "failure": failure})


class ModelView(BaseModel):
    """A model on offer."""

    name: str
    source: str
    family: str
    options: dict[str, Any]
    state: str = Field(description="cold, loading, ready, busy or failed")
    queued: int
    isolation: str | None = Field(description="fork (a process for each job) or resident; null until it was loaded")
    node: str | None = Field(description="the node of a cluster that it is on; null for the server's own machine")
    problem: str = Field(description="why it could not be loaded, the last time")
    idle_seconds: float | None
    added: bool = Field(description="whether an admin added it while the server ran")

    @classmethod
    def of(cls, model: Model) -> ModelView:
        """Show a model."""
        spec = model.spec
        idle = time.monotonic() - model.used if model.state == "ready" else None
        return cls(
            name=spec.name,
            source=spec.source,
            family=spec.family,
            options=dict(spec.options),
            state=model.state,
            queued=len(model.queue),
            isolation=model.about.get("isolation"),
            node=model.about.get("node"),
            problem=model.problem,
            idle_seconds=idle,
            added=model.added,
        )


class NewModel(BaseModel):
    """A model to offer from now on."""

    name: str = Field(min_length=1, max_length=200)
    source: str = Field(min_length=1, max_length=1000)
    family: str = Field(default="LanguageModel", pattern=r"^[A-Za-z]\w*$")
    options: dict[str, str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None] = Field(
        default_factory=dict, max_length=100
    )

    @model_validator(mode="after")
    def _can_be_shown(self) -> NewModel:
        # JSON lets users write half of a surrogate pair, and no answer that shows it could be sent.
        if not json.dumps(self.model_dump(), ensure_ascii=False).isprintable():
            raise ValueError("there are characters in it that cannot be shown")
        return self

    def spec(self) -> ModelSpec:
        """What is to be loaded."""
        return ModelSpec(self.name, self.source, self.family, dict(self.options))


class Status(BaseModel):
    """How the server is doing."""

    version: str
    uptime_seconds: float
    trusted: bool = Field(description="whether blocks run unconfined")
    models: list[ModelView]
    queued: int
    running: int
    deployments: dict[str, dict[str, Any]] = Field(description="the models as nnsight 0.8 reads of them")


class Environment(BaseModel):
    """Versions, for a client to compare with its own."""

    protocol: int = Field(description="version of this interface")
    python: str
    packages: dict[str, str]
    models: dict[str, dict[str, Any]] = Field(description="by model: what its own process said, once it was loaded")
    python_version: str = Field(description="the same as nnsight 0.8 reads it")


class WhoAmI(BaseModel):
    """Whose key this is."""

    name: str
    role: str
    limits: dict[str, float]
    email: str = Field(description="the name, as nnsight 0.8 reads it")
    tags: list[str] = Field(description="the role, as nnsight 0.8 reads it")

    @classmethod
    def of(cls, user: User, limits: Mapping[str, float]) -> WhoAmI:
        """Show a user."""
        return cls(name=user.name, role=user.role, limits=dict(limits), email=user.name, tags=[user.role])
