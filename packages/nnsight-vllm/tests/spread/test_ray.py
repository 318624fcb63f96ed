"""Engines that are spread over the nodes of a Ray cluster: a head without devices and two nodes with one each, all of them
processes of this machine, started by the scripts of the documentation's example. Ray's logical GPUs stand for CPUs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight_vllm import cluster
from nnsight_vllm.errors import ClusterError

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.timeout(400),  # the nodes start in the first of them, and workers, which import vLLM
]

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[3] / "docs" / "examples" / "vllm-cluster"
OPTIONS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "block_size": 32, "num_gpu_blocks_override": 40}
IDS = [5, 17, 33, 60]
GREEDY = {"temperature": 0, "max_tokens": 3, "ignore_eos": True}


PARTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Nodes:
    """A cluster, and programs that use it as drivers."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.folder = folder
        plugin = folder / "plugin"
        shutil.copytree(HERE / "cpus_on_ray", plugin)
        about = plugin / "cpus_on_ray-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cpus-on-ray\nVersion: 0\n")
        (about / "entry_points.txt").write_text("[vllm.platform_plugins]\ncpus_on_ray = cpus_on_ray:register\n")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(plugin), *filter(None, sys.path)]),
            "RAY_TMPDIR": str(folder),
            "HEAD": self.address,
            "PORT": self.address.partition(":")[2],
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, count: int, script: str, *arguments: str, **environment: str) -> None:
        """Run a script of the example, which stays, until so many nodes are there; one that fails to start is tried again."""
        for _ in range(3):
            # A node does not wait for parts of it that are told where to listen: on few cores some start late.
            ports = " ".join(f"--{part}-port={free_port()}" for part in PARTS)
            small = f"--object-store-memory=100000000 {ports} {' '.join(arguments)}"
            with open(self.folder / "nodes.log", "ab") as log:
                process = subprocess.Popen(
                    ["bash", str(EXAMPLE / script)],
                    env={**self.environment, **environment, "RAY_ARGS": small},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.running.append(process)
            if self.driver(_are_there, count, 45):
                return
            self.stop(self.running.pop())
        raise AssertionError((self.folder / "nodes.log").read_text()[-4000:])

    def driver(self, program: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
        """Run a function in a fork of this process, which finds the cluster by RAY_ADDRESS, and return what it returns."""
        forks = multiprocessing.get_context("fork")
        here, there = forks.Pipe(False)
        environment = {**self.environment, "RAY_ADDRESS": self.address, **environment}
        process = forks.Process(target=_drive, args=(there, environment, program, arguments))
        process.start()
        there.close()
        try:
            failed, found = here.recv()
        except EOFError:
            failed, found = True, "it ended without an answer"
        finally:
            process.join()
        assert not failed, f"{found}\n{(self.folder / 'nodes.log').read_text()[-2000:]}"
        return found

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """End nodes, and what they started: Ray sees to it when it is asked to end."""
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _drive(answer: Any, environment: dict[str, str], program: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from vllm.platforms.cpu import CpuPlatform

    # As the plugin has it for workers: the platform of this process has been chosen before.
    CpuPlatform.ray_device_key = "GPU"
    CpuPlatform.ray_noset_device_env_vars = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, environment["PYTHONPATH"].partition(os.pathsep)[0])  # for processes that this one begins
    try:
        answer.send((False, program(*arguments)))
    except BaseException:
        answer.send((True, traceback.format_exc()))


def _are_there(count: int, seconds: float) -> bool:
    import ray

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if not ray.is_initialized():
                ray.init(logging_level="error")
            if sum(node["Alive"] for node in ray.nodes()) >= count:
                return True
        except ConnectionError:  # the head is not there yet
            pass
        time.sleep(0.2)  # Ray has nothing to wait for
    return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # Short, for the names of sockets have an end.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    nodes = Nodes(folder)
    try:
        nodes.start(1, "head.sh", f"--temp-dir={folder}")
        for count in (2, 3):
            nodes.start(count, "node.sh", GPUS="1")
        yield nodes
    finally:
        nodes.stop(*nodes.running)
        shutil.rmtree(folder, ignore_errors=True)


def _trace_spread(folder: str) -> dict[str, Any]:
    import ray

    from nnsight import VLLM

    model = VLLM(folder, tensor_parallel_size=2, distributed_executor_backend="ray", **OPTIONS)
    mlp = model.model.layers[1].mlp
    with model.trace(IDS, **GREEDY) as tracer:
        whole = [].save()
        for _ in tracer.iter[:]:
            whole.append((mlp.gate_up_proj.output[0], mlp.down_proj.output[0]))
        plain = tracer.result.save()
    with model.trace(IDS, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.logits.output[:, 7] = 1e4
        steered = tracer.result.save()
    try:
        with model.trace(IDS, max_tokens=1):
            raise KeyError(model.model.layers[0].mlp.output.shape[0])
    except KeyError as error:
        raised = error.args
    if not ray.is_initialized():  # it is the engine's process that joined
        ray.init(logging_level="error")
    try:
        cluster._wait_for_devices(ray, "GPU", 8, 0.1)
    except ClusterError as error:
        refused = str(error)
    groups = ray.util.placement_group_table().values()
    workers = [node for group in groups for node in group["bundles_to_node_id"].values()]
    driver = ray.get_runtime_context().get_node_id()
    model.shutdown()  # a program that ends does this itself, and this one is a fork that does not
    return {
        "whole": [[value.numpy() for value in both] for both in whole],
        "plain": list(plain.outputs[0].token_ids),
        "steered": list(steered.outputs[0].token_ids),
        "raised": raised,
        "refused": refused,
        "driver": driver,
        "workers": workers,
    }


@pytest.mark.parametrize("own_process", ["0", "1"], ids=["the driver is the engine", "the engine has a process"])
def test_an_engine_on_two_nodes_gives_what_transformers_computes(own_process, nodes, folder, plain):
    found = nodes.driver(_trace_spread, str(folder), VLLM_ENABLE_V1_MULTIPROCESSING=own_process)
    rows, hooks = {}, []
    mlp = plain.model.layers[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        seen = rows[name] = []
        hooks.append(getattr(mlp, name).register_forward_hook(lambda _, args, out, seen=seen: seen.append(out[0])))
    ids = torch.tensor([IDS])
    with torch.no_grad():
        tokens = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)[0, 4:]
    for hook in hooks:
        hook.remove()
    assert found["plain"] == tokens.tolist()
    assert found["steered"] == [7, 7, 7]
    assert found["raised"] == (4,)
    assert len(found["whole"]) == 3
    for (merged, down), gate, up, expected in zip(found["whole"], *rows.values(), strict=True):
        torch.testing.assert_close(torch.tensor(merged), torch.cat([gate, up], -1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(down), expected, rtol=1e-4, atol=1e-5)
    assert "needs 8 GPUs" in found["refused"] and "has 2, of which 0 are free" in found["refused"]
    assert len(set(found["workers"])) == 2
    assert found["driver"] not in found["workers"]


def _join(seconds: float) -> str:
    try:
        cluster.join({"tensor_parallel_size": 2}, seconds)
    except ClusterError as error:
        return str(error)
    return "joined"


def test_where_no_cluster_answers_it_is_said_at_once(nodes):
    said = nodes.driver(_join, 5, RAY_ADDRESS="127.0.0.1:9")
    assert "127.0.0.1:9" in said
