"""`read`: from the bytes that a client of nnsight 0.8 sent to a request that can be run.

The one idea: a pickle says by import path what its objects are made of, and nothing of nnsight 0.8 is installed here; so
what it names is looked up in a table of what stands for it, and what of 0.8 is not there is refused by its name. To read
it is to run it: this happens where the block itself runs, with as little power.

relies on: the import paths and the states of objects of nnsight 0.8.1 (`fabric/stand_ins.py`)
"""

from __future__ import annotations

import builtins
import io
import pickle
import pkgutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import zstandard

from nnsight import NNsightError
from nnsight.plugin import Envoy, Request, WireError, become, block_of_text

from ...fabric import stand_ins
from ...fabric.operations import Operations
from .envelope import Envelope, opened
from .functions import Texts, fill, importer, loader
from .mismatch import check_block, check_model
from .results import write
from .theirs import Absent, EnvoyOfTheirs, Theirs, TraceOfTheirs, getattr_of, method_of_theirs

_ENVOYS = (
    *(stand_ins.ENVOY, stand_ins.GENERATOR, stand_ins.MODEL),
    *("nnsight.modeling.language:LanguageModel", "nnsight.modeling.vlm:VisionLanguageModel"),
)
_LOOKED_AT = (stand_ins.SESSION, stand_ins.INFO, stand_ins.FRAME, stand_ins.MEDIATOR)
#: Packages by which a pickle says how things are made, beside those that a block may import.
_PLUMBING = frozenset(("builtins", "copyreg", "cloudpickle", "_codecs", "pkgutil", "__main__"))
_PARTS = {
    "Tokenizer": "tokenizer",
    "Processor": "processor",
    "ImageProcessor": "image_processor",
    "FeatureExtractor": "feature_extractor",
    "Pipeline": "pipeline",
}


def read(data: bytes, model: Any, check: Callable[[str], None] = lambda name: None) -> Received:
    """Read a stored request that is to run on a model. This runs code of whoever sent it.

    Args:
        data: what the server stored.
        model: the model.
        check: raises ImportError for a package that blocks may not import.

    Raises:
        WireError: it needs what is not here, or says what is not understood here.
    """
    envelope, blob = opened(data)
    check_model(model)
    texts = Texts()
    try:
        reader = Reader(_unpacked(blob, envelope), model, check, texts)
        whole = reader.load()
        tracer, (source, outer, inner) = whole
        if not isinstance(tracer, (TraceOfTheirs, Theirs)):
            raise WireError("the request holds no tracer")
        code = tracer.info.frame.f_code  # type: ignore[union-attr]  # what theirs holds
        body = reader.block((source, outer, inner), str(code.co_filename), str(code.co_name))
        return Received(envelope, tracer, model, body, inner, texts)
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        texts.forget()
        raise WireError(f"the request is not what nnsight 0.8 writes, or of another version of it: {error}") from error
    except BaseException:
        texts.forget()
        raise


