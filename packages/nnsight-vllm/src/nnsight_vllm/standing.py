"""Standing edits, as those know them who send requests: their names, and what each request is marked with.

One idea: every request of an engine, whoever sends it, passes its input processor. There it is marked with the edits that it
will have, those for all first, and refused if it asks for what is not there. The edits themselves are in the workers
(`worker/standing.py`).

A request with an edit is scheduled as a traced one, since an edit may look at all rows of a prompt, and change what comes
early by what comes late. An edit that changes each token's row by that row alone is said to be `tokenwise`. With no others a
request is scheduled like any: its prompt may come in parts, and what is computed of it is shared with requests that have the
same edits, and with no others.

relies on: `LLMEngine` and `AsyncLLM` make each `EngineCoreRequest` by `input_processor.process_inputs` or
`process_inputs_async`, and use its `sampling_params`; vLLM 0.30 to 0.32.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnsight.plugin import Envoy, WireError, decode_error, encode_edits, inspect_bytes

from .errors import PromptTooLongError, StandingError
from .fields import SALT, STANDING, check, names_in, sees_whole


@dataclass(frozen=True)
class Installed:
    """A standing edit.

    Attributes:
        name: what requests call it.
        digest: of what it is made of.
        every: whether all requests have it, or those that ask.
        tokenwise: whether it changes each token's row by that row alone.
    """

    name: str
    digest: str
    every: bool = False
    tokenwise: bool = False


def packed(edits: Any) -> bytes:
    """Return edits as bytes: of an edited model, of a file that holds them, or as they are.

    Raises:
        StandingError: they are none.
    """
    if isinstance(edits, Envoy):
        return encode_edits(edits)
    data = Path(edits).read_bytes() if isinstance(edits, (str, Path)) else bytes(edits)
    try:
        kind = inspect_bytes(data)["kind"]
    except WireError as error:
        raise StandingError(f"these are no edits: {error}") from None
    if kind != "edits":
        raise StandingError(f"these bytes hold a {kind}, and no edits: write them with `edited.save_edits(path)`")
    return data


class Standing:
    """The standing edits of one engine, by name, in the order in which they were installed."""

    def __init__(self) -> None:
        self.installed: dict[str, Installed] = {}

    def watch(self, engine: Any) -> None:
        """Mark every request that an engine (`LLMEngine`, `AsyncLLM`) is given from now on."""
        processor = engine.input_processor
        most = engine.vllm_config.scheduler_config.max_num_batched_tokens
        processor.process_inputs = functools.partial(self._process, processor.process_inputs, most)
        processor.process_inputs_async = functools.partial(self._process_later, processor.process_inputs_async, most)

    async def _process_later(self, call: Any, most: int, *args: Any, **kwargs: Any) -> Any:
        return self._met(await call(*args, **kwargs), most)

    def _process(self, call: Any, most: int, *args: Any, **kwargs: Any) -> Any:
        return self._met(call(*args, **kwargs), most)

    def _met(self, request: Any, most: int) -> Any:
        params = request.sampling_params
        if params is not None and (params.extra_args is not None or self.installed):
            check(params.extra_args)
            self.mark(params)
            tokens = len(request.prompt_token_ids or ())
            if sees_whole(params.extra_args) and tokens > most:
                raise PromptTooLongError(
                    f"The prompt has {tokens} tokens, and the engine takes {most} in one step. A body sees a prompt whole, "
                    f"so one that is traced must fit: start the engine with `max_num_batched_tokens={tokens}` or more."
                )
        return request

    def mark(self, params: Any) -> None:
        """Write into a request's sampling options which edits it has.

        Raises:
            StandingError: it asks for one that is not there.
        """
        extra = params.extra_args
        if not self.installed and not (extra and (STANDING in extra or SALT in extra)):
            return
        chosen = self.chosen(names_in(extra))
        extra = {name: value for name, value in (extra or {}).items() if name not in (STANDING, SALT)}
        if chosen:
            extra[STANDING] = [one.name for one in chosen]
            if all(one.tokenwise for one in chosen):
                extra[SALT] = "+".join(one.digest for one in chosen)
        params.extra_args = extra or None

    def chosen(self, asked: Sequence[str]) -> list[Installed]:
        """Return the edits that a request has, in the order in which they begin.

        Args:
            asked: the names of those that it asks for.

        Raises:
            StandingError: there is no edit of such a name.
        """
        unknown = [name for name in asked if name not in self.installed]
        if unknown:
            known = ", ".join(map(repr, self.installed)) or "none"
            raise StandingError(
                f"No edit {unknown[0]!r} is installed on this engine; there are: {known}. `model.install(name, edited)` "
                "installs one."
            )
        chosen = [one for one in self.installed.values() if one.every]
        return chosen + [self.installed[name] for name in dict.fromkeys(asked) if not self.installed[name].every]

    def install(self, engine: Any, name: str, edits: Any, *, every: bool, tokenwise: bool) -> None:
        """Install an edit on an engine with a `collective_rpc` that answers at once; see `VLLM.install`."""
        one, data = self.made(name, edits, every, tokenwise)
        self.take(one, engine.collective_rpc("nnsight_install", args=(name, one.digest, data)))

    def uninstall(self, engine: Any, name: str) -> None:
        """Remove an edit from such an engine; see `VLLM.uninstall`."""
        self.remove(name)
        engine.collective_rpc("nnsight_uninstall", args=(name,))

    def remove(self, name: str) -> None:
        """Let no request have an edit any more."""
        self.chosen([name])
        del self.installed[name]

    def made(self, name: str, edits: Any, every: bool, tokenwise: bool) -> tuple[Installed, bytes]:
        """Return an edit that is to be installed, and what the workers need of it."""
        if not isinstance(name, str) or not name:
            raise StandingError(f"a standing edit has a name that requests can call it by, not {name!r}")
        data = packed(edits)
        return Installed(name, hashlib.sha256(data).hexdigest()[:16], every, tokenwise), data

    def take(self, one: Installed, answers: Sequence[bytes | None]) -> None:
        """Let requests have an edit, if all workers have taken it.

        Raises what one of them raised.
        """
        for answer in answers:
            if answer is not None:
                raise decode_error(answer)
        self.installed.pop(one.name, None)
        self.installed[one.name] = one
