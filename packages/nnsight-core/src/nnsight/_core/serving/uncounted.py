"""Edits of what an engine has lent that torch does not count: those by way of `x.data`.

One idea: copies are carried back if their count says that they were edited (`lent.py`). What a body reads as `x.data` is
counted like `x` here, so edits of it are seen; a new `x.data` would be beside what the engine looks at, and is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from ..active import active
from ..blocks.data import meaning
from ..errors import NNsightError
from ..structures import leaves
from .lent import Lent
from .mediator import ServedMediator


def _here() -> Lent | None:
    served = (member for member in reversed(active.get()) if isinstance(member, ServedMediator))
    mediator = next(served, None)
    here = None if mediator is None else mediator.run.forwards.here
    return here if isinstance(here, Lent) else None


def _read(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.requires_grad or _here() is None:
        return value.data
    return value.detach()


def _check(value: Any) -> Any:
    here = _here()
    if here is None or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    lent = [*here.views.values(), *(joint.value for joint in here.joints.values())]
    mine = value.untyped_storage()._cdata
    if any(
        mine == leaf.untyped_storage()._cdata for one in lent for leaf in leaves(one) if leaf.layout is torch.strided
    ):
        raise NNsightError(
            f"`.data` of what lies at `{here.place.path}` was to be set: an engine lends copies, and would not see that. "
            "Write `x[:] = ...`, or assign to the site itself (`model.layer.output = ...`)."
        )
    return value


meaning.read, meaning.check = _read, _check
