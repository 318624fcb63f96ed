"""`make_api`: the server's interface over HTTP.

The one idea: a route finds out who asks, looks at what is theirs, and answers in one of the shapes of `schemas.py`; what a
refusal looks like is decided in one place. A job of another user does not exist, as far as a user can tell. Nothing here
knows what a request says or where a model runs.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import platform
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from nnsight_remote._version import __version__

from .admission import Admission, Refused
from .auth import Door
from .dispatch import Dispatcher
from .eight import named
from .eight.routes import EightRoutes, add_routes
from .intake import Intake
from .jobs import Job
from .keys import User
from .limits import Limits
from .live import MOST_AT_ONCE
from .outgoing import EVENTS, VALUE, Most, Outgoing
from .pages import add_pages
from .schemas import Environment, JobView, ModelView, NewModel, Problem, Status, WhoAmI
from .versions import PROTOCOL, packages

log = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0
_LAST_NUMBER = 1 << 53
WithEvents = Annotated[int, Query(ge=0, le=MOST_AT_ONCE, description="bytes of a result that may come with them")]


@dataclass(frozen=True)
class Parts:
    """What the routes work with."""

    door: Door
    admission: Admission
    dispatcher: Dispatcher
    general: Limits
    trusted: bool
    eight: bool = True
    public_status: bool = False
    began: float = field(default_factory=time.monotonic)

    def find(self, user: User, name: str) -> Job:
        """Return a job that this user may see; raise Refused with 404."""
        job = self.dispatcher.store.get(name)
        if job is None or not (job.user == user.name or user.is_admin):
            raise Refused(404, "job", f"you have no job {name[:64]!r} here; it may have expired")
        return job

    async def finished(self, user: User, name: str, wait: float) -> Job:
        """Return a job of a user's when it is finished, or as it is after `wait` seconds."""
        found = self.find(user, name)
        end = time.monotonic() + wait
        while not found.is_final and (left := end - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self.dispatcher.events.heard(name), left)
            except asyncio.TimeoutError:
                pass
            found = self.find(user, name)
        return found

    def view(self, job: Job) -> JobView:
        """Show a job as it is now."""
        return JobView.of(job, self.dispatcher.models.get(job.model))


def make_api(parts: Parts) -> FastAPI:
    """Make the application; `parts` do the work."""
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (400, 401, 403, 404, 408, 409, 413, 415, 416, 422, 429, 503, 507)
    }
    api = FastAPI(
        title="nnsight server",
        version=__version__,
        summary="Run blocks of nnsight where the weights are.",
        docs_url=None,
        redoc_url=None,
        responses=problems,
    )

    async def user(request: Request) -> User:
        return parts.door.enter(request.headers)

    async def admin(who: User = Depends(user)) -> User:
        if not who.is_admin:
            raise Refused(403, "role", "this is for keys with the role admin")
        return who

    _add_refusals(api, parts)
    _add_job_routes(api, parts, user)
    _add_status_routes(api, parts, user)
    _add_model_routes(api, parts, user, admin)
    add_pages(api)
    return api


