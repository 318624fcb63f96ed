"""Loading a pipeline from a hub id or a local folder: its light parts at once, its weights when they are needed.

Everything is loaded by diffusers' own `from_pretrained`. Before the weights are there, the modules are built from their
configurations on the meta device, which takes no memory, and handed to it as if a user had brought them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from transformers import PreTrainedModel

from nnsight import LoadError, NNsightWarning
from nnsight_diffusers import toy
from nnsight_diffusers.completeness import missing
from nnsight_diffusers.components import Components

#: Pipelines that travel in this package, by the name that loads them.
EMBEDDED: dict[str, Callable[[], Path]] = {"nnsight/toy-shapes": toy.path}

#: What says where files are, for each part of a pipeline alike.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")

#: What is about weights alone, and so of no concern where there are none.
_OF_WEIGHTS = (
    "device_map",
    "disable_mmap",
    "dtype",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "quantization_config",
    "torch_dtype",
    "use_safetensors",
    "variant",
)

_AGAIN = "Nothing has changed: the tree can still be explored, and `model.dispatch()` tries again."


def source_of(model: Any, automodel: Any, options: dict[str, Any]) -> torch.nn.Module | Checkpoint:
    """Find out where a model comes from.

    Args:
        model: a hub id, a local folder, the name of an embedded model, or a pipeline.
        automodel: the class to load with, itself or by its name in diffusers.
        options: passed to `from_pretrained`.

    Raises:
        TypeError: the model is none of these.
        ValueError: its name is empty.
    """
    if isinstance(model, DiffusionPipeline):
        if options:
            warnings.warn(
                f"the pipeline is loaded already, so these options for loading change nothing: {', '.join(options)}",
                NNsightWarning,
                stacklevel=4,
            )
        return Components(model)
    if not isinstance(model, (str, os.PathLike)):
        hint = ": trace it with `NNsight`, or give the pipeline" if isinstance(model, torch.nn.Module) else ""
        raise TypeError(
            f"a diffusion model is a hub id, a local folder or a diffusers.DiffusionPipeline, not {type(model).__name__}"
            + hint
        )
    where = os.fspath(model)
    if not where:
        raise ValueError("a model's name is empty: give a hub id, a local folder, or a pipeline")
    if isinstance(automodel, str):
        automodel = getattr(diffusers, automodel)
    embedded = EMBEDDED.get(where)
    return Checkpoint(automodel, where if embedded is None else str(embedded()), dict(options))


class Checkpoint:
    """Where a pipeline's parts are, and how they are loaded: see `nnsight.plugin.Loadable`.

    Args:
        automodel: the class whose `from_pretrained` loads it.
        where: what that is given.
        options: passed to it.
    """

    def __init__(self, automodel: Any, where: str, options: dict[str, Any]) -> None:
        self.automodel = automodel
        self.where = where
        self.options = options

    @property
    def _hub(self) -> dict[str, Any]:
        """The options that say where files are."""
        return {name: self.options[name] for name in _HUB_OPTIONS if name in self.options}

    def build(self) -> Components:
        """Make the pipeline with modules on the meta device; what is light (tokenizers, the scheduler) is there.

        Raises:
            LoadError: there is no pipeline there.
        """
        try:
            index = DiffusionPipeline.load_config(self.where, **self._hub)
        except OSError as error:
            if Path(self.where).is_dir() and not Path(self.where, "model_index.json").exists():
                raise LoadError(
                    f"{self.where} holds no pipeline: there is no model_index.json in it. For a model of transformers, use "
                    "`LanguageModel` or `TransformersModel`; for one component of diffusers, load it and wrap it with "
                    "`NNsight`."
                ) from error
            raise
        modules = {
            name: self._sketch(name, kind[0], kind[1])
            for name, kind in index.items()
            if isinstance(kind, (list, tuple)) and len(kind) == 2 and name not in self.options
        }
        light = {name: value for name, value in self.options.items() if name not in _OF_WEIGHTS}
        made = {name: module for name, module in modules.items() if module is not None}
        with _without_bar():
            return Components(self.automodel.from_pretrained(self.where, **light, **made))

    def _sketch(self, name: str, library: str | None, kind: str | None) -> torch.nn.Module | None:
        """Build one component without weights; None for what is no module."""
        if library is None or kind is None:
            return None
        cls: Any = _class_of(library, kind)
        if cls is None or not issubclass(cls, torch.nn.Module):
            return None
        if issubclass(cls, PreTrainedModel):
            said = cls.config_class.from_pretrained(self.where, subfolder=name, **self._hub)
            with torch.device("meta"):
                module: torch.nn.Module = cls._from_config(said, dtype=self._dtype(name, torch.float32))
        else:
            said = cls.load_config(self.where, subfolder=name, **self._hub)
            with torch.device("meta"):
                module = cls.from_config(said)
            # Past diffusers' own `to`, which warns of weights that would lose something; here are none.
            torch.nn.Module.to(module, self._dtype(name, torch.float32))
        return module.eval()

    def _dtype(self, name: str, default: torch.dtype) -> torch.dtype:
        """Return in which type a component's weights will be, as `from_pretrained` is told."""
        said = self.options.get("dtype", self.options.get("torch_dtype"))
        if isinstance(said, dict):
            said = said.get(name, said.get("default"))
        return said if isinstance(said, torch.dtype) else default

    def load(self) -> Components:
        """Load the pipeline with its weights.

        Raises:
            LoadError: they cannot be read, or are not all there.
        """
        try:
            found = Components(self.automodel.from_pretrained(self.where, **self.options))
        except (ValueError, RuntimeError, EOFError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise LoadError(f"the weights of {self.where} cannot be loaded: {error}. {_AGAIN}") from error
        self._refuse_missing(found)
        return found

    def _refuse_missing(self, found: Components) -> None:
        """Raise if weights were drawn anew because the checkpoint does not have them."""
        folder = Path(self.where)
        if not folder.is_dir():
            folder = Path(DiffusionPipeline.download(self.where, **{**self._hub, "local_files_only": True}))
        for name, module in found.named_children():
            if name in self.options or not (folder / name).is_dir():
                continue
            which = {"variant": self.options["variant"]} if self.options.get("variant") else {}
            absent = missing(module, folder / name, which)
            if absent:
                some = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
                raise LoadError(
                    f"{self.where} does not have all weights of its {name}: {some}. {type(module).__name__} would run with "
                    f"random numbers there. If that is what you want, load it yourself and pass it: `{name}=`. {_AGAIN}"
                )


def _class_of(library: str, name: str) -> type | None:
    """Return the class of a component, as model_index.json names it: of a library, or of a pipeline's own module."""
    own = getattr(diffusers.pipelines, library, None)
    module = own if own is not None else importlib.import_module(library.split(".")[0])
    found = getattr(module, name, None)
    return found if isinstance(found, type) else None


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Let diffusers show no bar for loading parts that take a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
