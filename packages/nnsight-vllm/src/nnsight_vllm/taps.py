"""Sites at which compiled graphs end: what `VLLM(..., taps=[...])` declares, and what an engine is told of it.

One idea: vLLM's compiler cuts a model at operations that it is told of, and what lies between two cuts becomes a graph. At
each declared site stands such an operation (`worker/graphs.py`), so Python runs there, and graphs everywhere else.

relies on: the operations at which vLLM cuts by itself are `CompilationConfig._attention_ops`, and those that write the
cache; `additional_config` reaches workers and belongs to what compiled code is cached under; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from vllm.config import CompilationConfig

from nnsight import NNsightError
from nnsight.plugin import Envoy

from .errors import EngineOptionError

#: The operation that stands at a declared site, and the loader of weights that puts it there.
OPERATION, LOADER = "nnsight::tap", "nnsight"
#: Where in an engine's `additional_config` the sites are said, and how weights are to be loaded.
FIELD = "nnsight"
_WRITING = ["vllm::unified_kv_cache_update", "vllm::unified_mla_kv_cache_update"]
_STAGES = {"input": "input", "inputs": "input", "output": "output"}
_NEITHER = (
    "An engine with compiled graphs (`enforce_eager=False`) stops at declared sites only, and none is declared: say which, "
    '`taps=["model.layers.5.output", ...]`, or leave `enforce_eager` out for an engine that stops everywhere.'
)
_BOTH = (
    "`taps=` are for an engine with compiled graphs; `enforce_eager=True` asks for one without: leave one of them out."
)


def check(options: Mapping[str, Any], taps: Iterable[str] | None) -> dict[str, Any]:
    """Return an engine's options with graphs where sites are declared, and without where none are.

    Raises:
        EngineOptionError: both are asked for, or neither.
    """
    eager = options.get("enforce_eager")
    if taps is None and eager is not None and not eager:
        raise EngineOptionError(_NEITHER)
    if taps is not None and eager:
        raise EngineOptionError(_BOTH)
    return {**options, "enforce_eager": taps is None}


def resolve(model: Any, taps: Iterable[str]) -> list[tuple[str, str]]:
    """Return the path below the model, and the stage, of each declared site.

    Args:
        model: the tree.
        taps: `"model.layers.5"` or `"model.layers.5.output"` for what a module gives, `"model.layers.5.input"` for what it
            is given. Names of the user's own (`rename=`) count, and so do paths from the root, as errors write them.

    Raises:
        ValueError: there is no such module.
    """
    if isinstance(taps, str):
        raise TypeError(f"`taps=` takes a list of sites, as [{taps!r}]")
    found: dict[tuple[str, str], None] = {}
    for text in taps:
        path, stage = text, "output"
        node = _node(model, path)
        if node is None:
            path, _, last = text.rpartition(".")
            node, stage = (_node(model, path), _STAGES[last]) if last in _STAGES else (None, "")
        if node is None:
            known = [path.removeprefix(f"{model.path}.") for path, _ in model.named_modules()]
            near = ", ".join(map(repr, difflib.get_close_matches(path or text, known, 3)))
            raise ValueError(
                f"`taps=` names {text!r}, which is no site of this model." + (f" Near are {near}." * bool(near))
            )
        found[node.path.removeprefix(f"{model.path}."), stage] = None
    return list(found)


def _node(model: Any, path: str) -> Envoy | None:
    return _node_at(model, path) or _node_at(model, path.removeprefix(f"{model.path}."))


def _node_at(model: Any, path: str) -> Envoy | None:
    try:
        node = model.get(path)
    except (AttributeError, LookupError, TypeError, NNsightError):  # among these: a value, asked for outside of a trace
        return None
    return node if isinstance(node, Envoy) and node is not model else None


def engine_options(options: Mapping[str, Any], sites: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the options of an engine whose graphs end at these sites.

    Raises:
        EngineOptionError: other options cannot be had together with such graphs.
    """
    if int(options.get("pipeline_parallel_size") or 1) > 1:
        raise EngineOptionError(
            "`taps=` and `pipeline_parallel_size=` cannot be had together: each stage knows its own sites only. Spread the "
            "model over a tensor-parallel group, or leave `taps=` out."
        )
    compilation = options.get("compilation_config") or {}
    if not isinstance(compilation, Mapping):
        raise EngineOptionError("With `taps=`, `compilation_config=` is a dictionary: sites are added to what it says.")
    graphs = str(compilation.get("cudagraph_mode", "PIECEWISE")).rpartition(".")[2].upper()
    if graphs not in ("PIECEWISE", "NONE"):
        raise EngineOptionError(
            f"`cudagraph_mode={graphs}` puts a whole forward into one graph, which ends nowhere inside: with `taps=` it is "
            "'PIECEWISE', or 'NONE'."
        )
    cuts = compilation.get("splitting_ops")
    cuts = [*CompilationConfig._attention_ops, *_WRITING] if cuts is None else list(cuts)
    return {
        **options,
        "compilation_config": {**compilation, "cudagraph_mode": graphs, "splitting_ops": [*cuts, OPERATION]},
        "load_format": LOADER,
        "additional_config": {
            **(options.get("additional_config") or {}),
            FIELD: {"taps": [list(site) for site in sites], "load_format": options.get("load_format", "auto")},
        },
    }
