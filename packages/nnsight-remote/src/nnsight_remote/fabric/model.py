"""What NDIF is told about a model: which one it is, and what of it the server has.

The one idea: the model does not travel. Its key names a checkpoint and a task, and the tokenizer and the like are there.
"""

from __future__ import annotations

import json
from typing import Any

from nnsight.plugin import WireError

from .stand_ins import MODEL, Known

#: What a pipeline of transformers loads for a task besides the model, by the attribute, and the name that it goes by.
_PREPROCESSORS = {
    "tokenizer": "Tokenizer",
    "processor": "Processor",
    "image_processor": "ImageProcessor",
    "feature_extractor": "FeatureExtractor",
}
#: What it means that a key does not say something.
_USUAL = {"revision": "main"}
#: Tasks whose pipeline has one processor for everything, and nothing else.
_ONE_PROCESSOR = frozenset(("image-text-to-text", "any-to-any"))


def task_of(model: Any) -> str:
    """Return the task of a model, as pipelines of transformers name it.

    Raises:
        WireError: it is no model of transformers.
    """
    task = vars(model).get("task") or getattr(type(model), "task", None)
    if isinstance(task, str):
        return task
    names = {cls.__name__ for cls in type(model).__mro__}
    if "VisionLanguageModel" in names:
        return "image-text-to-text"
    if "LanguageModel" in names:
        return "text-generation"
    raise WireError(
        f"NDIF runs models of transformers, and this one is a {type(model).__name__}; a server of your own runs any: "
        "`nnsight serve MODEL`, and `remote='http://localhost:8787'`"
    )


def key_of(model: Any, called: str = "") -> str:
    """Return the key by which NDIF knows a model.

    Args:
        model: the model.
        called: what it is called on the hub, if not what it was loaded from.
    """
    name = called or getattr(model, "name_or_path", "")
    if not name:
        raise WireError(
            "nothing says which model of the hub this is, so NDIF cannot find it: load it by its name, or give that as "
            "`model=` to the backend"
        )
    options = getattr(model, "load_options", {})
    said: dict[str, Any] = {"repo_id": name, "revision": options.get("revision")}
    if options.get("trust_remote_code"):
        said["trust_remote_code"] = True
    said["task"] = task_of(model)
    return MODEL.replace(":", ".") + ":" + json.dumps(said)


def check_key(model: Any, key: str) -> str:
    """Return the key of a model that the server offers, or refuse it: another task or revision is another model.

    Raises:
        WireError: says in what they differ.
    """
    try:
        there = json.loads(key.partition(":")[2])
    except ValueError:
        raise WireError(f"{key!r} is no key of a model at NDIF") from None
    ours = json.loads(key_of(model, str(there.get("repo_id"))).partition(":")[2])
    for name in ("task", "revision"):
        if (there.get(name) or _USUAL.get(name)) != (ours.get(name) or _USUAL.get(name)):
            raise WireError(
                f"the {name} of this model is {ours.get(name)!r}, and NDIF runs it with {there.get(name)!r}; load it with "
                f"`{name}={there.get(name)!r}`"
            )
    return key


def env_of(model: Any) -> dict[str, Any]:
    """Return what the server is to set for this request: how attention is computed, so that the numbers are the same."""
    if getattr(model._module, "peft_config", None):
        raise WireError("a model with an adapter does not travel to NDIF; merge the adapter, or run your own server")
    implementation = getattr(getattr(model._module, "config", None), "_attn_implementation", None)
    return {"attn_implementation": implementation} if isinstance(implementation, str) else {}


def known_of(model: Any) -> dict[int, Known]:
    """Return what the server has of a model besides its modules, by the identity of what we have."""
    task = task_of(model)
    found: dict[int, Known] = {}
    for attribute, name in _PREPROCESSORS.items():
        ours = _part(model, attribute)
        if ours is not None and (attribute == "processor" or task not in _ONE_PROCESSOR):
            found[id(ours)] = Known(name)
    return found


def facts_of(model: Any, known: dict[int, Known]) -> dict[str, Any]:
    """Return what a model of theirs holds besides its tree."""
    parts = {attribute: known.get(id(_part(model, attribute))) for attribute in _PREPROCESSORS}
    name = getattr(model, "name_or_path", None) or None
    return {
        "task": task_of(model),
        "pipeline": Known("Pipeline"),
        **parts,
        "peft": None,
        "repo_id": name,
        "revision": None,
    }


def _part(model: Any, attribute: str) -> Any:
    """Return what a model has under a name; not what its module has."""
    held = attribute in vars(model) or hasattr(type(model), attribute)
    return getattr(model, attribute, None) if held else None
