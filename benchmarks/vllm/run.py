"""Time what nnsight adds to vLLM, and print it with what must be reached.

    python benchmarks/vllm/run.py [--rounds 24] [--only steer] [--json FILE]

Two engines with the same small Llama run in this process, on its CPU: vLLM's own (`plain.py`), which knows nothing of ours,
and one behind `VLLM`. A round runs every row once, in changing order, so a machine that slows down does so for all. A row's
figure is plain vLLM's time divided by the row's own (tokens per second, relative), each the mean of the quicker quarter of
its rounds. Time is that of the processor, all threads together: being interrupted costs nothing. Where the standard error leaves
open whether the target is reached, it says so. Before anything is timed, values and tokens are compared with transformers'.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Read when vLLM and torch are imported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from plain import Setting
from table import Figure, show

from rows import ROWS


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Measure, and print; return 1 if a target is missed beyond doubt."""
    parser = argparse.ArgumentParser(description="Time what nnsight adds to vLLM.")
    parser.add_argument("--rounds", type=int, default=24, help="how often every row is run")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name has this in it")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or options.only in row.name]
    with tempfile.TemporaryDirectory(prefix="nnsight-bench-") as folder:
        setting = Setting(Path(folder))
        for row in rows:
            row.check(setting)
        times: dict[str, list[float]] = {}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", end="\r", file=sys.stderr, flush=True)
            works = {row.against: getattr(setting, row.against) for row in rows}
            works.update((row.name, lambda row=row: row.work(setting)) for row in rows)
            for name in random.sample(list(works), len(works)):
                times.setdefault(name, []).append(_timed(works[name]))
    figures = [Figure(row, times[row.name], times[row.against]) for row in rows]
    show(figures, setting.tokens, times)
    if options.json:
        said = [figure.said() for figure in figures]
        Path(options.json).write_text(
            json.dumps({"rows": said, "load": os.getloadavg(), "seconds": times}, indent=2) + "\n"
        )
    return 1 if any(figure.reached is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