class Received(Request):
    """A block of nnsight 0.8, to be run here."""

    def __init__(
        self, envelope: Envelope, tracer: Any, model: Any, body: Any, inner: dict[str, Any], texts: Texts
    ) -> None:
        is_trace = isinstance(tracer, TraceOfTheirs)
        super().__init__(tracer.envoy if is_trace else model, (), {}, None, not is_trace)
        self.envelope = envelope
        self.body = body
        self.names = body.names()
        # Over there a value that the block only reads is a result as well, if it is saved.
        self.names.update(inner)
        self._tracer = tracer if is_trace else None
        # An error of the block is told with the user's lines, so they stay as long as the request does.
        weakref.finalize(self, texts.forget)

    def open(self) -> Any:
        """Return the tracer that came along, which the block may have under several names."""
        return self._tracer or super().open()

    def replay(self, look: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
        """Run the block, and return what it saved, by name."""
        with _set_up(self.model, self.envelope.env):
            return super().replay(look)

    def encode(self, saved: dict[str, Any]) -> bytes:
        """Write what it saved, as its client reads it."""
        return write(saved, compress=self.envelope.compress)


class Reader(pickle.Unpickler):
    """Reads one request."""

    def __init__(self, data: bytes, model: Any, check: Callable[[str], None], texts: Texts) -> None:
        super().__init__(io.BytesIO(data))
        self.model = model
        self._check = check
        self._texts = texts
        self._operations = Operations(model)
        self._bases: dict[int, tuple[Any, Any]] = {}
        self._known: dict[str, Any] = {
            **{path: type(path.partition(":")[2], (EnvoyOfTheirs,), {"reader": self}) for path in _ENVOYS},
            **dict.fromkeys(_LOOKED_AT, Theirs),
            stand_ins.TRACE: TraceOfTheirs,
            stand_ins.LOAD_FUNCTION: loader(texts, self._operations),
            stand_ins.FILL_FUNCTION: fill,
            "builtins:getattr": getattr_of,
            "pkgutil:resolve_name": self._resolve,
            "cloudpickle.cloudpickle:subimport": importer(check),
            "torch.storage:_load_from_bytes": _storage,
            **{theirs: pkgutil.resolve_name(ours) for ours, theirs in stand_ins.SAME.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for something that the pickle names."""
        known = self._known.get(f"{module}:{name}")
        if known is not None:
            return known
        cls, _, method = name.rpartition(".")
        if f"{module}:{cls}" in _ENVOYS:
            return method_of_theirs(method)
        package = module.partition(".")[0]
        if package == "nnsight" and module != "nnsight":
            raise WireError(f"the block holds something of nnsight 0.8 that is not understood here: {module}.{name}")
        if package not in _PLUMBING:
            self._check(module)
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        """Return what the server has, by the name that it goes by."""
        kind, _, path = str(name).partition(":")
        if kind == "Module":
            return Absent(path) if self.is_absent(path) else self._module(path)
        if kind == "Interleaver":
            return Theirs()
        if kind not in _PARTS:
            raise WireError(f"the block refers to {str(name)[:200]!r}, which is not known here")
        attribute = _PARTS[kind]
        held = attribute in vars(self.model) or hasattr(type(self.model), attribute)
        found = getattr(self.model, attribute, None) if held else None
        return Absent(kind) if found is None else found

    def base(self, rename: Any) -> Any:
        """Return the model under the aliases that the client gave it."""
        if not rename:
            return self.model
        if id(rename) not in self._bases:
            made = Theirs()
            become(made, self.model, rename)
            self._bases[id(rename)] = (rename, made)
        return self._bases[id(rename)][1]

    def envoy(self, base: Any, path: str) -> Envoy:
        """Return the envoy of a module, by its path below the root."""
        try:
            found = base.get(path)
        except AttributeError:
            found = None
        if not isinstance(found, Envoy):
            raise WireError(f"the model here has no `{path}`, so it is another than the client's")
        return found

    def is_absent(self, path: str) -> bool:
        """Whether a module is only part of their wrapper, and not of ours."""
        name = path.partition(".")[2].partition(".")[0]
        return name == "generator" and not isinstance(getattr(self.model, name, None), Envoy)

    def block(self, reduced: tuple[str, dict[str, Any], dict[str, Any]], filename: str, name: str) -> Any:
        """Make a block of its text and its names."""
        source, outer, inner = reduced
        check_block(source, filename, {**outer, **inner}, self._operations)
        self._texts.show(filename, source)
        around = {"__name__": "__main__", "__builtins__": builtins, **outer}
        return block_of_text(source, filename=filename, name=name, outer=around, inner=inner)

    def _module(self, path: str) -> torch.nn.Module:
        below = path.partition(".")[2]
        return self.envoy(self.model, below)._module if below else self.model._module

    def _resolve(self, path: str) -> Any:
        module, _, name = path.partition(":")
        return self.find_class(module, name)


def _unpacked(blob: bytes, envelope: Envelope) -> bytes:
    if not envelope.compress:
        return blob
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    except zstandard.ZstdError as error:
        raise WireError(f"the request arrived damaged: {error}") from error


def _storage(data: bytes) -> Any:
    """Read the numbers of a tensor; those of a device that is not here come to lie on the CPU."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


@contextmanager
def _set_up(model: Any, env: dict[str, Any]) -> Iterator[None]:
    """Set for one run what the client asks of the model: how attention is computed, as it does it."""
    if env.get("peft"):
        raise NNsightError(
            "the client's model has an adapter (`peft=`), and this server's has none; merge it into the model"
        )
    module, wanted = model._module, env.get("attn_implementation")
    before = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if wanted is None or before is None or wanted == before:
        yield
        return
    module.set_attn_implementation(wanted)
    try:
        if module.config._attn_implementation != wanted:
            raise NNsightError(f"the model here cannot compute attention by {wanted!r}, as the client's does")
        yield
    finally:
        module.set_attn_implementation(before)
