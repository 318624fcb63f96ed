"""What a block of one line costs on its way: the bytes and the time of encoding it, in fresh processes.

    python benchmarks/wire.py ours|peer     prints both as JSON: bytes, and milliseconds on the processor

The model is GPT-2 with 32 layers, narrow: neither should matter, as the model stays where it is.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

#: What is bounded, for ours.
LIMITS = {"bytes": 2048.0, "milliseconds": 2.0}
_ROUNDS = 50


def encode(contender: str) -> dict[str, float]:
    """Encode the request of one contender, and return its size and the median time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import gpt2
    from nnsight import LanguageModel

    net = GPT2LMHeadModel(GPT2Config(n_layer=32, n_embd=64, n_head=4)).eval()
    model: Any = LanguageModel(net, tokenizer=gpt2.tokenizer())
    found: dict[str, float] = {}

    class Measuring:
        """A backend, for both nnsights, that runs nothing."""

        def run(self, request: Any) -> dict[str, Any]:
            from nnsight.plugin import encode_request

            found.update(_measured(lambda: encode_request(request)))
            return {}

        def __call__(self, tracer: Any) -> None:
            from nnsight.schema.request import RequestModel

            found.update(_measured(lambda: RequestModel.serialize(tracer)))

    with model.trace("w1 w2 w3", backend=Measuring()):
        hidden = model.transformer.h[16].output.save()
    return found


def _measured(work: Callable[[], bytes]) -> dict[str, float]:
    size, times = len(work()), []
    for _ in range(_ROUNDS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return {"bytes": size, "milliseconds": statistics.median(times) * 1000}


def measure(pythons: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return bytes and milliseconds by contender."""
    found = {}
    for name, python in pythons.items():
        # What leads to our sources would lead the peer to them as well.
        environment = {key: text for key, text in os.environ.items() if name == "ours" or key != "PYTHONPATH"}
        run = subprocess.run([python, __file__, name], stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[name] = json.loads(run.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(encode(sys.argv[1])))