def _add_job_routes(api: FastAPI, parts: Parts, user: Callable[..., Any]) -> None:
    dispatcher, intake = parts.dispatcher, Intake(parts.admission, parts.dispatcher)
    outgoing = Outgoing(dispatcher)

    eight = EightRoutes(parts, intake) if parts.eight else None
    if eight:
        add_routes(api, eight, user)

    @api.post("/request", status_code=202, tags=["jobs"], response_model=JobView)
    async def submit(
        request: Request, response: Response, result: WithEvents = 0, who: User = Depends(user)
    ) -> JobView | Response:
        """Hand in a block: the body is what `nnsight.plugin.encode_request` gives.

        Headers: `nnsight-model` names the model, and may be left out where there is only one; `nnsight-request-id`, any text
        of the client's, makes a request that is sent again the same job (200 instead of 202). With `accept:
        text/event-stream` the answer is what `/jobs/ID/events` gives, from the beginning; `location` says where the job is.
        With `nnsight-stream: 1`, saved values arrive while the job runs.

        A multipart form is what nnsight 0.8 sends, and is answered in its words.
        """
        if eight and eight.speaks(request):
            return await eight.submit(who, request)
        job, new = await intake.take(who, request.headers, request.stream())
        status, where = (202 if new else 200), {"location": f"/jobs/{job.id}"}
        if EVENTS in request.headers.get("accept", ""):
            return outgoing.events(job.id, 0, Most(result), status, where)
        response.status_code = status
        response.headers.update(where)
        return parts.view(job)

    @api.get("/jobs", tags=["jobs"])
    async def jobs(count: Annotated[int, Query(ge=1, le=1000)] = 100, who: User = Depends(user)) -> list[JobView]:
        """Your newest jobs; those of everybody for an admin."""
        found = dispatcher.store.latest(None if who.is_admin else who.name, count)
        return [parts.view(job) for job in found]

    @api.get("/jobs/{id}", tags=["jobs"])
    async def job(
        id: str, wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT)] = 0, who: User = Depends(user)
    ) -> JobView:
        """One job. With `wait`, the answer comes when it is finished, or after so many seconds."""
        return parts.view(await parts.finished(who, id, wait))

    @api.get("/jobs/{id}/result", tags=["jobs"], response_class=FileResponse)
    async def result(
        id: str, request: Request, wait: Annotated[float, Query(ge=0, le=_LONGEST_WAIT)] = 0, who: User = Depends(user)
    ) -> Response:
        """What a job saved, or the exception that it raised, encoded: the media type says which.

        Ranges can be asked for; with `accept-encoding: zstd` it is packed, if that pays. With `wait`, the answer comes when
        the job is finished, or after so many seconds.
        """
        found = await parts.finished(who, id, wait)
        if not found.is_final:
            raise Refused(409, "unfinished", f"the job is {found.state}; wait for it with GET /jobs/{id}?wait=30", 1)
        if not found.has_file:
            reason, message = (found.failure.reason, found.failure.message) if found.failure else (found.state, "")
            raise Refused(409, reason, message or f"the job was {found.state}, and has no result")
        return await outgoing.result(found, request)

    @api.get("/jobs/{id}/events", tags=["jobs"], response_class=StreamingResponse)
    async def events(
        id: str,
        request: Request,
        after: Annotated[int, Query(ge=0, le=_LAST_NUMBER)] = 0,
        result: WithEvents = 0,
        values: WithEvents = 0,
        who: User = Depends(user),
    ) -> Response:
        """What happens to a job (`state`) and what it prints (`log`), as server-sent events, until it is finished.

        For a job whose values arrive while it runs, each is a `value` with its size, `bytes`; with `values`, one that has no
        more bytes than that comes along as `data`, in base64. `cut` says that no more come, and why.
        With `result`, the last of them is `result`, unless it has more bytes than that: its media type as `type`, the bytes
        as `data` in base64.
        """
        parts.find(who, id)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 18 else after
        return outgoing.events(id, after, Most(result, values))

    @api.get(
        "/jobs/{id}/values/{number}", tags=["jobs"], response_class=Response, responses={200: {"content": {VALUE: {}}}}
    )
    async def value(
        id: str, number: Annotated[int, Path(ge=1, lt=1 << 62)], request: Request, who: User = Depends(user)
    ) -> Response:
        """A value that a job handed over while it ran, with the event of this number, as `decode_message` reads it."""
        return outgoing.value(parts.find(who, id), number, request.headers.get("range", ""))

    @api.delete("/jobs/{id}", tags=["jobs"])
    async def delete(id: str, who: User = Depends(user)) -> JobView:
        """End a job that is not finished, or throw a finished one away."""
        found = parts.find(who, id)
        if found.is_final:
            dispatcher.forget(found)
            return parts.view(found)
        dispatcher.cancel(found)
        return parts.view(parts.find(who, id))


def _add_status_routes(api: FastAPI, parts: Parts, user: Callable[..., Any]) -> None:
    models = parts.dispatcher.models

    @api.get("/ping", tags=["server"], response_class=PlainTextResponse)
    async def ping() -> str:
        """Whether the server is there."""
        return "pong"

    async def user_or_anybody(request: Request) -> User | None:
        try:
            return parts.door.enter(request.headers)
        except Refused:
            if not parts.public_status:
                raise
            return None

    @api.get("/status", tags=["server"], response_model=Status)
    async def status(who: User | None = Depends(user_or_anybody)) -> Any:
        """Which models there are, and how long the queues are.

        To whoever has no key it says the first only, if the server was told to (`--public-status`): nnsight 0.8 sends none.
        """
        there = named.deployments(models) if parts.eight else {}
        if who is None:
            return JSONResponse({"deployments": there})
        shown = [ModelView.of(model) for model in models]
        return Status(
            version=__version__,
            uptime_seconds=time.monotonic() - parts.began,
            trusted=parts.trusted,
            models=shown,
            queued=sum(view.queued for view in shown),
            running=sum(len(model.jobs) for model in models),
            deployments=there,
        )

    @api.get("/env", tags=["server"])
    async def env(who: User | None = Depends(user_or_anybody)) -> Environment:
        """Versions, for a client to compare with its own before it sends something."""
        said = {} if who is None else {model.spec.name: dict(model.about.get("env") or {}) for model in models}
        python = platform.python_version()
        return Environment(
            protocol=PROTOCOL, python=python, packages=packages(), models=said, python_version=sys.version
        )

    @api.get("/whoami", tags=["server"])
    async def whoami(who: User = Depends(user)) -> WhoAmI:
        """Whose key this is, and what it allows."""
        return WhoAmI.of(who, who.limits_under(parts.general).as_dict())

    @api.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics(who: User = Depends(user)) -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(parts.dispatcher.metrics.text(models), media_type="text/plain; version=0.0.4")


