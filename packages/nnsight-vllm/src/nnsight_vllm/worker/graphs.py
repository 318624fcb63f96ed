"""Where compiled graphs end, in a worker: the operation that stands at a declared site, and how it gets there.

One idea: hooks on the declared modules call an operation that the compiler knows nothing of, so what is compiled ends before
it and begins after it. They are put on when the weights have been loaded and nothing has been compiled yet. What goes through
it is a copy of the module's own, made in the graph: what bodies make of that goes on from here, and nowhere else.

relies on: a loader is what `register_model_loader` was given for its `load_format`, and loads drafts too; what vLLM compiles
is a `TorchCompileWithNoGuardsWrapper` whose `do_not_compile` is false, and calls its modules, hooks included, when it is
traced; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig
from vllm.model_executor.model_loader import BaseModelLoader, get_model_loader, register_model_loader
from vllm.model_executor.models.utils import PPMissingLayer

from nnsight import NNsightError
from nnsight.plugin import Forwards, leaves

from ..taps import FIELD, LOADER, OPERATION

_NOTHING: tuple[Any, ...] = ()
_UNDECLARED = (
    "This engine runs its model as compiled graphs, inside which nobody can look: it was started without declared sites. "
    "Start it with `enforce_eager=True`, or through `VLLM(..., taps=[...])`."
)

# -- the operation -----------------------------------------------------------------------------------------------------

_library = torch.library.Library(OPERATION.partition("::")[0], "DEF")
_library.define("tap(Tensor(a!)[] values, str shape, int site) -> ()")


def _tap(values: list[torch.Tensor], shape: str, site: int) -> None:
    forwards = Forwards.current()
    if forwards is None or forwards.graphs is None:
        return
    names, is_input, shape = shape.rpartition("|")
    given = next(_read(iter(shape), iter(values)))
    if is_input:
        args, named = given
        given = args, dict(zip(names.split(",")[1:], named))
    made = forwards.pass_site(site, given)
    if made is not given:
        for old, new in zip(values, leaves(made)):
            if new is not old:
                old.copy_(new)


_library.impl("tap", _tap, "CompositeExplicitAutograd")
torch.library.register_fake(OPERATION, lambda values, shape, site: None, lib=_library)


def _read(shape: Iterator[str], values: Iterator[torch.Tensor]) -> Iterator[Any]:
    """Put together what `_taken_apart` has described, item by item."""
    for sign in shape:
        if sign == ")":
            return
        yield tuple(_read(shape, values)) if sign == "(" else next(values) if sign == "t" else None


def _taken_apart(value: Any, values: list[torch.Tensor]) -> tuple[str, Any]:
    """Add copies of the tensors in a value to `values`; return how they lie in it, and the value made of the copies.

    Traced by the compiler.
    """
    if isinstance(value, torch.Tensor):
        values.append(value.clone())
        return "t", values[-1]
    if value is None:
        return "n", None
    if isinstance(value, (tuple, list)):
        shape, items = "", _NOTHING
        for item in value:
            sign, made = _taken_apart(item, values)
            shape, items = shape + sign, (*items, made)
        return f"({shape})", items
    raise NNsightError("a site of compiled graphs passes tensors, None and tuples of these, and here is something else")


# -- the hooks ---------------------------------------------------------------------------------------------------------


def _after(site: int) -> Callable[..., Any]:
    def stand(module: torch.nn.Module, args: Any, output: Any) -> Any:
        values: list[torch.Tensor] = []
        shape, made = _taken_apart(output, values)
        torch.ops.nnsight.tap(values, shape, site)
        return made

    return stand


def _before(site: int) -> Callable[..., Any]:
    def stand(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        values: list[torch.Tensor] = []
        shape, (made, named) = _taken_apart((args, tuple(kwargs.values())), values)
        torch.ops.nnsight.tap(values, ",".join(["", *kwargs]) + "|" + shape, site)
        return made, dict(zip(kwargs, named))

    return stand


def compiled_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules that a graph computes, by their paths."""
    found: dict[str, torch.nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, TorchCompileWithNoGuardsWrapper) and not module.do_not_compile:
            for below, part in module.named_modules():
                found[f"{path}.{below}" if path and below else path or below] = part
    return found


