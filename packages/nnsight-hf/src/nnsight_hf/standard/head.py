"""How logits come from the output of the last layer: through which modules, times which numbers, capped or not."""

from __future__ import annotations

from typing import Any

import torch

from nnsight_hf.standard.found import Head, Resolution
from nnsight_hf.standard.record import Record, Visit
from nnsight_hf.standard.sums import equal, nearest, numbers_of, ratio

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

#: How many modules lie between the last layer and the logits at most.
_LONGEST = 8


def find_head(made: Resolution, module: Any, seen: Record, head: str | None) -> None:
    """Find the final norm, the head, and the way from the last layer to the logits.

    Args:
        made: what was found so far; what is found here is added.
        module: the model.
        seen: a forward of it.
        head: the path of its output embedding.
    """
    if head is None or head not in seen.visits:
        made.absent["lm_head"] = "the model has no output embedding that is called as a module"
    else:
        made.lm_head = head
    if not made.blocks:
        made.absent["ln_final"] = made.absent["project_on_vocab"] = made.absent["layers"]
        return
    last = made.blocks[-1].path
    logits = next(iter(seen.visits[""].outputs), None)
    start = seen.output(last)
    search = _Search(module, seen, logits)
    found = search.way(start, seen.visits[last].end, _LONGEST) if start is not None and logits is not None else None
    if found is None:
        where = f"`{head}`" if made.lm_head else "the logits"
        made.absent["ln_final"] = f"what `{last}` gives does not reach {where} through modules alone"
        made.absent["project_on_vocab"] = made.absent["ln_final"]
        return
    made.head = found
    first = found.way[0][0]
    if first == head:
        made.absent["ln_final"] = f"`{head}` takes what `{last}` gives: there is no norm between them"
        made.without.add("ln_final")
    elif _is_norm(module.get_submodule(first)):
        made.ln_final = first
    else:
        made.absent["ln_final"] = f"between `{last}` and the logits lies `{first}`, which is no norm"
        made.without.add("ln_final")


def finish(value: torch.Tensor, head: Head) -> torch.Tensor:
    """Return logits from what the last module on the way gave."""
    value = value if head.factor == 1.0 else value * head.factor
    return torch.tanh(value / head.cap) * head.cap if head.cap else value


class _Search:
    """The search for a way: each module takes what the one before gave, maybe times a number."""

    def __init__(self, module: Any, seen: Record, logits: torch.Tensor | None) -> None:
        self._module = module
        self._logits = logits
        self._calls = [visit for visit in seen.calls if visit.path and visit.inputs and visit.outputs]
        config = module.config.get_text_config()
        self._numbers = numbers_of(module.config)
        self._caps = [value for name in _CAPS if (value := getattr(config, name, None))]

    def way(self, value: torch.Tensor, since: int, most: int) -> Head | None:
        """Return the way from a value that was there at `since` to the logits."""
        end = self._end(value)
        if end is not None:
            return end
        if not most:
            return None
        for visit in sorted((one for one in self._calls if one.begin > since), key=self._last):
            # Some models put positions before the tokens, and give no logits for them.
            kept = value[:, -visit.inputs[0].shape[1] :] if value.dim() == visit.inputs[0].dim() == 3 else value
            factor = ratio(kept, visit.inputs[0])
            if factor is None or not (self._leaf(visit) or len(visit.inputs) == 1):
                continue
            rest = self.way(visit.outputs[0], visit.end, most - 1)
            if rest is not None:
                return Head([(visit.path, self._near(factor, value)), *rest.way], rest.factor, rest.cap)
        return None

    def _end(self, value: torch.Tensor) -> Head | None:
        """Say whether these are the logits, or would be if capped or multiplied."""
        wanted = self._logits
        assert wanted is not None, "or there would be no search"
        if value.shape != wanted.shape:
            return None
        # The caps first: small logits are hardly squashed, and would pass for the head's own.
        for cap in self._caps:
            if equal(torch.tanh(value.float() / cap) * cap, wanted.float()):
                return Head([], cap=float(cap))
        factor = ratio(value, wanted)
        return None if factor is None else Head([], self._near(factor, wanted))

    def _near(self, factor: float, like: torch.Tensor) -> float:
        return nearest(factor, self._numbers, 1e-4 if like.dtype is torch.float32 else 2e-2)

    def _leaf(self, visit: Visit) -> bool:
        return not any(True for _ in self._module.get_submodule(visit.path).children())

    def _last(self, visit: Visit) -> tuple[bool, int]:
        """Leaves first: a way through them says more than one through what holds them."""
        return not self._leaf(visit), visit.begin


def _is_norm(part: torch.nn.Module) -> bool:
    return "norm" in type(part).__name__.lower()
