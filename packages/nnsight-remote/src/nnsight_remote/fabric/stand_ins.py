"""What stands in a payload for objects of nnsight 0.8: their classes by path, and what they hold.

The one idea: a pickle says how objects are made; nobody who writes one needs the classes. So nothing of nnsight 0.8 is
installed here, and this is the one place that knows what its classes are called and what their objects hold.

relies on: the import paths below, and the names of what their objects hold, nnsight 0.8.1
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

ENVOY = "nnsight.intervention.envoy:Envoy"
GENERATOR = "nnsight.modeling.transformers:GeneratorEnvoy"
MODEL = "nnsight.modeling.transformers:TransformersModel"
TRACE = "nnsight.intervention.tracer:InterleavingTracer"
SESSION = "nnsight.tracing.tracer:Tracer"
INFO = "nnsight.tracing.tracer:Tracer.Info"
FRAME = "nnsight.tracing.util:SerializedFrame"
MEDIATOR = "nnsight.intervention.interleaver:Mediator"
ITERATIONS = "nnsight.intervention.iterator:Iterations"
LOAD_FUNCTION = "nnsight.intervention.serialization:_load_function"
FILL_FUNCTION = "nnsight.intervention.serialization:_fill"

#: What both have, under our path and under theirs.
SAME = {
    "nnsight._core.saved:save": "nnsight.tracing.tracer:save",
    "nnsight._core.errors:OutOfOrderError": "nnsight.intervention.interleaver:OutOfOrderError",
}


class Path:
    """A name over there: a class or a function, found by its import path when the payload is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> None:
        """Stand where a pickle wants something that can be called; it never is, here."""
        raise TypeError(f"{self.path} is not on this machine")


class Thing:
    """An object over there: its class, and what it holds, which may refer to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {}


class Method:
    """A method of an object over there, bound to it."""

    def __init__(self, thing: Thing, name: str) -> None:
        self.thing = thing
        self.name = name


class Known:
    """Something that the server has, by the name that it goes by."""

    def __init__(self, name: str) -> None:
        self.name = name


class Paths(dict[str, Path]):
    """The paths of one payload, each written once.

    Attributes:
        version: the release of nnsight that they are of, as messages name it.
        same: what both have, under our path and under theirs.
    """

    version = "0.8"
    same: Mapping[str, str] = SAME

    def __missing__(self, path: str) -> Path:
        made = self[path] = Path(path)
        return made

    def thing(self, path: str, **state: Any) -> Thing:
        """Make an object of a class."""
        made = Thing(self[path])
        made.state.update(state)
        return made


def frame(paths: Paths, filename: str, name: str) -> Thing:
    """Make what a tracer keeps of the frame that its block stands in."""
    code = types.SimpleNamespace(co_filename=filename, co_firstlineno=1, co_name=name)
    return paths.thing(FRAME, f_locals={}, f_globals={}, f_code=code)
