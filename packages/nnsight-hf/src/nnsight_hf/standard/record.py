"""What every module of a model takes and gives in one small forward: the numbers by which names are checked.

Plain hooks, because what is wanted is a copy of each value at the moment it passes: some models go on to change the
output of one module in place with that of another. Who computes weights over positions is watched by `attending.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight.plugin import leaves
from nnsight_hf.standard.attending import ROWS, TOKENS, Attending
from nnsight_hf.standard.found import Weights


@dataclass
class Visit:
    """One visit of a module.

    Attributes:
        path: the module.
        begin, end: when it began and ended, counted in such events.
        inputs: the floating-point tensors that it took, in their order.
        outputs: those that it gave.
        bare: whether it gave a tensor, and not a structure with a tensor in it.
    """

    path: str
    begin: int
    end: int = -1
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    bare: bool = True


@dataclass
class Record:
    """One forward.

    Attributes:
        hidden: the size of the hidden states.
        calls: all visits, by when they began.
        visits: the first visit of each module, by its path; "" is the model.
        counts: how often each module was visited.
        attending: the modules that compute weights over positions, and where each does, as far as that can be told.
    """

    hidden: int = 0
    calls: list[Visit] = field(default_factory=list)
    visits: dict[str, Visit] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    attending: dict[str, list[Weights | None]] = field(default_factory=dict)

    def input(self, path: str) -> torch.Tensor | None:
        """Return the hidden states that a module takes first [rows, positions, hidden], or None."""
        return self._states(self.visits[path].inputs)[0] if path in self.visits else None

    def output(self, path: str) -> torch.Tensor | None:
        """Return the hidden states that a module gives first [rows, positions, hidden], or None."""
        return self._states(self.visits[path].outputs)[0] if path in self.visits else None

    def is_flat(self, path: str, site: str) -> bool:
        """Say whether rows and positions lie in one dimension where these hidden states lie."""
        visit = self.visits[path]
        return self._states(visit.inputs if site == "input" else visit.outputs)[1]

    def _states(self, tensors: Iterable[torch.Tensor]) -> tuple[torch.Tensor | None, bool]:
        for tensor in tensors:
            if is_states(tensor, self.hidden):
                return tensor, False
            if is_states(tensor, self.hidden, flat=True) and tensor.shape[0] == ROWS * TOKENS:
                return tensor.view(ROWS, TOKENS, self.hidden), True
        return None, False


def is_states(tensor: Any, hidden: int, flat: bool = False) -> bool:
    """Say whether a tensor holds hidden states: [rows, positions, hidden], or with `flat` [rows x positions, hidden]."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.dim() == (2 if flat else 3)
        and tensor.shape[-1] == hidden
    )


def record(module: Any, hidden: int, replace: Mapping[str, Callable[[Any], Any]] | None = None) -> Record:
    """Run a model on a few tokens and record what passes.

    Args:
        module: a causal language model of transformers, with its weights.
        hidden: the size of its hidden states.
        replace: for the paths of some modules, what makes another output of theirs.
    """
    made = Record(hidden)
    mine = threading.get_ident()
    running: list[Visit] = []
    clock = iter(range(1 << 40))

    def before(path: str) -> Any:
        def note(part: Any, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == mine:
                running.append(Visit(path, next(clock), inputs=_copies((args, kwargs))))
                made.calls.append(running[-1])

        return note

    def after(path: str) -> Any:
        def note(part: Any, args: Any, kwargs: Any, output: Any) -> Any:
            if threading.get_ident() == mine:
                visit = running.pop()
                if replace is not None and path in replace:
                    output = replace[path](output)
                visit.end, visit.outputs, visit.bare = next(clock), _copies(output), isinstance(output, torch.Tensor)
                made.visits.setdefault(path, visit)
                made.counts[path] = made.counts.get(path, 0) + 1
            return output

        return note

    handles = []
    parts = dict(module.named_modules())
    for path, part in parts.items():
        handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(part.register_forward_hook(after(path), with_kwargs=True))
    watch = Attending(parts, lambda: running[-1].path if running else None)
    try:
        with torch.no_grad(), _evaluating(module), watch:
            module(input_ids=tokens(module))
    finally:
        for handle in handles:
            handle.remove()
    made.attending = watch.found()
    for path in _fused(module, parts):
        if path in made.visits:
            made.attending.setdefault(path, [])
    return made


def tokens(module: Any) -> torch.Tensor:
    """Return the token ids that a model is tried with [rows, positions]."""
    device = next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
    size = int(module.get_input_embeddings().weight.shape[0])
    # Any tokens do, as long as they differ; low ones are often special.
    return (torch.arange(ROWS * TOKENS, device=device).view(ROWS, TOKENS) * 5 + 7) % size


def _copies(value: Any) -> list[torch.Tensor]:
    # In one memory, wherever the layers of a model lie; and not every device knows double precision.
    return [leaf.detach().to("cpu", copy=True) for leaf in leaves(value) if leaf.is_floating_point()]


def _fused(module: Any, parts: Mapping[str, torch.nn.Module]) -> list[str]:
    """Return the modules that attend by a kernel of which torch sees nothing (flash attention, say)."""
    by = getattr(module.config.get_text_config(), "_attn_implementation", None)
    if by in (None, "eager", "sdpa"):
        return []
    # relies on: attention that calls the chosen implementation has `is_causal`, transformers 5.23
    return [path for path, part in parts.items() if hasattr(part, "is_causal")]


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Let no dropout lie between what modules give."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
