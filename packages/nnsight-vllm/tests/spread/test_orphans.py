"""A process of an engine does not outlive the one that started it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import multiprocessing, sys, threading

from nnsight_vllm.orphans import end_with_parent

def be_an_engine(said):
    end_with_parent()
    said.set()
    threading.Event().wait()

if __name__ == "__main__":
    said = multiprocessing.Event()
    process = multiprocessing.Process(target=be_an_engine, args=(said,), name=sys.argv[1])
    process.start()
    said.wait()
    print(process.pid, flush=True)
    threading.Event().wait()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux says when a process that is not a child ends")
@pytest.mark.parametrize(("name", "ends"), [("EngineCore_DP0", True), ("SomebodyElse", False)])
def test_a_process_of_an_engine_ends_when_the_one_that_started_it_is_killed(name, ends, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script), name], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        engine = os.pidfd_open(pid)
        try:
            process.send_signal(signal.SIGKILL)
            process.wait()
            ended = bool(select.select([engine], [], [], 30 if ends else 0.5)[0])
        finally:
            if not select.select([engine], [], [], 0)[0]:
                os.kill(pid, signal.SIGKILL)
            os.close(engine)
    assert ended == ends
