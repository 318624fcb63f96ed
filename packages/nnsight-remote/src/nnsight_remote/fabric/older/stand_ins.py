"""What stands in a payload for objects of nnsight 0.7: their classes by path, and what they hold.

relies on: the import paths below, and the names of what their objects hold, nnsight 0.7.0
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..stand_ins import Path, Paths, Thing

ENVOY = "nnsight.intervention.envoy:Envoy"
ALIASES = "nnsight.intervention.envoy:Aliaser"
MODEL = "nnsight.modeling.language:LanguageModel"
TRACE = "nnsight.modeling.mixins.remoteable:RemoteInterleavingTracer"
SESSION = "nnsight.modeling.mixins.remoteable:RemoteTracer"
INFO = "nnsight.intervention.tracing.base:Tracer.Info"
BATCHER = "nnsight.intervention.batching:Batcher"
MEDIATOR = "nnsight.intervention.interleaver:Mediator"
REQUEST = "nnsight.schema.request:RequestModel"
MAKE_FUNCTION = "nnsight.intervention.serialization:make_function"
FILL_FUNCTION = "nnsight.intervention.serialization:_source_function_setstate"
MAKE_FRAME = "nnsight.intervention.serialization:make_frame"


class OlderPaths(Paths):
    """The paths of one payload."""

    version = "0.7"
    same = {
        "nnsight._core.saved:save": "nnsight.intervention.tracing.globals:save",
        "nnsight._core.errors:OutOfOrderError": "nnsight.intervention.interleaver:Mediator.OutOfOrderError",
    }


@dataclass(eq=False)
class Made:
    """What a call of something over there returns."""

    path: Path
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Function:
    """A function over there, by its text.

    Attributes:
        source: the text, at the left margin.
        name, filename, first: what it is called in tracebacks, its file, and the number of its first line there.
        names: the values of the names that it uses, itself among them if it calls itself.
        defaults, keywords: the defaults of its parameters.
        qualname, module, doc: as the function says.
    """

    source: str
    name: str
    filename: str
    first: int = 1
    names: dict[str, Any] = field(default_factory=dict)
    defaults: tuple[Any, ...] | None = None
    keywords: dict[str, Any] | None = None
    qualname: str = ""
    module: str = "__main__"
    doc: str | None = None


def info(paths: Paths, source: Sequence[str], start: int, filename: str, number: int) -> Thing:
    """Make what a tracer knows of its block.

    Args:
        paths: the paths of the payload.
        source: the lines of the function that the block became.
        start: how many lines of the file stand before it, from the first line of its file on.
        filename: the file of the block.
        number: what tells this source from every other: over there sources are kept by it from job to job.
    """
    frame = Made(paths[MAKE_FRAME], (filename, 1, "<module>"))
    return paths.thing(
        INFO, source=list(source), start_line=start, filename=filename_of(number), cache_key=number, frame=frame
    )


def number_of(source: str, filename: str) -> int:
    """Return the number of a source."""
    return int.from_bytes(hashlib.sha256(f"{filename}\0{source}".encode()).digest()[:7], "big")


def filename_of(number: int) -> str:
    """Return the file that a function of ours claims to be of; by its first letters 0.7 knows the frames of blocks."""
    return f"<nnsight {number}>"
