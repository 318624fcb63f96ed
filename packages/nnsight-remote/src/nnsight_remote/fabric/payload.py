"""A block as nnsight 0.8 sends it: `encode` writes what NDIF's server reads.

The one idea: the request is captured as for our own wire, and said in their words: their tracer, their tree, the text of the
block and the values of its names. What they have no words for is refused here, where the user can still change it.
"""

from __future__ import annotations

import io
from typing import Any

import zstandard

from nnsight.plugin import Envoy, Request, WireError, names_of_block

from . import language, stand_ins
from .model import facts_of, known_of
from .pickler import Pickler
from .stand_ins import Known, Method, Paths, Thing
from .text import of_block
from .tree import Trees

LEVEL = 6  # that of their own client


def encode(request: Request, *, compress: bool = True) -> bytes:
    """Write a request for a server that runs nnsight 0.8.

    Args:
        request: the block.
        compress: whether the server is told that it is compressed, which their clients do by default.

    Raises:
        WireError: something in it cannot travel, or is not in their language. The message says what, and what to do.
    """
    data = Writer(request).write()
    return zstandard.ZstdCompressor(level=LEVEL).compress(data) if compress else data


class Writer:
    """Writes one request; an older nnsight is told the same in its own words."""

    dialect = language.EIGHT

    def __init__(self, request: Request) -> None:
        self._request = request
        self._paths, self._known, self._trees = self._model(request.node.root)

    def write(self) -> bytes:
        """Write it."""
        request = self._request
        language.check(request, self.dialect)
        outer, inner = names_of_block(request.body)
        tracer = self._tracer()
        target = request.body.target
        if target is not None:
            inner = {**inner, target: tracer}
        elif request.body.has_target:
            raise WireError("what stands after `as` has to be a plain name where the block runs on NDIF")
        names = {**outer, **inner, "the input": (request.inputs, request.kwargs)}
        self._fill_edits()
        whole = self._whole(tracer, outer, inner)
        try:
            return self._dump(whole)
        except Exception as error:
            raise self._explained(names, error) from error

    def _model(self, root: Any) -> tuple[Paths, dict[int, Known], Trees]:
        paths, known = Paths(), known_of(root)
        return paths, known, Trees(root, facts_of(root, known), paths)

    def _whole(self, tracer: Thing, outer: dict[str, Any], inner: dict[str, Any]) -> Any:
        return tracer, (of_block(self._request.body), outer, inner)

    def _tracer(self) -> Thing:
        request, paths = self._request, self._paths
        place = stand_ins.frame(paths, request.body.filename, "<module>")
        info = paths.thing(stand_ins.INFO, frame=place)
        if request.session:
            return paths.thing(stand_ins.SESSION, info=info)
        envoy = self._trees.thing(request.node)
        # A bar over the steps is shown where the generation runs, and nobody looks at that.
        kwargs = {name: value for name, value in request.kwargs.items() if name != "progress"}
        return paths.thing(
            stand_ins.TRACE, info=info, envoy=envoy, fn=self._method(), args=request.inputs, kwargs=kwargs
        )

    def _method(self) -> Any:
        method, node = self._request.method, self._request.node
        if callable(method):
            raise WireError("a trace of a function that is no method of the model does not run on NDIF; give its name")
        if node.parent is not None:
            return method or "__call__"
        thing = self._trees.thing(node)
        return Method(thing, "_call" if method is None else method) if method in (None, "generate") else method

    def _fill_edits(self) -> None:
        """Write the edits of each root that the block can get at; an edit may refer to further roots."""
        done: set[int] = set()
        self._trees.thing(self._request.node)
        while waiting := {id(root): root for root in self._roots() if id(root) not in done}:
            for number, root in waiting.items():
                done.add(number)
                self._trees.thing(root)
                self._trees.edits(root).extend(self._edit(edit) for edit in root.edits)

    def _roots(self) -> list[Any]:
        held: list[Any] = [*self._trees.roots]
        for body in (self._request.body, *(edit.body for root in held for edit in root.edits)):
            for names in names_of_block(body):
                held += [value.root for value in names.values() if isinstance(value, Envoy)]
        # One of another model is refused where it is written, by its name.
        return [root for root in held if root._module is self._request.node.root._module]

    def _edit(self, edit: Any) -> Thing:
        outer, inner = names_of_block(edit.body)
        if edit.body.target is not None:
            inner = {**inner, edit.body.target: edit.edited}
        reduced = (of_block(edit.body), outer, inner)
        return self._paths.thing(stand_ins.MEDIATOR, reduced=reduced, copy=True, presaved=set())

    def _dump(self, thing: Any) -> bytes:
        file = io.BytesIO()
        Pickler(file, self._trees, self._paths, self._known).dump(thing)
        return file.getvalue()

    def _explained(self, names: dict[str, Any], error: Exception) -> WireError:
        """Say which name it is that cannot travel."""
        for name, value in names.items():
            try:
                self._dump(value)
            except Exception as why:
                said = str(why) or type(why).__name__
                return WireError(f"{name if ' ' in name else f'`{name}`'} cannot be sent to NDIF: {said}")
        return WireError(f"the block cannot be sent to NDIF: {error}")
