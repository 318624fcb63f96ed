"""Peak memory and loading, in fresh processes: what was measured before would show in either.

    python benchmarks/fresh.py load KIND FOLDER | memory KIND | write FOLDER     prints one figure or two as JSON

The peak of a forward counts the bytes of all tensors that are alive and were not before it (the weights were), by
watching every operation: exact, the same on every run, and nothing of the allocator's. What operations take for
themselves while they work is not seen; it is the same for all. The peak of loading is what the kernel says of the whole
process, its imports included. Time is counted on the processor, as elsewhere; whoever loads reads files that were read
before.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What is compared with what, by the text of the target, and the bound.
FIGURES = {
    "peak memory beyond the weights of reading one layer / of the plain forward": ("memory", 0, 1.02),
    "time of loading a checkpoint and its tokenizer / `from_pretrained`": ("load", 0, 1.02),
    "peak memory of loading a checkpoint and its tokenizer / `from_pretrained`": ("load", 1, 1.02),
}


class Watch(TorchDispatchMode):
    """Counts the bytes of the storages that operations make.

    Attributes:
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                number = storage._cdata
                if number not in self._alive and number not in known:
                    self._alive[number] = storage.nbytes()
                    self._now += storage.nbytes()
                    # A storage has one Python object as long as it lives: relies on this, torch 2.1.
                    weakref.finalize(storage, self._free, number)
        self.peak = max(self.peak, self._now)
        return result

    def _free(self, number: int) -> None:
        self._now -= self._alive.pop(number)


def memory(kind: str) -> list[float]:
    """Return the peak of a forward over 512 tokens, in bytes."""
    from models import build

    subject = build("GPT-2")
    net, ids = subject.net, subject.x
    watch = Watch()
    if kind == "plain":
        with watch:
            net(ids)
        return [watch.peak]
    from nnsight import LanguageModel

    model = LanguageModel(net)
    with watch:
        with model.trace(ids):
            hidden = model.transformer.h[6].output.save()
    assert hidden.shape[-2] == ids.shape[1], "the layer was not read"
    return [watch.peak]


def load(kind: str, folder: str) -> list[float]:
    """Return the time on the processor, in seconds, and the peak of the process, in bytes."""
    import transformers

    from nnsight import LanguageModel

    loaders: dict[str, Callable[[], Any]] = {
        "plain": lambda: (
            transformers.AutoTokenizer.from_pretrained(folder),
            transformers.AutoModelForCausalLM.from_pretrained(folder),
        ),
        "ours": lambda: LanguageModel(folder, dispatch=True),
    }
    begin = time.process_time()
    kept = loaders[kind]()
    taken = time.process_time() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    assert kept
    return [taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit]


def write(folder: str) -> list[float]:
    """Write a checkpoint of GPT-2 with random weights, half a gigabyte, and a tokenizer."""
    import gpt2
    from models import build

    build("GPT-2").net.save_pretrained(folder)
    gpt2.tokenizer().save_pretrained(folder)
    return []


def measure(python: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the ratios of ours to plain transformers, and how far each may be off, by the text of `FIGURES`."""

    def ask(*arguments: str) -> list[float]:
        run = subprocess.run([python, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        figures: list[float] = json.loads(run.stdout.splitlines()[-1])
        return figures

    with tempfile.TemporaryDirectory() as folder:
        ask("write", folder)
        ratios: dict[str, list[list[float]]] = {"load": [], "memory": []}
        ask("load", "plain", folder)  # fills the file cache
        for number in range(rounds):
            kinds = ("plain", "ours") if number % 2 else ("ours", "plain")
            figures = {kind: ask("load", kind, folder) for kind in kinds}
            ratios["load"].append([ours / plain for ours, plain in zip(figures["ours"], figures["plain"])])
    both = ask("memory", "ours"), ask("memory", "plain")
    ratios["memory"].append([ours / plain for ours, plain in zip(*both)])
    result = {}
    for text, (work, column, _) in FIGURES.items():
        values = [row[column] for row in ratios[work]]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        result[text] = statistics.median(values), error
    return result


def main() -> None:
    """Do one piece of work."""
    torch.set_num_threads(1)
    work, *arguments = sys.argv[1:]
    print(json.dumps({"memory": memory, "load": load, "write": write}[work](*arguments)))


if __name__ == "__main__":
    main()
