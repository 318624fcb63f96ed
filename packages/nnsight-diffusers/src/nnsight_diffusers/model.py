"""`DiffusionModel`: a pipeline of diffusers, whatever denoises in it, as a model that can be traced.

How a pipeline is loaded is `loading.py`, how arguments become a call `inputs.py`, and what stands around the modules while
it runs `running.py`. Here they are one family.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from nnsight import NoTraceError, RowsError
from nnsight.plugin import Layout, LazyModel, Place, Prepared, is_with_head, open_trace, run_there
from nnsight_diffusers import independence, inputs, live, loading, seeds, shapes
from nnsight_diffusers import results as _results  # noqa: F401  # says which results come back as what they are
from nnsight_diffusers.batch import Batch
from nnsight_diffusers.components import Components, Passing, Scheduler
from nnsight_diffusers.layout import PipelineLayout
from nnsight_diffusers.running import Run, Ways
from nnsight_diffusers.source import CONDITIONAL, UNCONDITIONAL, guidance_of
from nnsight_diffusers.watching import may_have_rows

#: The argument with which the invokes that share a call travel to it.
_BATCH = "_nnsight_batch"

#: Pipelines whose own batches of several prompts mix them up, with or without us; seen in diffusers 0.42.
_ALONE = frozenset({"StableDiffusionPanoramaPipeline"})


class DiffusionModel(LazyModel):
    """A diffusion pipeline, with its components as envoys: `model.unet` or `model.transformer`, `model.vae`, and so on.

    `model.trace("a cat")` runs one denoising step, `model.generate("a cat", num_inference_steps=50)` all of them. What an
    input is, the pipeline says: a prompt (a list for several rows), embeddings, an image, class labels; by position, by
    name, or in a dict. Steps are the denoiser's calls. Beside the components there are

    - `model.timestep.output`: at which time the denoiser is called in this step; what is assigned, it is called with.
    - `model.scheduler`: `.input` is the prediction after guidance, `.output` what the scheduler makes of it, with the latents
      first; its attributes are the scheduler's (`model.scheduler.timesteps`).

    Args:
        model: a hub id, a local folder, `"nnsight/toy-shapes"` (which is in this package), or a pipeline.
        automodel: the pipeline's class, itself or by name, if not the one that the checkpoint was saved for
            (`"StableDiffusionImg2ImgPipeline"`, `"AutoPipelineForInpainting"`).
        dispatch: load the weights now. Otherwise they load at the first run.
        rename: other names for submodules; see `NNsight`.
        envoys: classes for envoys; see `NNsight`.
        kwargs: passed to `from_pretrained` (`dtype=`, `variant=`, `device_map=`, a component to use instead, ...).

    Raises:
        TypeError: the model is none of these.
        LoadError: there is no pipeline there.

    Example::

        model = DiffusionModel("nnsight/toy-shapes")
        with model.generate("a red circle on the left", num_inference_steps=10, seed=7) as tracer:
            latents = [model.scheduler.output[0] for step in tracer.iter[:]]
            image = tracer.result.images[0]
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Any,
        *,
        automodel: Any = "DiffusionPipeline",
        dispatch: bool = False,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        **kwargs: Any,
    ) -> None:
        self.__dict__["_findings"] = {}
        source = loading.source_of(model, automodel, kwargs)
        super().__init__(source, dispatch=dispatch, rename=rename, envoys=envoys)
        self.__dict__["repo_id"] = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        self._attach("timestep", Passing())
        self._attach("scheduler", Scheduler(self.pipeline))

    @property
    def pipeline(self) -> Any:
        """The pipeline, as diffusers made it; its modules have no weights before the first run."""
        return self._components.__dict__["pipeline"]

    @property
    def _kind(self) -> Any:
        """The pipeline's class."""
        return type(self.pipeline)

    @property
    def _components(self) -> Components:
        module = self._module
        assert isinstance(module, Components)
        return module

    @property
    def name_or_path(self) -> str:
        """The hub id or folder that the pipeline was loaded from."""
        return self.__dict__["repo_id"] or getattr(self.pipeline.config, "_name_or_path", "") or ""

    def _known_as(self) -> str:
        return self.name_or_path

    def _rebind(self, module: torch.nn.Module) -> None:
        super()._rebind(module)
        self.__dict__["_findings"] = {}
        self.__dict__["_extras"]["scheduler"].__dict__["pipeline"] = self.pipeline

    def _ready(self) -> None:
        super()._ready()
        if self._components.follow():
            self._rebuilt()

    @contextlib.contextmanager
    def _on_fakes(self) -> Iterator[None]:
        token = live.faking.set(True)
        try:
            yield
        finally:
            live.faking.reset(token)

    # -- inputs ------------------------------------------------------------------------------------------------------

    def _has_input(self, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return inputs.is_input(self._kind, given, kwargs)

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        inputs.check(self._kind, kwargs)
        return dict(kwargs)

    def _prepare_input(self, *given: Any, **kwargs: Any) -> Prepared:
        cls = self._kind
        named = inputs.named(cls, given, kwargs)
        seeds.check(named.get("seed"), named.get("generator"))
        return (), named, inputs.count(cls, named)

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(prepared) == 1:
            return (), prepared[0][1]
        if self._kind.__name__ in _ALONE:
            raise RowsError(f"{self._kind.__name__} mixes up several prompts in one call. Run separate traces.")
        each = [(dict(named), rows) for _, named, rows in prepared]
        own = {name: [named.pop(name, None) for named, _ in each] for name in ("seed", "generator")}
        scales = self._scales([named for named, _ in each])
        batch = Batch([rows for _, rows in each], own["seed"], own["generator"], scales)
        return (), {**inputs.join(self._kind, self.pipeline, each), _BATCH: batch}

    def _scales(self, each: list[dict[str, Any]]) -> list[float] | None:
        """Let all invokes ask for the same guidance, and return what each asked for if that differs.

        Raises:
            RowsError: this pipeline cannot be called so that each gets its own.
        """
        cls, name = self._kind, "guidance_scale"
        parameter = inputs.parameters(cls).get(name)
        if parameter is None:
            return None
        scales = [named.get(name, parameter.default) for named in each]
        if all(scale == scales[0] for scale in scales):
            return None
        denoiser: Any = getattr(self._components, next(iter(self._components.denoisers()), ""), None)
        config = getattr(denoiser, "config", {})
        told = bool(getattr(config, "guidance_embeds", False))
        why = ""
        unless = frozenset() if told else guidance_of(cls).unless
        asked = [name for name in sorted(unless or ()) if any(named.get(name) for named in each)]
        if unless is None:
            why = f"how {cls.__name__} puts its predictions together is not known to allow it"
        elif asked:
            why = f"what `{asked[0]}` adds depends on the scale, or on the prediction for the prompt"
        elif getattr(config, "time_cond_proj_dim", None) is not None:
            why = "the denoiser is told the scale with the time"
        elif not told and any(scale <= 1 for scale in scales):
            why = "up to 1 there is no guidance, and without it the denoiser is called with other rows"
        if why:
            raise RowsError(
                f"The invokes ask for different guidance ({', '.join(map(str, scales))}), and cannot share a call: {why}. "
                "Pass the same in each, or run separate traces."
            )
        for named in each:
            named[name] = max(scales)
        return [float(scale) for scale in scales]

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        batch: Batch = kwargs[_BATCH]
        batch.images = inputs.several(kwargs, self._kind)
        batch.layout = PipelineLayout(batch, self._path)
        return batch.layout

    def _facts(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int) -> shapes.Facts:
        """How rows lie in the values of a module that is called so; found out once for each kind of call."""
        key = path, shapes.signature(args, kwargs, size)
        findings = self.__dict__["_findings"]
        if key not in findings:
            findings[key] = shapes.find(self, path, args, kwargs, size, may_have_rows)
        facts: shapes.Facts = findings[key]
        return facts

    def _check_rows(
        self, path: str, given: independence.Given, ordered: independence.Given, order: Sequence[int]
    ) -> None:
        """Refuse to let invokes share a call of a module whose rows see one another; found out once for each kind of call.

        Raises:
            RowsError: they do.
        """
        # By what attends in it too, which a user may exchange.
        processors = getattr(self._module.get_submodule(path), "attn_processors", {})
        attending = frozenset(type(processor) for processor in processors.values())
        key = "independent", path, shapes.signature(*ordered, len(order)), attending
        findings = self.__dict__["_findings"]
        if key not in findings:
            findings[key] = independence.holds(self, path, given, ordered, order)
        if not findings[key]:
            raise RowsError(
                f"In `{self._path}.{path}` of {self._kind.__name__} the parts of a batch see one another by where they lie, "
                "so invokes cannot share a call. Run separate traces."
            )

    # -- running -----------------------------------------------------------------------------------------------------

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        return {None: self._one_step, "generate": self._run}.get(method) or super()._target(method)  # type: ignore[arg-type]

    def _step_place(self, method: str | Callable[..., Any] | None) -> Place | None:
        if method in (None, "generate"):
            return self.get("timestep")._place()
        return super()._step_place(method)

    def _one_step(self, **kwargs: Any) -> Any:
        known = inputs.parameters(self._kind)
        counts = [name for name in known if name.endswith("num_inference_steps")]  # one for each stage
        if not counts or any(kwargs.get(name) is not None for name in (*counts, "timesteps", "sigmas")):
            return self._run(**kwargs)
        return self._run(lone=True, **{**kwargs, **dict.fromkeys(counts, _steps_for_one(known, kwargs))})

    def _run(self, *, lone: bool = False, **kwargs: Any) -> Any:
        cls = self._kind
        batch: Batch | None = kwargs.pop(_BATCH, None)
        gradients, bar = bool(kwargs.pop("gradients", False)), kwargs.pop("progress", None)
        fake = live.faking.get()
        self._seeded(kwargs, batch)
        if batch is not None:
            kwargs = inputs.spread(kwargs, batch.total)
        if (gradients or fake) and "output_type" in inputs.parameters(cls):
            kwargs.setdefault("output_type", "pt")
            if kwargs["output_type"] not in ("pt", "latent"):
                raise ValueError(
                    f"with gradients, and in a scan, images are tensors: pass output_type='pt' or 'latent', not "
                    f"{kwargs['output_type']!r}"
                )
        images = inputs.several(kwargs, cls) * (inputs.count(cls, kwargs) if batch is None else batch.total)
        with Run(self, batch, images, Ways(gradients, bar, fake, lone)).around():
            return self._module(**kwargs)

    def _seeded(self, kwargs: dict[str, Any], batch: Batch | None) -> None:
        """Let the arguments of a call hold generators in the place of seeds."""
        cls = self._kind
        seed = kwargs.pop("seed", None)
        seeds.check(seed, kwargs.get("generator"))
        images = inputs.several(kwargs, cls)
        found: Any = None
        if batch is None:
            found = None if seed is None else seeds.of_seed(seed, images * inputs.count(cls, kwargs))
        else:
            # What is said to the trace holds for each invoke that says nothing itself.
            given = [seed if own is None and one is None else own for own, one in zip(batch.seeds, batch.generators)]
            found = seeds.of_batch(given, batch.generators, [rows * images for rows in batch.counts])
        if found is not None:
            if "generator" not in inputs.parameters(cls):
                raise TypeError(
                    f"{cls.__name__} takes no generator, so it cannot be seeded: call torch.manual_seed before"
                )
            kwargs["generator"] = found

    def generate(
        self,
        *given: Any,
        progress: bool | None = None,
        seed: int | None = None,
        gradients: bool = False,
        backend: Any = None,
        remote: Any = None,
        blocking: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run the whole pipeline: a plain call returns its images, `with model.generate(...) as tracer:` looks inside.

        Args:
            given: the input, as for `trace`; without one, the block opens invokes.
            progress: show a bar over the steps. If it is not said, what `pipeline.set_progress_bar_config` said holds; else a
                bar appears in a notebook or at a prompt after two seconds, and never in a script.
            seed: where the noise comes from. The first image is as with `generator=torch.Generator("cpu").manual_seed(seed)`,
                the next as with the number after it, whatever else shares the call.
            gradients: keep the graph, from the image back to every module; images are then tensors. Pipelines keep
                none by themselves.
            backend, remote, blocking: where to run, and whether to wait for it; see `trace`.
            kwargs: options of the pipeline (`num_inference_steps=`, `guidance_scale=`, ...).

        Returns:
            What the pipeline returns, its images in `.images`; a `Tracer` at the head of a `with`; a job, for a call
            that does not wait.
        """
        for name, value in (("progress", progress), ("seed", seed), ("gradients", gradients or None)):
            if value is not None:
                kwargs[name] = value
        where: dict[str, Any] = {"backend": backend, "remote": remote, "blocking": blocking}
        if is_with_head(sys._getframe(1)):
            return open_trace(self, given, kwargs, method="generate", **where)
        if backend is None and blocking and remote in (None, False):
            return self._run_now("generate", given, kwargs)
        return run_there(self, given, kwargs, method="generate", **where)

    # -- guidance ----------------------------------------------------------------------------------------------------

    def conditional(self, value: torch.Tensor) -> torch.Tensor:
        """Return the part of a value of the denoiser that is for the prompt, as a view: edits in place act.

        Args:
            value: a value of the denoiser or of a module in it, as the block got it, with rows along dimension 0.

        Returns:
            With guidance the half of the rows that has the prompt; all of them where there is no guidance, or where the
            pipeline calls the denoiser once for each half and this is that call.

        Raises:
            RowsError: there is no such part in this step, or the pipeline does not say which it is.
            NoTraceError: the denoiser has not been called.

        Example::

            with model.trace("a cat"):
                noise = model.unet.output[0]
                guidance = model.conditional(noise) - model.unconditional(noise)
        """
        return self._part(value, CONDITIONAL)

    def unconditional(self, value: torch.Tensor) -> torch.Tensor:
        """Return the part of a value of the denoiser that is for no prompt, or for the negative one; see `conditional`."""
        return self._part(value, UNCONDITIONAL)

    @property
    def half(self) -> str | None:
        """For which half the denoiser is called in this step, if it is called once for each: `"conditional"` or
        `"unconditional"`; None if it is called with both."""
        return self._living().half

    def _living(self) -> Run:
        run = live.latest()
        if run is None or not run.parts or run.belongs_to is not self._module:
            raise NoTraceError(
                "Which half is which is known once the denoiser has been called: ask inside the block of a trace of this "
                "model, for a value of the denoiser."
            )
        return run

    def _part(self, value: torch.Tensor, half: str) -> torch.Tensor:
        run = self._living()
        name = self._kind.__name__
        if run.parts == 1:
            if run.half != half:
                raise RowsError(
                    f"{name} calls its denoiser once for each half, or without guidance at all; in this step the call "
                    f"is for the {run.half} one. Walk the steps, and look at `model.half`."
                )
            return value
        order = guidance_of(self._kind).orders.get(run.parts)
        if order is None or order.count(half) != 1:
            raise RowsError(
                f"{name} calls its denoiser with {run.parts} parts, and its code does not say which is the {half} one: take "
                "rows by number."
            )
        return run.part(value, order.index(half))


def _steps_for_one(known: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int:
    """Return for how many steps to ask so that one is made: a pipeline that begins with an image makes a part of them."""
    if "strength" not in known:
        return 1
    strength = kwargs.get("strength", known["strength"].default)
    if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        return 1
    steps = math.ceil(1 / strength)
    return steps if int(steps * strength) else steps + 1
