"""Edits that stay with an engine, on their way there, and in the runs of its requests.

One idea: an edited reference to a model is written without any trace around it, and read where the engine is, once; from then
on its edits begin in whatever request is to have them, before what else looks into it. What they captured is one for all of
those requests.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..bypath import Sender, read_for
from ..edit import Edit, Edits
from ..errors import WireError
from ..tree import Node
from ..wire.format import Buffer
from .request import ServedRun

if TYPE_CHECKING:
    from .forwards import Forwards


def encode_edits(edited: Node) -> bytes:
    """Write the edits of a reference to a model, as `model.edit()` gives it.

    Raises:
        ValueError: it has none.
        WireError: something that they read cannot travel.
    """
    root = edited._root
    if not root.__dict__["_edits"]:
        raise ValueError("this model has no edits. `with model.edit() as edited:` gives a reference that has one")
    encoder = Sender(root).encoder
    return encoder.pack("edits", encoder.value(root), {"python": platform.python_version()})


def decode_edits(data: Buffer, model: Node) -> Edits:
    """Read edits, to be replayed in runs of a model.

    This builds the functions and classes that came along, and so runs code of whoever made them.

    Raises:
        WireError: the bytes are no edits, or need what is not here.
    """
    root = model._root

    def of_another(edited: Any) -> Edits:
        if not isinstance(edited, Node) or edited._root is root:
            raise WireError("these bytes hold something else than the edits of a model")
        edits: Edits = edited._root.__dict__["_edits"]
        return edits

    return read_for(root, data, "edits", of_another)


def begin_edits(edits: Iterable[Edit], forwards: Forwards) -> ServedRun:
    """Let a request that has edits, and no body of its own, take part in an engine's forwards."""
    run = ServedRun(forwards)
    Edits(edits).begin_in(run)
    forwards.admit(run)
    return run