def run_plainly(model: torch.nn.Module, run: Callable[[int], None], tokens: int) -> None:
    """Run a model once with all of its modules called, whatever is compiled."""
    compiled = [
        module for module in compiled_modules(model).values() if isinstance(module, TorchCompileWithNoGuardsWrapper)
    ]
    for module in compiled:
        module.do_not_compile = True
    try:
        run(tokens)
    finally:
        for module in compiled:
            module.do_not_compile = False


def _said(config: VllmConfig) -> Mapping[str, Any] | None:
    """Return what `..taps.engine_options` has told the engine."""
    more = config.additional_config
    return more.get(FIELD) if isinstance(more, Mapping) else None


def _sites(model: torch.nn.Module, config: VllmConfig) -> list[tuple[torch.nn.Module, str]]:
    """Return the modules and the stages of the declared sites that a graph of this worker comes to, by their numbers.

    Others are ordinary sites, of what is not compiled, or belong to another worker.
    """
    inside, found = compiled_modules(model), []
    for path, stage in (_said(config) or {"taps": ()})["taps"]:
        module = inside.get(path)
        if isinstance(module, TorchCompileWithNoGuardsWrapper):
            raise NNsightError(
                f"`taps=` names `{path}`, which is compiled as one, so no graph ends there: declare what lies inside (its "
                "first or its last module, say)."
            )
        if module is not None and not isinstance(module, PPMissingLayer):
            found.append((module, stage))
    return found


def begin(forwards: Forwards, model: torch.nn.Module, config: VllmConfig) -> None:
    """Tell the forwards of an engine what of its model is compiled, and where the graphs end.

    Raises:
        NNsightError: graphs were built in which nobody could look.
    """
    compilation, inside = config.compilation_config, compiled_modules(model)
    graphs = compilation.cudagraph_mode
    if not inside and graphs == CUDAGraphMode.NONE and compilation.mode != CompilationMode.STOCK_TORCH_COMPILE:
        return
    if _said(config) is None:
        raise NNsightError(_UNDECLARED)
    cut = compilation.mode != CompilationMode.VLLM_COMPILE or OPERATION in (compilation.splitting_ops or ())
    if compilation.mode == CompilationMode.STOCK_TORCH_COMPILE or graphs.has_full_cudagraphs() or not cut:
        raise NNsightError(
            f"The engine was started with `mode={compilation.mode}` and `cudagraph_mode={graphs}`, whose graphs do not end "
            f"at the declared sites (cut is at {', '.join(compilation.splitting_ops or ()) or 'nothing'}). Leave these "
            "options of `compilation_config=` out."
        )
    forwards.compiled(inside.values(), _sites(model, config))


@register_model_loader(LOADER)
class TappedLoader(BaseModelLoader):
    """Loads weights as another loader does, and puts hooks on the declared modules."""

    def _other(self, config: VllmConfig | None = None) -> BaseModelLoader:
        if config is not None:
            said = _said(config)
            self.format = "auto" if said is None else said["load_format"]
        return get_model_loader(dataclasses.replace(self.load_config, load_format=self.format))

    format = "auto"

    def download_model(self, model_config: Any) -> None:
        """Download weights."""
        self._other().download_model(model_config)

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Load weights into a model."""
        self._other().load_weights(model, model_config)

    def load_model(self, vllm_config: VllmConfig, model_config: Any, prefix: str = "") -> torch.nn.Module:
        """Load the model, or a draft of its tokens, which nobody looks into."""
        model = self._other(vllm_config).load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        if model_config is vllm_config.model_config:
            for number, (module, stage) in enumerate(_sites(model, vllm_config)):
                if stage == "output":
                    module.register_forward_hook(_after(number))
                else:
                    module.register_forward_pre_hook(_before(number), with_kwargs=True)
        return model
