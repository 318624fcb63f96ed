"""Time what nnsight adds to vLLM, and print it with what must be reached.

    python benchmarks/vllm/run.py [--processes 6] [--rounds 5] [--only steer] [--json FILE]

Two engines with the same small Llama run in one process, on its CPU: that of `vllm.LLM` (`plain.py`), which knows nothing of
ours, and one behind `VLLM`. A round runs every row once, in changing order, and beside it the same requests in plain vLLM, a
step of one after a step of the other, so a machine that slows down does so for both. A row's figure is plain vLLM's time
divided by the row's own (tokens per second, relative): the median over the rounds. How memory happens to lie in a process
shifts that by half of a hundredth for as long as the process lives, so several run, one after the other, and shown is their
mean, and beside it that of a hook which does as much, written by hand for this model. Time is that of the processor, all
threads together: being interrupted costs nothing. Where the standard error leaves open whether the target is reached, it says
so. Before anything is timed, values and tokens are compared with transformers'.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

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
    parser.add_argument("--processes", type=int, default=6, help="how many processes run, one after the other")
    parser.add_argument("--rounds", type=int, default=5, help="how often every row is run in each")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name has this in it")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    rows = _chosen(options.only)
    found = []
    for number in range(options.processes):
        print(f"process {number + 1} of {options.processes}", end="\r", file=sys.stderr, flush=True)
        # One that is fresh each time, and is told what to do and nothing else.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(measure, options.rounds, options.only).result())
    figures = [
        Figure(row, [one[row.name, "row"] for one in found], [one[row.name, "hook"] for one in found if row.hook])
        for row in rows
    ]
    show(figures)
    if options.json:
        said = {"rows": [figure.said() for figure in figures], "load": os.getloadavg()}
        Path(options.json).write_text(json.dumps(said, indent=2) + "\n")
    return 1 if any(figure.reached is False for figure in figures) else 0


def measure(rounds: int, only: str | None) -> dict[tuple[str, str], float]:
    """Measure in this process; return the figure of each row that was chosen, and of its hook if it has one."""
    with tempfile.TemporaryDirectory(prefix="nnsight-bench-") as folder:
        setting, rows = Setting(Path(folder)), _chosen(only)
        for row in rows:
            row.check(setting)
        works = [(row, "row", row.work) for row in rows] + [
            (row, "hook", row.hook) for row in rows if row.hook is not None
        ]
        ratios: dict[tuple[str, str], list[float]] = {(row.name, kind): [] for row, kind, _ in works}
        for _ in range(rounds):
            for row, kind, work in random.sample(works, len(works)):
                gc.collect()
                pair = getattr(setting, row.against)(functools.partial(work, setting))
                ratios[row.name, kind].append(_ratio(row, *pair))
    return {key: statistics.median(found) for key, found in ratios.items()}


def _chosen(only: str | None) -> list[Row]:
    return [row for row in ROWS if not only or only in row.name]


def _ratio(row: Row, mine: float, plain: float) -> float:
    return mine / plain if row.at_most else plain / mine


if __name__ == "__main__":
    sys.exit(main())
