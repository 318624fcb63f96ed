"""Round trips over the loopback interface: a block sent to a server, and what it saved brought back.

    python benchmarks/run.py --only remote ...

Ours is `nnsight serve` as anybody starts it, but for keys: a process for each job, confined, with queue and store. The peer
is nnsight 0.8.1's own client and the least that it can talk to (`peer_server.py`): one process that does nothing else. The
clients take turns, a burst each.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

HERE = Path(__file__).parent
#: What is timed, by the work of `remote_client.py`: how the report calls it, the calls of a burst, and the bursts.
WORKS = {
    "one read": ("a trace that reads one layer of 12", 10, 20),
    "all layers": ("a trace that saves 12 layers of 8 prompts of 512 tokens, 13 MB", 1, 7),
}
#: What ours must stay below, as a multiple of the peer.
BOUND = 1.0
_UNLIMITED = "requests_per_minute=1000000"


@dataclass(frozen=True)
class RoundTrip:
    """The times of one work, in seconds, by contender.

    Attributes:
        remote, local: medians.
        errors: of `remote`: the standard error of the median.
        stages: seconds that jobs of ours spent in each stage, as the server tells it; medians.
    """

    work: str
    remote: dict[str, float]
    local: dict[str, float]
    errors: dict[str, float]
    stages: dict[str, float]

    def ratio(self) -> tuple[float, float] | None:
        """Return our time as a multiple of the peer's, and its error; None if the peer did not run."""
        if "peer" not in self.remote:
            return None
        ours, theirs = self.remote["ours"], self.remote["peer"]
        return ours / theirs, ours / theirs * math.hypot(self.errors["ours"] / ours, self.errors["peer"] / theirs)


def measure(pythons: Mapping[str, str], quick: bool) -> list[RoundTrip]:
    """Time all works; `pythons` are the interpreters by contender."""
    with ExitStack() as stack:
        urls = {"ours": stack.enter_context(_ours(pythons["ours"]))}
        if "peer" in pythons:
            urls["peer"] = stack.enter_context(_peers(pythons["peer"]))
        clients = {name: stack.enter_context(_client(pythons[name], name, url)) for name, url in urls.items()}
        return [_time(work, clients, urls["ours"], quick) for work in WORKS]


def _time(work: str, clients: Mapping[str, Any], url: str, quick: bool) -> RoundTrip:
    _, calls, bursts = WORKS[work]
    remote: dict[str, list[float]] = {name: [] for name in clients}
    local: dict[str, list[float]] = {name: [] for name in clients}
    for client in clients.values():
        client(do="prepare", work=work)
        client(do="remote", work=work, calls=calls)
    for _ in range(max(3, bursts // 4) if quick else bursts):
        for name, client in clients.items():
            remote[name] += client(do="remote", work=work, calls=calls)
            local[name] += client(do="local", work=work, calls=max(1, calls // 5))
    with urlopen(f"{url}/jobs?count={len(remote['ours'])}") as answer:
        jobs = [job["stages"] for job in json.load(answer)]
    stages = {stage: statistics.median(job.get(stage, 0.0) for job in jobs) for stage in jobs[0]}
    medians = [{name: statistics.median(times) for name, times in each.items()} for each in (remote, local)]
    return RoundTrip(work, *medians, {name: _error(times) for name, times in remote.items()}, stages)


def _error(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return 1.2533 * (high - low) / 1.349 / math.sqrt(len(values))


@contextmanager
def _ours(python: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="nnsight-bench-") as folder:
        line = [python, "-m", "nnsight", "serve", "gpt2:wrapped", "--open", "--port", "0", "--threads", "1"]
        line += ["--store", f"{folder}/store", "--limit", _UNLIMITED, "--log-level", "warning"]
        with _process(line, "ours", str(HERE)) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            if " at http" not in said:
                raise RuntimeError("`nnsight serve` did not start; the lines above say why")
            yield said.split(" at ")[1].split()[0]


@contextmanager
def _peers(python: str) -> Iterator[str]:
    with _process([python, str(HERE / "peer_server.py")], "peer") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def _client(python: str, name: str, url: str) -> Iterator[Any]:
    with _process([python, str(HERE / "remote_client.py"), name, url], name) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def ask(**request: Any) -> list[float]:
            print(json.dumps(request), file=asked, flush=True)
            line = answers.readline()
            if not line:
                raise RuntimeError(f"the client of {name} ended; the lines above say why")
            times: list[float] = json.loads(line)
            return times

        yield ask


@contextmanager
def _process(line: list[str], contender: str, *path: str) -> Iterator[subprocess.Popen[str]]:
    # What leads to our sources would lead the peer to them as well: both are imported as `nnsight`.
    given = os.environ.get("PYTHONPATH", "") if contender == "ours" else ""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*path, given]))}
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
