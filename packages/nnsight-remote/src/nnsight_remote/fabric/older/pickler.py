"""`OlderPickler`: writes a payload that nnsight 0.7 reads.

The one idea: only what 0.7's own clients name stands in it, as their servers refuse other modules while they read: classes by
module and name, objects made by `copyreg`, functions by 0.7's own maker of functions.
"""

from __future__ import annotations

import copyreg
import dataclasses
import io
import types
from typing import Any

from nnsight.plugin import WireError, is_own

from .. import functions
from ..pickler import FIRST, Pickler
from ..stand_ins import Path, Thing
from .naming import named, placeholder
from .stand_ins import FILL_FUNCTION, MAKE_FUNCTION, Function, Made

# relies on: `copyreg._reconstructor`, which pickles of protocols 0 and 1 name, Python 3.10 to 3.14
_new: Any = vars(copyreg)["_reconstructor"]


class OlderPickler(Pickler):
    """Writes one payload."""

    def persistent_id(self, thing: Any) -> str | None:
        """Return the name of what the server has, or what stands for a name over there."""
        return placeholder(thing) if type(thing) is Path else super().persistent_id(thing)

    def reducer_override(self, thing: Any) -> Any:
        """Say how something is made over there."""
        if type(thing) is Function:
            return self._made_function(thing)
        if type(thing) is Made:
            return thing.path, thing.arguments
        return super().reducer_override(thing)

    def _path(self, path: Path) -> Any:
        return FIRST, ((path,),)

    def _thing(self, thing: Thing) -> Any:
        return _new, (thing.path, object, None), thing.state

    def _class(self, cls: type) -> Any:
        if dataclasses.is_dataclass(cls) and is_own(cls.__module__):
            raise WireError(
                f"`{cls.__qualname__}` is a data class, whose parts servers of nnsight 0.7 do not admit; write its "
                "methods out in a plain class, or send a dictionary"
            )
        return super()._class(cls)

    def _reduced(self, function: types.FunctionType) -> Any:
        found = functions.written(function, self._paths.version)
        if found is None:
            return None
        text, source, names = found
        made = Function(
            source,
            text.name,
            text.filename,
            text.first,
            names,
            function.__defaults__,
            function.__kwdefaults__,
            function.__qualname__,
            function.__module__,
            function.__doc__,
        )
        return self._made_function(made)

    def _made_function(self, made: Function) -> Any:
        # What a function closes over becomes its globals, and so no cells are sent.
        arguments = (
            made.source,
            made.name,
            made.filename,
            made.qualname or made.name,
            made.module,
            made.doc,
            None,
            made.defaults,
            made.keywords,
            {"__name__": made.module},
            None,
            None,
            made.first,
        )
        state: Any = ({}, {"__globals__": made.names, "__deferred_closure__": {}})
        return self._paths[MAKE_FUNCTION], arguments, state, None, None, self._paths[FILL_FUNCTION]


def write(pickler: OlderPickler, file: io.BytesIO, thing: Any) -> bytes:
    """Write something, and return its bytes."""
    pickler.dump(thing)
    return named(file.getvalue(), list(pickler._paths.values()))
