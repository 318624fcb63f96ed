"""Code for a Python that has imported nothing of nnsight: how one starts, and what importing does there.

The one idea: most of the time of a new interpreter goes into importing torch, so one does that once, and each piece of code
runs in a fork of it. What is about Python's own options and ways to be started needs an interpreter of its own.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nnsight

_FORKING = """
import json, os, signal, sys, tempfile, traceback
import torch

for line in sys.stdin:
    task = json.loads(line)
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        ended = 1
        signal.alarm(110)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        try:
            os.chdir(task["folder"])
            os.environ.clear()
            os.environ.update(task["environment"])
            sys.argv[:] = ["-c", *task["arguments"]]
            space = {"__name__": "__main__"}
            exec(compile(task["code"], "<string>", "exec"), space)
            ended = 0
        except SystemExit as error:
            ended = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended)
    _, status = os.waitpid(child, 0)
    said = []
    for file in files:
        file.seek(0)
        said.append(file.read())
        file.close()
    print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)
"""


@functools.cache
def _forking() -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(nnsight.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )

    def end() -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait()

    atexit.register(end)
    return process


def in_fresh_python(
    code: str, *arguments: str, folder: Any = ".", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code where torch is imported and nothing of nnsight is, with more in its environment."""
    process = _forking()
    assert process.stdin is not None and process.stdout is not None
    task = {
        "code": code,
        "arguments": arguments,
        "folder": os.path.abspath(folder),
        "environment": {**os.environ, **environment},
    }
    print(json.dumps(task), file=process.stdin, flush=True)
    status, out, error = json.loads(process.stdout.readline())
    return subprocess.CompletedProcess(["python", "-c", code, *arguments], status, out, error)
