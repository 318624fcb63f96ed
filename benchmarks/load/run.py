"""Put a server under load, and print what it stood.

    python benchmarks/load/run.py [--clients 200] [--jobs 2000] [--greedy 500] [--times 200] [--json FILE]

A real `nnsight serve` on the loopback interface serves a small model. First one user is alone (`alone.py`), then many come
at once (`crowd.py`), then one hands in hundreds of jobs while another wants an answer (`turns.py`). What is measured is
printed, whatever it is; what must not happen makes this end with 1: a job that is lost, run twice or answered with
another's values, memory that grows with the jobs, a user who waits for more than one job of another's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from alone import run_alone
from crowd import run_crowd
from serving import Serving
from table import Load, show
from turns import run_turns

from nnsight import CONFIG


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Put a server under load.")
    parser.add_argument("--clients", type=int, default=200, help="users at once, each with a key and a connection")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of all of them together")
    parser.add_argument("--greedy", type=int, default=500, help="jobs that one user hands in at once")
    parser.add_argument("--polite", type=int, default=20, help="jobs that another runs meanwhile, one after another")
    parser.add_argument("--times", type=int, default=200, help="how often a block is timed here and there")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run all of it; return 1 if something is wrong."""
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server ends with it, whoever ends it
    CONFIG.APP.REMOTE_LOGGING = False
    # Not within a folder that holds code: servers refuse to keep jobs where blocks may read.
    with tempfile.TemporaryDirectory(prefix="nnsight-load-") as folder, Serving(Path(folder)) as serving:
        _say(f"one user, {options.times} blocks ...")
        alone = run_alone(serving, options.times)
        _say(f"{options.clients} users, {options.jobs} jobs ...")
        crowd = run_crowd(serving, options.clients, options.jobs)
        _say(f"{options.greedy} jobs of one user, and another ...")
        turns = run_turns(serving, options.greedy, options.polite)
        load = Load(alone, crowd, turns)
    show(load)
    if options.json:
        Path(options.json).write_text(json.dumps(load.figures(), indent=2) + "\n")
    return 1 if load.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