def _add_model_routes(api: FastAPI, parts: Parts, user: Callable[..., Any], admin: Callable[..., Any]) -> None:
    models = parts.dispatcher.models

    @api.get("/models", tags=["models"])
    async def offered(who: User = Depends(user)) -> list[ModelView]:
        """The models on offer."""
        return [ModelView.of(model) for model in models]

    @api.post("/models", status_code=201, tags=["models"])
    async def offer(new: NewModel, who: User = Depends(admin)) -> ModelView:
        """Offer another model, also after the server was started again. It is loaded when its first job comes. For admins."""
        if new.options.get("trust_remote_code") and not parts.trusted:
            raise Refused(403, "trust", "code of a repository is run by a server that was started with --trusted only")
        try:
            spec = new.spec()
            model = models.add(spec, added=True)
        except ValueError as error:
            raise Refused(409, "model", str(error)) from None
        try:
            parts.dispatcher.store.keep_model(spec.name, spec.as_json())
        except BaseException:
            await models.remove(model)
            raise
        parts.dispatcher.start(model)
        return ModelView.of(model)

    @api.delete("/models/{name:path}", tags=["models"])
    async def evict(name: str, forget: bool = False, who: User = Depends(admin)) -> ModelView:
        """Throw the weights of an idle model away; the next job loads them again. For admins.

        With `forget`, the model is offered no more: one that was added while the server ran, and that no job waits for.
        """
        model = models.get(name)
        if model is None:
            raise Refused(404, "model", f"there is no model {name!r} here")
        if forget and not model.added:
            raise Refused(409, "model", f"{name!r} was named when the server was started; it is left out there")
        if not await (models.remove(model) if forget else models.evict(model)):
            waiting = f", and {len(model.queue)} jobs wait for it" if forget and len(model.queue) else ""
            raise Refused(409, "busy", f"the model is {model.state}{waiting}; try again when it is idle", 1)
        if forget:
            parts.dispatcher.retire(model)
        return ModelView.of(model)


def _add_refusals(api: FastAPI, parts: Parts) -> None:
    def answer(
        status: int, reason: str, message: str, retry_after: float | None = None, to_eight: bool = False
    ) -> JSONResponse:
        headers = {"retry-after": str(max(1, round(retry_after)))} if retry_after is not None else {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        # Half of a surrogate pair, which JSON lets users write, is in no answer that others can read.
        message = message.encode("utf-8", "replace").decode()
        said = {"reason": reason, "message": message, **({"detail": message} if to_eight else {})}
        return JSONResponse(said, status, headers)

    async def refused(request: Request, error: Any) -> Response:
        parts.dispatcher.metrics.refused(error.reason)
        return answer(error.status, error.reason, error.message, error.retry_after, EightRoutes.speaks(request))

    async def invalid(request: Request, error: Any) -> Response:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return answer(422, "request", said)

    async def http(request: Request, error: Any) -> Response:
        return answer(error.status_code, "http", str(error.detail))

    async def failed(request: Request, error: Any) -> Response:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            log.error("the server has too many files open", extra={"problem": str(error)})
            return answer(503, "full", "the server has too many connections now", 1)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or isinstance(error, sqlite3.OperationalError):
            log.error("the store cannot be written", extra={"problem": str(error)})
            return answer(507, "storage", "the server has no room on its disk for this now", 30)
        log.error("a route failed", exc_info=error, extra={"path": request.url.path})
        return answer(500, "internal", "the server failed; its log says why")

    api.add_exception_handler(Refused, refused)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(sqlite3.Error, failed)
    api.add_exception_handler(OSError, failed)
    api.add_exception_handler(Exception, failed)
