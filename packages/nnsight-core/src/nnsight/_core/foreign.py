"""References to a model, and edits of it, that a plugin makes of what came in somebody else's format.

The one idea: what reads such a format makes objects before it knows what they are, and they may be referred to already; so
an object that is there and empty becomes the reference. The text of blocks is `wire/abroad.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import Body
from .edit import Edit
from .naming import Naming


def become(empty: object, envoy: Any, rename: Mapping[str | type, str | Sequence[str]] | None = None) -> None:
    """Let an object become another reference to the module of an envoy.

    Args:
        empty: an instance of a plain class, which nobody has put anything into.
        envoy: the envoy. Of a root it becomes a reference with edits of its own, which begin as those of the root.
        rename: the aliases of a root, in place of those that it has.

    Raises:
        RenameError: the model cannot have such aliases.
    """
    if envoy.parent is not None:
        own = envoy.__dict__
    else:
        own = envoy._derive().__dict__
        own["_root"] = empty
        if rename is not None:
            own["_names"] = Naming(rename, envoy._naming()._given[1])
    object.__setattr__(empty, "__class__", type(envoy))
    empty.__dict__.update(own)


def store_edit(root: Any, body: Body, *, every_step: bool = True) -> None:
    """Store a block as an edit of a reference to a model.

    Args:
        root: the reference.
        body: the block.
        every_step: whether it is replayed in each step of a generation, or in the first one only.
    """
    root.edits.append(Edit(body, root, None, every_step))
