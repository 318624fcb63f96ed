"""The bodies of one trace on their way to an engine in this very process, where all that they read is the same over there.

One idea: a body that reads nothing but plain values, installed modules and envoys of its model could only get the same
values back out of bytes, so it needs none: envoys are looked up in the engine's model, and the globals that it reads are put
into a module of its own, as those that travel are. Whatever else a body reads (a tensor, a list, a function of the user's)
would be copied on the way, and goes it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from ..blocks import Body
from ..trace import Tracer
from ..tree import Node
from ..wire.bodies import known_of, likeness
from ..wire.origin import is_own
from .sent import SentBodies, ServedTracer, decode_bodies, encode_bodies

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
#: What a module that comes along says of itself.
_FACTS = ("__name__", "__package__", "__file__")


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
        mine = node._root
        if (
            mine._naming()._given[0] != root._naming()._given[0]
            or mine.__dict__["_classes"] != root.__dict__["_classes"]
        ):
            return decode_bodies(self.encode(), model)  # of this model, with other names
        tracer = ServedTracer.__new__(ServedTracer)
        there = _There(root, self._tracer, tracer)
        traced = there.value(node)
        Tracer.__init__(tracer, traced, traced._family(), (), {})
        known: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {}
        made: dict[int, Body] = {}
        for body in self._bodies:
            if id(body) not in made:
                # A loop makes many with the same values around them: that these are the same has to be seen over there.
                around = known.get(same := likeness(body))
                if around is None:
                    around = known[same] = there.outer(body), there.around(body)
                made[id(body)] = Body(body.block, *around)
        return SentBodies(tracer, [made[id(body)] for body in self._bodies], self._alone)


def local_bodies(tracer: Tracer, bodies: Sequence[Body], saved: Collection[Any], alone: bool) -> LocalBodies | None:
    """Return the bodies of a trace as they are; None if something that they read is another thing once it has travelled.

    Args:
        tracer, bodies, saved, alone: see `encode_bodies`.
    """
    if saved or tracer.model._root.__dict__["_edits"]:
        return None
    seen: set[Any] = set()
    for body in bodies:
        if body.block in seen and id(body.outer) in seen:
            continue
        seen.update((body.block, id(body.outer)))
        if type(body.real) is not dict or not _is_the_same(body, tracer):
            return None
    return LocalBodies(tracer, bodies, alone)


def _is_the_same(body: Body, tracer: Tracer) -> bool:
    """Say whether all that a body reads is the same wherever it is."""
    known, outer, around = known_of(body.block), body.outer, body.real
    if body.reads_anything or known.used.imports:
        return False
    read = [value for name, value in outer.items() if name not in known.bound]
    read += [
        around[name] for name in known.used.names if name in around and name not in outer and name not in known.bound
    ]
    root = tracer.model._root
    for value in read:
        if isinstance(value, Node):
            if value._root is not root:
                return False
        elif isinstance(value, ModuleType):
            if sys.modules.get(value.__name__) is not value or is_own(value.__name__):
                return False
        elif type(value) not in _PLAIN and value is not tracer:
            return False
    return True


class _There:
    """What values are in the engine's model."""

    def __init__(self, root: Node, tracer: Tracer, served: ServedTracer) -> None:
        self._root = root
        self._tracer = tracer
        self._served = served

    def value(self, value: Any) -> Any:
        if isinstance(value, Node):
            path = value._relative()
            return self._root._walk(path) if path else self._root
        return self._served if value is self._tracer else value

    def outer(self, body: Body) -> dict[str, Any]:
        bound = known_of(body.block).bound
        return {name: self.value(value) for name, value in body.outer.items() if name not in bound}

    def around(self, body: Body) -> dict[str, Any]:
        """Return the globals that a body reads, in a module that is nobody else's."""
        real: Mapping[str, Any] = body.real
        name = real.get("__name__")
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is not None and vars(module) is real and not is_own(name):
            return vars(module)
        made = vars(ModuleType(name if isinstance(name, str) else "unnamed"))
        made.update({fact: real[fact] for fact in _FACTS if isinstance(real.get(fact), str)})
        made["__builtins__"] = dict(vars(builtins))
        known = known_of(body.block)
        read = [
            name for name in known.used.names if name in real and name not in body.outer and name not in known.bound
        ]
        made.update({name: self.value(real[name]) for name in read})
        return made
