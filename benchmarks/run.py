"""Time ours, raw hooks and the peer in one run, and print what each adds to a forward.

    python benchmarks/run.py --peer-python PATH [--others-python PATH] [--quick] [--only NAME] [--json FILE]

What is timed is in `rows.py`, how in `rounds.py` and `worker.py`. This is no test: whatever the figures are, it ends
with 0 unless something broke.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping

import fresh
import pipeline
import remote
import wire
from contender import Contender, ContenderError
from imports import time_imports
from report import Report
from rounds import Timing, time_row
from rows import ROWS

_IMPORT = "import"
_FRESH = "load memory"
_WIRE = "wire"
_REMOTE = "remote"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time ours, raw hooks and the peer in one run.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has ours; this one if not given")
    parser.add_argument("--peer-python", help="the interpreter that has nnsight 0.8.1")
    parser.add_argument("--others-python", help="the interpreter that has pyvene and TransformerLens")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, and noisier")
    parser.add_argument("--only", action="append", metavar="NAME", help="rows and models whose names contain this")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; return 1 if a row broke, whatever the figures are."""
    options = _arguments()
    timing = Timing(rounds=5, seconds=0.05) if options.quick else Timing(rounds=25, seconds=0.1)
    pythons = {"ours": options.python} | ({"peer": options.peer_python} if options.peer_python else {})
    everybody = dict(pythons)
    if options.others_python:
        everybody |= {"pyvene": options.others_python, "TransformerLens": options.others_python}
    report = Report(everybody)
    with tempfile.TemporaryDirectory(prefix="nnsight-bench-") as shared:
        os.environ[pipeline.SHARED] = shared
        broken = _time_rows(report, everybody, timing, options.only)
    if _wanted(_IMPORT, options.only):
        report.imports = time_imports(pythons, 3 if options.quick else 9)
    if _wanted(_FRESH, options.only):
        print("loading and peak memory ...", file=sys.stderr)
        report.fresh = fresh.measure(options.python, 3 if options.quick else 9)
    if _wanted(_WIRE, options.only):
        report.wire = wire.measure(pythons)
    if _wanted(_REMOTE, options.only):
        print("round trips ...", file=sys.stderr)
        report.remote = remote.measure(pythons, options.quick)
    report.show()
    if options.json:
        report.write(options.json)
    return broken


def _time_rows(report: Report, pythons: Mapping[str, str], timing: Timing, only: list[str] | None) -> int:
    """Time the rows that are wanted; return 1 if one broke."""
    contenders = [Contender(name, python) for name, python in pythons.items()]
    broken = 0
    try:
        for row in ROWS:
            if not _wanted(f"{row.name} {row.model}", only):
                continue
            print(f"{row.name}, {row.model} ...", file=sys.stderr)
            try:
                report.add(row, time_row(row, contenders, timing))
            except ContenderError as error:
                broken = 1
                print(error, file=sys.stderr)
    finally:
        for contender in contenders:
            contender.close()
    return broken


def _wanted(name: str, only: list[str] | None) -> bool:
    return not only or any(part.lower() in name.lower() for part in only)


if __name__ == "__main__":
    sys.exit(main())
