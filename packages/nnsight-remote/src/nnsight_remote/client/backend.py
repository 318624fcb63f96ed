"""`RemoteBackend`: what `remote=True` stands for.

The one idea: a block becomes a job in three steps that can each be told from the outside: agree (versions, name of the
model), post, follow. A block that is not waited for ends after the second, and its handle stands in for its values.
"""

from __future__ import annotations

import sys
from typing import Any

from nnsight import NNsightError
from nnsight.plugin import Request

from .address import Address
from .display import make_display
from .errors import RemoteError
from .handshake import agree, speak
from .job import PATIENCE, Job

#: Seconds that somebody who interrupts a block is kept waiting, if the server does not answer.
_GIVING_UP = 3.0


class RemoteBackend:
    """Runs blocks on a server; give it as `backend=` where `remote=` does not say enough.

    Args:
        host: the server; True or None for the one in `CONFIG.API.HOST`.
        model: what the server calls the model, if it is not what the model was loaded from.
        key: the key for it; that of `nnsight login` or the configuration if not given.
        blocking: wait for the result. If False, what stands after `as` is a `Job`.
        patience: for how many seconds the server may be gone while we wait.
        trusted: results of this server may be more than data, and so may run its code here.
        quiet: show nothing; as `CONFIG.APP.REMOTE_LOGGING` says if None.
        stream: let saved values arrive while the block runs: `Job.stream` of what stands after `as` gives them. The block is
            not waited for then.

    Example::

        lab = RemoteBackend("http://localhost:8787", model="toy")
        with model.trace(x, backend=lab):
            hidden = model.layers[0].output.save()
    """

    def __init__(
        self,
        host: str | bool | None = None,
        *,
        model: str = "",
        key: str | None = None,
        blocking: bool = True,
        patience: float = PATIENCE,
        trusted: bool | None = None,
        quiet: bool | None = None,
        stream: bool = False,
    ) -> None:
        if not isinstance(host, (str, bool, type(None))):
            raise TypeError(f"`remote=` is True or the address of a server, not a {type(host).__name__}")
        self.address = Address.find(host if isinstance(host, str) else None, key)
        self.model = model
        self.blocking = blocking and not stream
        self.stream = stream
        self._options: dict[str, Any] = {"patience": patience, "trusted": trusted, "quiet": quiet}

    def run(self, request: Request) -> dict[str, Any] | Job:
        """Run a block there."""
        if not self.blocking:
            if not request.body.has_target:
                raise NNsightError(
                    f"with {'stream=True' if self.stream else 'blocking=False'} the job stands after `as`, and this "
                    "`with` has none: write `as job`"
                )
            with make_display(self._label, self._options["quiet"]) as display:
                job = self._post(request, display)
                display.label = job._label
                display.show("queued", "not waited for")
            return job
        with make_display(self._label, self._options["quiet"]) as display:
            job = self._post(request, display)
            display.label = job._label
            try:
                job.follow(display)
                return job.fetch(display)
            except KeyboardInterrupt:
                self._give_up(job)
                raise

    def _post(self, request: Request, display: Any) -> Job:
        called = agree(self.address, request.model, self.model)
        jobs = speak(self.address).jobs
        id = jobs.post(request, called, display.remark, followed=self.blocking, stream=self.stream)
        return Job(id, self.address, **self._options)

    def _give_up(self, job: Job) -> None:
        """Cancel a job that the user interrupts, if the server can be asked to."""
        try:
            job.cancel(_GIVING_UP)
        except RemoteError as error:
            print(f"nnsight: {job!r} could not be cancelled and may go on: {error}", file=sys.stderr)

    @property
    def _label(self) -> str:
        return self.address.url.partition("://")[2]
