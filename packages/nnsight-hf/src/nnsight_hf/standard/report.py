"""Which of the absent names stand for something that the model has."""

from __future__ import annotations

from typing import Any

from nnsight.plugin import standard


def lacking(names: Any) -> dict[str, str]:
    """Return the names among the absent ones for which there is something that they would stand for.

    A layer of which all that it adds is accounted for without attention does not lack it.
    """
    blocks, found = names.resolution.blocks, standard.absent_in(names)
    for name in list(found):
        plain, _, index = name.rstrip("]").partition("[")
        concerned = [blocks[int(index)]] if index else blocks
        if name in names.resolution.without or (concerned and all(plain in block.without for block in concerned)):
            del found[name]
    return found
