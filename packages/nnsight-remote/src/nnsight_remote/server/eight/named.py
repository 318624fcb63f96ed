"""Which of our models a client of nnsight 0.8 means, and what it is told of those that are there.

The one idea: their key says which checkpoint it is, of which revision, and for which task. It is compared part by part
with what the server was told to load; where that says nothing, as for a function that makes a model, any will do: whether
the modules are the same is found out when the block is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ..admission import Refused
from ..models import Model

_CLASS = "nnsight.modeling.transformers.TransformersModel"
#: The tasks that models of a family are used for, the usual one first.
_TASKS = {
    "LanguageModel": ("text-generation", "text2text-generation", "summarization", "translation"),
    "VisionLanguageModel": ("image-text-to-text", "any-to-any", "image-to-text"),
}
#: Families that are not of transformers.
_OTHERS = frozenset(("NNsight", "DiffusionModel", "VLLM"))
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
_STATES = {"ready": "RUNNING", "busy": "RUNNING", "loading": "DEPLOYING", "cold": "NOT_STARTED", "failed": "UNHEALTHY"}


def find(key: Any, models: Iterable[Model]) -> Model:
    """Return the model that a key means; raise Refused."""
    said = _read(key)
    offered = [model for model in models if model.spec.family not in _OTHERS]
    for same in (_is_called, _is_bare):
        named = [model for model in offered if same(model, said["repo_id"])]
        if named:
            break
    there = ", ".join(model.spec.name for model in offered) or "none"
    if not named:
        raise Refused(404, "model", f"there is no model {said['repo_id'][:200]!r} here; there are: {there}")
    for part, fits in (("revision", _has_revision), ("task", _has_task)):
        fitting = [model for model in named if fits(model, said.get(part))]
        if not fitting:
            asked = str(said.get(part))[:100]
            raise Refused(404, "model", f"{said['repo_id'][:200]!r} is not here for the {part} {asked!r}")
        named = fitting
    if len(named) > 1:
        names = ", ".join(model.spec.name for model in named)
        raise Refused(
            409, "model", f"{said['repo_id'][:200]!r} is here as several models ({names}), and a key names none"
        )
    return named[0]


def deployments(models: Iterable[Model]) -> dict[str, dict[str, Any]]:
    """Describe the models as NDIF describes its own."""
    return {model.spec.name: _deployment(model) for model in models if model.spec.family not in _OTHERS}


def _deployment(model: Model) -> dict[str, Any]:
    spec = model.spec
    # A folder's name is nobody's business, and no client asks for it.
    name = spec.source if spec.family and _HUB_ID.fullmatch(spec.source) else spec.name
    said: dict[str, Any] = {"repo_id": name, "revision": spec.options.get("revision")}
    if spec.options.get("trust_remote_code"):
        said["trust_remote_code"] = True
    said["task"] = spec.options.get("task") or _TASKS.get(spec.family, _TASKS["LanguageModel"])[0]
    return {
        "trust_remote_code": False,
        **said,
        "model_key": f"{_CLASS}:{json.dumps(said)}",
        "deployment_level": "HOT" if model.state in ("ready", "busy", "loading") else "WARM",
        "application_state": _STATES[model.state],
    }


def _read(key: Any) -> dict[str, Any]:
    cls, colon, text = key.partition(":") if isinstance(key, str) else ("", "", "")
    if colon and cls != _CLASS:
        raise Refused(
            404,
            "model",
            f"{cls[:200]!r} is not run for clients of nnsight 0.8 here, only models of transformers; upgrade",
        )
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("repo_id"), str):
        raise Refused(400, "model", "the key of the model is not what nnsight 0.8 writes")
    return said


def _is_called(model: Model, name: str) -> bool:
    return name in (model.spec.name, model.spec.source)


def _is_bare(model: Model, name: str) -> bool:
    """The hub knows old models by a bare name, and their clients write its owner's before it."""
    return name.rpartition("/")[2] in (model.spec.name, model.spec.source)


def _has_revision(model: Model, asked: Any) -> bool:
    return (model.spec.options.get("revision") or "main") == (asked or "main")


def _has_task(model: Model, asked: Any) -> bool:
    told = model.spec.options.get("task")
    known = (told,) if told else _TASKS.get(model.spec.family)
    return known is None or asked is None or asked in known
