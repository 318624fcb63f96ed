"""One stage of a pipeline, among the stages before and behind it: what lies where, and how the journal travels.

One idea: every stage runs every body (`nnsight.plugin.Parts`), and what a stage served goes where it is needed by the way
that vLLM's own values take: along with a forward to the next stage, and from the last stage to all others, which read it
before the next step of the same requests. vLLM schedules that step when the token of this one is there, so nobody waits long.

The tree has the modules of all stages: those of others are on the meta device, as places, and their weights say so.

relies on: `PPMissingLayer` stands for a layer of another stage, and nobody calls it; the stages of one pipeline take the same
forwards in the same order, and all workers the same calls between them; vLLM 0.30 to 0.32.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed import parallel_state
from vllm.model_executor.models.utils import PPMissingLayer

from nnsight import NNsightError
from nnsight.plugin import Page, Parts, Place, ServedRun, tree_map

from .. import skeleton
from .absent import let_be_absent

#: How many tokens a stage runs on to find out what it calls.
_TOKENS = 2
#: What is served to the bodies of some requests, by request and stage: pages, written.
Pages = dict[str, dict[int, bytes]]


class Pipeline:
    """One stage of a pipeline.

    Args:
        module: the model as this worker has it; the modules of other stages are put into its tree.
        config: vLLM's.
        dummy: lets the model run on some tokens, of no request.
    """

    def __init__(self, module: torch.nn.Module, config: Any, dummy: Callable[[int], Any]) -> None:
        group = parallel_state.get_pp_group()
        self.number, self.count = group.rank_in_group, group.world_size
        self.device = next(module.parameters()).device
        # A group of its own: vLLM's messages are matched by their order, and so are these.
        self._ranks = list(group.ranks)
        self._group = dist.new_group(self._ranks, backend="gloo", use_local_synchronization=True)
        mine = called(module, dummy), complete(module, config)
        told: list[Any] = [None] * self.count
        dist.all_gather_object(told, mine, group=self._group)
        self._called: list[frozenset[str]] = [names for names, _ in told]
        self._missing: list[frozenset[str]] = [names for _, names in told]
        self._owners: dict[tuple[Place, str], int] = {}
        self.parts = Parts(self.number, self.count, self.owner)
        self._sent: list[tuple[list[Any], list[torch.Tensor]]] = []
        #: What earlier stages have said of the forward that is on.
        self._heard: Pages = {}
        #: The requests of forwards of which the last stage has not told yet, in order.
        self._due: deque[Mapping[str, ServedRun]] = deque()

    @property
    def last(self) -> bool:
        """Whether this is the last stage, which draws the tokens."""
        return self.number == self.count - 1

    def owner(self, place: Place, stage: str) -> int:
        """Say in which stage a place lies."""
        key = place.owner, stage
        if key not in self._owners:
            self._owners[key] = self._find(place.owner.path.partition(".")[2], stage)
        return self._owners[key]

    def _find(self, path: str, stage: str) -> int:
        if path in ("logits", "samples"):
            return self.count - 1
        above = f"{path}." if path else ""
        if any(name.startswith(above) for names in self._missing for name in names):
            # It holds modules of several stages: each calls it, the first with what is given, the last to the end.
            return 0 if stage == "input" else self.count - 1
        calling = [number for number, names in enumerate(self._called) if path in names]
        if calling:
            return calling[0]
        # Nobody calls it in a forward. What is called after it, for the logits, is on the last stage that has it.
        return max(
            (
                number
                for number, names in enumerate(self._missing)
                if not any(path == name or path.startswith(f"{name}.") for name in names)
            ),
            default=self.number,
        )

    # -- a forward -----------------------------------------------------------------------------------------------------

    def before(self, runs: Mapping[str, ServedRun]) -> None:
        """Hear what is to be known before a forward of these requests."""
        for run in runs.values():
            self.hear_of(run)
        self._heard = {}
        if self.number:
            self._heard = self._receive(self.number - 1)
            self._take(self._heard, runs)

    def after(self, runs: Mapping[str, ServedRun]) -> None:
        """Tell the other stages what was served to these requests."""
        pages = self._heard
        for request, run in runs.items():
            pages.setdefault(request, {})[self.number] = self._page(run)
        if not self.last:
            self._send(self.number + 1, pages)
            self._due.append(dict(runs))
            return
        for number in range(self.number):
            self._send(number, {r: {n: p for n, p in by.items() if n > number} for r, by in pages.items()})

    def hear_of(self, run: ServedRun) -> None:
        """Hear what the stages behind have served to a request, as far as they have taken part in its forwards."""
        while any(run in runs.values() for runs in self._due):
            self._take(self._receive(self.count - 1), self._due.popleft())

    def _take(self, pages: Pages, runs: Mapping[str, ServedRun]) -> None:
        for request, by_stage in pages.items():
            for number, data in by_stage.items():
                page: Page = pickle.loads(data)  # noqa: S301  # of our own workers
                page.lines = _on(self.device, page)
                self.parts.read(runs[request], number, page)

    def _page(self, run: ServedRun) -> bytes:
        page = self.parts.page(run)
        try:
            page.lines = _on(torch.device("cpu"), page)
            return pickle.dumps(page)
        except Exception as error:  # a value that cannot be sent ends the request that asked for it
            run.fail(
                NNsightError(f"What this block was given cannot be told to the other stages of the pipeline: {error}")
            )
            return pickle.dumps(Page(failure=str(run.failure)))

    # -- messages ------------------------------------------------------------------------------------------------------

    def _send(self, number: int, pages: Pages) -> None:
        data = torch.frombuffer(bytearray(pickle.dumps(pages)), dtype=torch.uint8)
        size = torch.tensor([data.numel()])
        works = [dist.isend(part, self._ranks[number], group=self._group) for part in (size, data)]
        self._sent = [one for one in self._sent if not all(work.is_completed() for work in one[0])]
        self._sent.append((works, [size, data]))

    def _receive(self, number: int) -> Pages:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, self._ranks[number], group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, self._ranks[number], group=self._group)
        pages: Pages = pickle.loads(data.numpy().tobytes())  # noqa: S301
        return pages


def _on(device: torch.device, page: Page) -> list[Any]:
    return [(body, site, tree_map(lambda t: t.to(device), value)) for body, site, value in page.lines]


def called(module: torch.nn.Module, dummy: Callable[[int], Any]) -> frozenset[str]:
    """Return which modules this stage calls in a forward: a model may have some on stages that do not use them."""
    seen: set[int] = set()
    handles = [part.register_forward_pre_hook(lambda part, args: seen.add(id(part))) for part in module.modules()]
    try:
        dummy(_TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(name for name, part in module.named_modules(remove_duplicate=False) if id(part) in seen)


def complete(module: torch.nn.Module, config: Any) -> frozenset[str]:
    """Put the modules of other stages into the tree of this one, without weights; return where they are."""
    missing = {name for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, PPMissingLayer)}
    whole = skeleton.whole(config)
    for name in missing:
        above, _, last = name.rpartition(".")
        part = whole.get_submodule(name)
        let_be_absent(part, name)
        module.get_submodule(above)._modules[last] = part
    return frozenset(missing)
