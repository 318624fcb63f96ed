"""The bodies of one trace on their way to an engine in this very process, where all that they read is the same over there.

One idea: a body that reads nothing but plain values, installed modules and envoys of its model could only get the same
values back out of bytes, so it needs none: envoys are looked up in the engine's model, and the globals that it reads are put
into a module of its own, as those that travel are. Whatever else a body reads (a tensor, a list, a function of the user's)
would be copied on the way, and goes it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from ..blocks import Body
from ..bypath import envoy_at, named
from ..trace import Tracer
from ..tree import Node
from ..wire.bodies import global_names, known_of, likeness, outer_names
from ..wire.origin import is_own
from ..wire.spaces import bare_module, facts_of, is_everywhere
from .sent import SentBodies, ServedTracer, decode_bodies, encode_bodies

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class LocalBodies:
    """The bodies of one trace, as they are.

    Args:
        tracer, bodies, alone: see `encode_bodies`.
    """

    def __init__(self, tracer: Tracer, bodies: Sequence[Body], alone: bool) -> None:
        self._tracer = tracer
        self._bodies = bodies
        self._alone = alone

    def encode(self) -> bytes:
        """Return the bytes that they would travel as."""
        return encode_bodies(self._tracer, self._bodies, alone=self._alone)

    def on(self, model: Any) -> SentBodies:
        """Return them, to be run on the engine's model."""
        node, root = self._tracer.model, model._root
        if named(node._root) != named(root):
            return decode_bodies(self.encode(), model)  # of this model, with other names
        tracer = ServedTracer.__new__(ServedTracer)
        there = _There(root, self._tracer, tracer)
        tracer.belong_to(there.value(node))
        made = {id(body): there.body(body) for body in self._bodies}
        return SentBodies(tracer, [made[id(body)] for body in self._bodies], self._alone)


def local_bodies(tracer: Tracer, bodies: Sequence[Body], saved: Collection[Any], alone: bool) -> LocalBodies | None:
    """Return the bodies of a trace as they are; None if something that they read is another thing once it has travelled.

    Args:
        tracer, bodies, saved, alone: see `encode_bodies`.
    """
    if saved or tracer.model._root.__dict__["_edits"]:
        return None
    unlike = {likeness(body): body for body in bodies}
    return LocalBodies(tracer, bodies, alone) if all(_is_the_same(body, tracer) for body in unlike.values()) else None


def _is_the_same(body: Body, tracer: Tracer) -> bool:
    """Say whether all that a body reads is the same wherever it is."""
    if type(body.real) is not dict or body.reads_anything or known_of(body.block).used.imports:
        return False
    root = tracer.model._root
    for value in (*_outer(body).values(), *_globals(body).values()):
        if isinstance(value, Node):
            if value._root is not root:
                return False
        elif isinstance(value, ModuleType):
            if sys.modules.get(value.__name__) is not value or is_own(value.__name__):
                return False
        elif type(value) not in _PLAIN and value is not tracer:
            return False
    return True


def _outer(body: Body) -> dict[str, Any]:
    return {name: body.outer[name] for name in outer_names(body)}


def _globals(body: Body) -> dict[str, Any]:
    return {name: body.real[name] for name in global_names(body) if name in body.real}


class _There:
    """What is where the engine's model is, for bodies of one trace.

    Args:
        root: the model.
        tracer, served: the trace here, and there.
    """

    def __init__(self, root: Node, tracer: Tracer, served: ServedTracer) -> None:
        self._root = root
        self._tracer = tracer
        self._served = served
        self._bodies: dict[Any, Body] = {}
        self._modules: dict[int, dict[str, Any]] = {}

    def body(self, body: Body) -> Body:
        """Return a body as it is there. What was around those that are alike is one thing, as it is here."""
        like = self._bodies.get(same := likeness(body))
        if like is None:
            around = self._module(body.real)
            if around is not body.real:
                around.update(self._values(_globals(body)))
            like = self._bodies[same] = Body(body.block, self._values(_outer(body)), around)
        return Body(body.block, like.outer, like.real)

    def value(self, value: Any) -> Any:
        """Return what stands for a value there."""
        if isinstance(value, Node):
            return envoy_at(self._root, value._relative())
        return self._served if value is self._tracer else value

    def _values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.value(value) for name, value in values.items()}

    def _module(self, around: dict[str, Any]) -> dict[str, Any]:
        """Return the globals of a module that is nobody else's, with nothing in it; of an installed one, its own."""
        if is_everywhere(around):
            return around
        made = self._modules.get(id(around))
        if made is None:
            made = self._modules[id(around)] = vars(bare_module(*facts_of(around)))
        return made
