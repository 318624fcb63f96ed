"""Time what nnsight adds to vLLM, and print it with what must be reached.

    python benchmarks/vllm/run.py [--rounds 15] [--only steer] [--json FILE]

Two engines with the same small Llama run in this process, on its CPU: that of `vllm.LLM` (`plain.py`), which knows nothing of
ours, and one behind `VLLM`. A round runs every row once, in changing order, and beside it the same requests in plain vLLM, a
step of one after a step of the other, so a machine that slows down does so for both. A row's figure is plain vLLM's time
divided by the row's own (tokens per second, relative); shown is the median over the rounds, and beside it that of a hook
which does as much, written by hand for this model. Time is that of the processor, all threads together: being interrupted
costs nothing. Where the standard error leaves open whether the target is reached, it says so. Before anything is timed,
values and tokens are compared with transformers'.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

# Read when vLLM and torch are imported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from plain import Setting
from table import Figure, show

from rows import ROWS, Row


def main() -> int:
    """Measure, and print; return 1 if a target is missed beyond doubt."""
    parser = argparse.ArgumentParser(description="Time what nnsight adds to vLLM.")
    parser.add_argument("--rounds", type=int, default=15, help="how often every row is run")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name has this in it")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or options.only in row.name]
    with tempfile.TemporaryDirectory(prefix="nnsight-bench-") as folder:
        setting = Setting(Path(folder))
        for row in rows:
            row.check(setting)
        works = [(row, row.work) for row in rows] + [(row, row.hook) for row in rows if row.hook is not None]
        times: dict[Any, list[tuple[float, float]]] = {work: [] for _, work in works}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", end="\r", file=sys.stderr, flush=True)
            for row, work in random.sample(works, len(works)):
                gc.collect()
                times[work].append(getattr(setting, row.against)(functools.partial(work, setting)))
    ratios = {work: [_ratio(row, *pair) for pair in times[work]] for row, work in works}
    figures = [Figure(row, ratios[row.work], ratios.get(row.hook, ())) for row in rows]
    show(figures)
    if options.json:
        said = [{**figure.said(), "seconds": times[figure.row.work]} for figure in figures]
        Path(options.json).write_text(json.dumps({"rows": said, "load": os.getloadavg()}, indent=2) + "\n")
    return 1 if any(figure.reached is False for figure in figures) else 0


def _ratio(row: Row, mine: float, plain: float) -> float:
    return mine / plain if row.at_most else plain / mine


if __name__ == "__main__":
    sys.exit(main())
