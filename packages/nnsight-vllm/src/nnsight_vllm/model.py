"""`VLLM`: a model that vLLM serves, with its insides.

The tree is built without weights (`skeleton.py`); the engine starts at the first run (`engine.py`). A trace is captured and
runs in the engine's workers (`worker/`), each invoke as a request of its own beside all others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import nnsight
from nnsight import NNsightError
from nnsight.plugin import EngineTracer, Prepared, is_with_head, open_trace, run_there

from . import versions  # noqa: F401  # first: it refuses what of vLLM is not supported, and says what to install

# isort: split
from vllm.platforms import current_platform

from . import limits, outputs, prompts, quiet, sampling, skeleton
from . import taps as declared
from .engine import SyncEngine
from .engines import Stream, engine_for
from .fields import STANDING
from .standard import StandardNames
from .standard.asking import ask
from .standing import Installed, packed
from .worker.places import ServedModel

quiet.reduce()


class VLLM(ServedModel):
    """A model that vLLM serves.

    Args:
        model: a hub id, or a local folder.
        mode: "sync" for traces that are waited for where they end; "async" for traces whose outputs come as tokens are made:
            `async for output in tracer.backend()`.
        dispatch: start the engine now, and not at the first run.
        rename, envoys: see `NNsight`.
        turn_seconds: how long one turn of a body may take, while the engine and all of its requests wait; 0 for as long as it
            likes.
        taps: the sites that bodies will ask for, for an engine that runs compiled graphs and stops there only:
            `["model.layers.5.output", "model.layers.9.mlp.input"]`. By default it runs no graphs, and stops everywhere.
        options: of vLLM's engine (`tensor_parallel_size=`, `dtype=`, `max_model_len=`, ...), with the defaults of `vllm.LLM`
            but for graphs. With `distributed_executor_backend="ray"` also `cluster_seconds=` (60): how long the cluster may
            take to answer, and to have devices free.

    Example::

        model = VLLM("openai-community/gpt2", dtype="float32")
        with model.trace("The Eiffel Tower is in the city of", temperature=0, max_tokens=3) as tracer:
            hidden = model.transformer.h[5].output.save()
            text = tracer.result.outputs[0].text.save()
    """

    def __init__(
        self,
        model: str,
        *,
        mode: str = "sync",
        dispatch: bool = False,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        turn_seconds: float = 60.0,
        taps: Iterable[str] | None = None,
        **options: Any,
    ) -> None:
        limits.check_options(options)
        options = declared.check({"model": model, **options}, taps)
        super().__init__(skeleton.build(options), rename=rename, envoys=envoys)
        if taps is not None:
            options = declared.engine_options(options, declared.resolve(self, taps))
        self.__dict__.update(_engine=engine_for(mode, options, turn_seconds), _source=model)
        if dispatch:
            self.dispatch()

    @property
    def dispatched(self) -> bool:
        """Whether the engine is there."""
        return bool(self.__dict__["_engine"].started)

    def dispatch(self) -> VLLM:
        """Start the engine, if it is not there yet."""
        self.__dict__["_engine"].start()
        return self

    def shutdown(self) -> None:
        """End the engine, and free what it has; what is under way is given up. The next run starts it again."""
        self.__dict__["_engine"].shutdown()

    def __enter__(self) -> VLLM:
        """Return itself: `with VLLM(...) as model:` ends the engine with its block."""
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the engine, which need not be there for it."""
        own = self.__dict__
        if own["_engine"].started:
            return own["_engine"].tokenizer
        if "_tokenizer" not in own:
            own["_tokenizer"] = skeleton.tokenizer(own["_engine"].options)
        return own["_tokenizer"]

    @property
    def device(self) -> torch.device:
        """Where the engine's values lie: what a block is to use with them is put there."""
        kind = current_platform.device_type
        return torch.device(kind) if kind == "cpu" else torch.device(kind, 0)

    @property
    def standard(self) -> StandardNames:
        """This model under standard names (`layers_output[i]`, `mlps_output[i]`, ...); see `nnsight_vllm.standard`.

        What they mean is found out when they are first asked for, by a request of a few tokens, for which the engine is
        started.
        """
        if "_standard_names" not in self.__dict__:
            self.__dict__["_standard_names"] = ask(self)
        return super().standard

    def _project(self, norm: Any, states: torch.Tensor) -> torch.Tensor:
        raise NNsightError(
            "`project_on_vocab` needs the weights, which are where the engine is: call it in the block of a trace."
        )

    # -- runs --------------------------------------------------------------------------------------------------------

    def trace(self, *inputs: Any, backend: Any = None, remote: Any = None, blocking: bool = True, **kwargs: Any) -> Any:
        """Run a request, or several, and look inside: `with model.trace(prompt, max_tokens=3):`.

        Without a prompt, the block opens invokes, each of which is a request with options of its own.

        Args:
            inputs: one prompt: text, a conversation, token ids, what a tokenizer returned, or a dictionary as vLLM takes it.
            backend, remote, blocking: where to run, if not in an engine of this process, and whether to wait for it; see
                `NNsight.trace`. A server has this model if it was started with `nnsight serve --family VLLM`.
            kwargs: how tokens are drawn, as in `vllm.SamplingParams` (`temperature=`, `max_tokens=`, `n=`, `seed=`, ...), and
                `lora_request=`, `priority=`, and `standing=`: the names of edits that are installed, and that this request is
                to have. Without a prompt they hold for all invokes that do not say otherwise. With `n=` above 1 the block
                runs once for each continuation, and the names that it saves are lists, in their order.
        """
        if not self._has_input(inputs, kwargs):
            sampling.check(kwargs)
        if backend is not None or remote or not blocking:
            _check_sent(remote)
            return open_trace(self, inputs, kwargs, backend=backend, remote=remote, blocking=blocking)
        return self._tracer(self, inputs, kwargs, None)

    def session(self, *, backend: Any = None, remote: Any = None, blocking: bool = True) -> Any:
        """Group several traces; see `NNsight.session`."""
        _check_sent(remote)
        return super().session(backend=backend, remote=remote, blocking=blocking)

    def _tracer(self, node: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], method: Any) -> EngineTracer:
        return EngineTracer(node, self, inputs, kwargs, self.__dict__["_engine"])

    def _known_as(self) -> str:
        return str(self.__dict__["_source"])

    def _has_input(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(inputs) or "input_ids" in kwargs

    def _prepare_input(self, *inputs: Any, **kwargs: Any) -> Prepared:
        if len(inputs) > 1:
            raise TypeError(f"a request has one prompt, and was given {len(inputs)}")
        beside = {name: kwargs.pop(name) for name in prompts.BESIDE if name in kwargs}
        given = inputs[0] if inputs else kwargs.pop("input_ids")
        others = {name: kwargs.pop(name) for name in sampling.OF_REQUESTS if name in kwargs}
        standing = kwargs.pop("standing", ())
        params = sampling.sampling(kwargs)
        if standing:
            params.extra_args = {**(params.extra_args or {}), STANDING: standing}
        return (prompts.prompt_of(given, lambda: self.tokenizer, **beside), params), others, 1

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return sampling.named(kwargs)

    def _requests(self, prepared: Prepared) -> Sequence[Prepared]:
        (prompt, params), others, rows = prepared
        return [((prompt, one), others, rows) for one in sampling.samples(params)]

    def generate(
        self, *inputs: Any, backend: Any = None, remote: Any = None, blocking: bool = True, **kwargs: Any
    ) -> Any:
        """Run requests: as a plain call, return what vLLM gives for each; at the head of a `with`, the same as `trace`.

        Args:
            inputs: one prompt, or several: a list of them, ids [prompts, tokens], or what a tokenizer returned for several.
            backend, remote, blocking, kwargs: see `trace`.

        Returns:
            A `vllm.RequestOutput`, or a list of them. With `mode="async"`, what `await` and `async for` turn into that; see
            `Stream`.
        """
        if is_with_head(sys._getframe(1)):
            return self.trace(*inputs, backend=backend, remote=remote, blocking=blocking, **kwargs)
        if len(inputs) != 1 and not (inputs == () and "input_ids" in kwargs):
            raise TypeError(f"`generate` takes one prompt, or one list of prompts, and was given {len(inputs)}")
        given, mask = inputs[0] if inputs else kwargs.pop("input_ids"), kwargs.pop("attention_mask", None)
        several = prompts.separate(given, mask)
        asked = [(given, mask)] if several is None else several
        where: dict[str, Any] = {"backend": backend, "remote": remote, "blocking": blocking}
        elsewhere = backend is not None or bool(remote) or not blocking
        if elsewhere:
            _check_sent(remote)
        if elsewhere and several is None and kwargs.get("n", 1) == 1:
            return run_there(self, (given,), _with_mask(kwargs, mask), method=None, **where)
        if elsewhere or self.edits:
            results = _generate_traced(self, asked, kwargs, where if elsewhere else {})
        else:
            prepared = [self._prepare_input(one, **_with_mask(kwargs, its)) for one, its in asked]
            results = self.__dict__["_engine"].generate(prepared)
            if isinstance(results, Stream):
                return results.of(several is not None)
        return results[0] if several is None and isinstance(results, list) else results

    # -- edits that stay -----------------------------------------------------------------------------------------------

    def install(self, name: str, edits: Any, *, every: bool = False, tokenwise: bool = False) -> None:
        """Install an edit on the engine, where it stays for requests to come.

        Args:
            name: what requests ask for it by. What had this name is replaced.
            edits: an edited reference to this model, as `model.edit()` gives it, or a file or bytes that hold its edits.
            every: whether all requests are to have it, or those that ask for it by `standing=`.
            tokenwise: say that it changes each token's row by that row alone (it adds a vector to all of them, say). Then
                prompts may come in parts, and requests with the same edits share what is computed of them.

        Example::

            with model.edit() as calm:
                model.model.layers[8].output[0][:] += vector
            model.install("calm", calm, tokenwise=True)
            print(model.generate("How are you?", standing="calm").outputs[0].text)

        Raises:
            StandingError: there is no edit in what was given.
            WireError: something that it reads cannot travel.
        """
        engine = self.__dict__["_engine"]
        engine.start()
        engine.standing.install(engine.engine, name, edits, every=every, tokenwise=tokenwise)

    def uninstall(self, name: str) -> None:
        """Remove an edit from the engine. Requests that have begun with it keep it.

        Raises:
            StandingError: there is none of this name.
        """
        engine = self.__dict__["_engine"]
        engine.standing.uninstall(engine.engine, name)

    @property
    def installed(self) -> dict[str, Installed]:
        """The edits that are installed on the engine, by name."""
        return dict(self.__dict__["_engine"].standing.installed)

    def save_edits(self, path: str | Path) -> None:
        """Write the edits of this reference to the model into a file: `install` and a server take it from there."""
        Path(path).write_bytes(packed(self))

    # -- where a server holds it ---------------------------------------------------------------------------------------

    def _share(self, begin: Callable[[], None], close_in: Callable[[], None]) -> int:
        from .hosting.start import SharedEngine

        own = self.__dict__
        ours = own["_engine"]
        own["_tokenizer"] = skeleton.tokenizer(ours.options)
        # It gets a process that is the server's to make, and is run there.
        engine = ours if isinstance(ours, SyncEngine) else SyncEngine(ours.options, ours.turn_seconds)
        own["_engine"] = SharedEngine(engine, begin, close_in)
        return int(own["_engine"].control.fileno())

    def _join(self) -> None:
        own = self.__dict__
        own["_engine"] = own["_engine"].join(own["_tokenizer"])


def _check_sent(remote: Any) -> None:
    if remote == "local":
        raise NNsightError(
            "remote='local' rehearses with a copy of the model, and an engine has none to give. Without it, bodies travel "
            "to the engine as they do to a server's: what passes there passes on a server"
        )


def _generate_traced(
    model: VLLM, asked: Sequence[tuple[Any, Any]], kwargs: dict[str, Any], where: dict[str, Any]
) -> Any:
    """Run requests in a trace, for the edits of the model or to run elsewhere, as one job.

    Returns:
        What the engine gives for each, or the job if nobody waits.
    """
    if not where and not getattr(model.__dict__["_engine"], "waits", True):
        raise NNsightError(
            "This model has edits, and `generate` streams what an asynchronous engine gives as it is. Install the edits on "
            "the engine (`model.install(name, edited)`, and `standing=name` in the request), or trace the request."
        )
    found: Any = None
    with open_trace(model, (), {}, **where) if where else model.trace() as tracer:
        found = nnsight.save([])
        for number, (prompt, mask) in enumerate(asked):
            with tracer.invoke(prompt, **_with_mask(kwargs, mask)):
                found.append((number, tracer.result))
    if found is None:
        return tracer
    return [outputs.together([one for at, one in found if at == number]) for number in range(len(asked))]


def _with_mask(kwargs: dict[str, Any], mask: Any) -> dict[str, Any]:
    return kwargs if mask is None else {**kwargs, "attention_mask": mask}
