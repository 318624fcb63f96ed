"""What every module of a model takes and gives in one small forward: the numbers by which names are checked.

Plain hooks, because what is wanted is a copy of each value at the moment it passes: some models go on to change the
output of one module in place with that of another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nnsight.plugin import leaves

#: How many tokens the forward reads, in how many rows.
ROWS, TOKENS = 2, 6


@dataclass
class Visit:
    """The first visit of one module.

    Attributes:
        order: its place among all visits, by when they end.
        inputs: the floating-point tensors that it took, in their order.
        outputs: those that it gave.
        bare: whether it gave a tensor, and not a structure with a tensor in it.
    """

    order: int
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    bare: bool


@dataclass
class Record:
    """One forward.

    Attributes:
        visits: the first visit of each module, by its path; "" is the model.
        counts: how often each module was visited.
        hidden: the size of the hidden states.
        attending: the modules that compute weights over positions themselves.
    """

    attending: set[str] = field(default_factory=set)
    visits: dict[str, Visit] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    hidden: int = 0

    def input(self, path: str) -> torch.Tensor | None:
        """Return the hidden states that a module takes first, or None."""
        return self._states(self.visits[path].inputs) if path in self.visits else None

    def output(self, path: str) -> torch.Tensor | None:
        """Return the hidden states that a module gives first, or None."""
        return self._states(self.visits[path].outputs) if path in self.visits else None

    def _states(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor | None:
        return next((tensor for tensor in tensors if is_states(tensor, self.hidden)), None)


class _Attention(TorchFunctionMode):
    """Notes which module is running when weights over positions are computed, whatever it is called."""

    def __init__(self, made: Record, running: list[str]) -> None:
        super().__init__()
        self._made = made
        self._running = running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("softmax", "scaled_dot_product_attention") and self._running and args:
            shape: Sequence[int] = getattr(args[0], "shape", ())
            # [rows, heads, positions, positions], with one more where a sink takes part.
            keys = name != "softmax" or (len(shape) > 0 and shape[-1] in (TOKENS, TOKENS + 1))
            if len(shape) >= 3 and shape[-2] == TOKENS and keys:
                self._made.attending.add(self._running[-1])
        return func(*args, **(kwargs or {}))


def is_states(tensor: Any, hidden: int) -> bool:
    """Say whether a tensor holds hidden states: [rows, positions, hidden]."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.dim() == 3
        and tensor.shape[-1] == hidden
    )


def record(module: Any, hidden: int) -> Record:
    """Run a model on a few tokens and record what passes.

    Args:
        module: a causal language model of transformers, with its weights.
        hidden: the size of its hidden states.
    """
    made = Record(hidden=hidden)
    mine = threading.get_ident()

    def hook(path: str) -> Any:
        def note(part: Any, args: Any, kwargs: Any, output: Any) -> None:
            if threading.get_ident() != mine:
                return
            running.pop()
            made.counts[path] = made.counts.get(path, 0) + 1
            if path not in made.visits:
                made.visits[path] = Visit(
                    len(made.visits), taken.pop(path, []), _copies(output), isinstance(output, torch.Tensor)
                )

        return note

    taken: dict[str, list[torch.Tensor]] = {}
    running: list[str] = []

    def before(path: str) -> Any:
        def note(part: Any, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == mine:
                running.append(path)
                taken.setdefault(path, _copies((args, kwargs)))

        return note

    handles = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(part.register_forward_hook(hook(path), with_kwargs=True))
    device = next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
    size = int(module.get_input_embeddings().weight.shape[0])
    # Any tokens do, as long as they differ; low ones are often special.
    ids = (torch.arange(ROWS * TOKENS, device=device).view(ROWS, TOKENS) * 5 + 7) % size
    try:
        with torch.no_grad(), _Attention(made, running):
            module(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    return made


def _copies(value: Any) -> list[torch.Tensor]:
    return [leaf.detach().clone() for leaf in leaves(value) if leaf.is_floating_point()]
