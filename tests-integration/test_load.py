"""The load run of the benchmarks, with fewer users: nothing lost, nothing mixed up, everybody's turn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [server] of nnsight-remote is not installed")
if sys.platform != "linux":
    pytest.skip("what is sampled stands in /proc", allow_module_level=True)

RUN = Path(__file__).parent.parent / "benchmarks" / "load" / "run.py"


def test_many_users_at_once_get_their_own_answers(tmp_path):
    figures = tmp_path / "figures.json"
    few = ["--clients", "20", "--jobs", "100", "--greedy", "40", "--polite", "4", "--times", "5"]
    done = subprocess.run([sys.executable, RUN, *few, "--json", figures], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(figures.read_text())
    assert said["wrong"] == [] and said["jobs"] == 100 and said["turns"]["most jobs between"] <= 1
    assert set(said["alone"]["shares"]) == {"serialisation", "queue", "run", "handling", "transfer"}
