"""Models on a Ray cluster of two nodes on this machine: blocks behave as they do here, and whatever dies costs one job."""

from __future__ import annotations

import asyncio
import os
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_server_jobs
import torch
from serving import HERE, Client, Server

import nnsight
from nnsight.plugin import encode_results
from nnsight_remote.server import command
from nnsight_remote.server.cluster.engine import RayEngine
from nnsight_remote.server.cluster.resources import as_options, in_words, parse_resources
from nnsight_remote.server.confine import Confinement
from nnsight_remote.server.engine import HostError, ModelSpec, Task
from nnsight_remote.server.limits import Limits

ray = pytest.importorskip("ray", reason="there is no build of Ray for this Python")

X = test_server_jobs.X
PATH = os.pathsep.join([str(HERE), *filter(None, sys.path)])
NODE = {"num_cpus": 2, "resources": {"lab": 2}, "object_store_memory": 100 << 20}

#: What must not depend on where a model is held. Here `server` is one that holds its model on the cluster.
SAME = (
    "test_a_block_gives_what_it_gives_here",
    "test_what_a_block_prints_arrives_in_order",
    "test_an_error_of_a_block_comes_back_as_itself",
    "test_a_weight_that_a_block_sets_to_zero_is_there_for_the_next",
    "test_a_block_that_never_ends_is_ended_at_its_limit",
    "test_a_process_that_ends_itself_is_one_job_that_failed",
    "test_a_block_that_takes_all_memory_gets_an_error",
    "test_a_block_that_prints_a_gigabyte_keeps_what_it_may",
    "test_a_result_that_is_too_large_is_refused_with_its_size",
    "test_a_running_job_is_cancelled_at_once",
    "test_a_message_that_is_no_request_is_refused_by_the_worker",
)
globals().update({name: getattr(test_server_jobs, name) for name in SAME})


class Nodes:
    """A head that holds no models, and one node that does."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._make = Cluster
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
        self.cluster = self._make(initialize_head=True, head_node_args={**head, "gcs_server_port": self._port})
        self.node = self.cluster.add_node(**NODE)
        self.address: str = self.cluster.address

    def stop(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # The paths of sockets are short.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # What else this machine does costs no actor its life.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        nodes = Nodes()
        patch.setenv("RAY_ADDRESS", nodes.address)
        try:
            yield nodes
        finally:
            nodes.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    allowed = [word for name in ("os", "socket", "signal", "threading") for word in ("--allow-import", name)]
    store = tmp_path_factory.mktemp("ray") / "store"
    line = ("--engine", "ray", "--ray-resource", "lab=1", *allowed, "--limit", "memory_bytes=512M")
    with Server(store, *line).running() as server:
        admin = Client(server.url, server.admin)
        # Whatever comes first waits until the model is there.
        admin.wait(admin.submit(encode_results({}))["id"])
        yield server


@pytest.fixture
def lasting(model, encoded):
    """A block that says which process it is, and which one holds the model, and goes on for ever."""
    with model.trace(X, backend=encoded):
        print("it runs", os.getpid(), os.getppid())
        while True:
            pass
    return encoded.data


class Processes:
    """The processes on a node that belong to a job that runs."""

    def __init__(self, said: str) -> None:
        self.job, self.host = map(int, re.findall(r"it runs (\d+) (\d+)", said)[-1])
        self.actor = parent(self.host)
        self.all = [(pid, os.pidfd_open(pid)) for pid in (self.job, self.host, self.actor)]

    def gone(self) -> None:
        """Wait until they have ended."""
        for pid, end in self.all:
            assert select.select([end], [], [], 30)[0], f"process {pid} is still there"
            os.close(end)


def parent(pid: int) -> int:
    return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def begun(user, lasting):
    """Start a block that goes on for ever; its job, and its processes."""
    job = user.begin(lasting)
    printed = next(event["text"] for event in user.follow(job) if event["kind"] == "log")
    return job, Processes(printed)


def test_the_status_says_on_which_node_a_model_is(model, user, nodes):
    with model.trace(X, backend=user):
        model.output.save()
    (shown,) = user.http.get("/status").json()["models"]
    assert nodes.node.node_id[:12] in shown["node"] and shown["isolation"] == "fork"
    assert user.http.get("/env").json()["models"]["served_models:mlp"]["packages"]["torch"] == torch.__version__


def test_what_travels_in_pieces_arrives_whole(model, user):
    many = torch.arange(3 << 20)  # 24 megabytes
    with model.trace(X, backend=user):
        back = (many + 1).save()
        result = model.output.save()
    assert torch.equal(back, many + 1) and torch.equal(result, test_server_jobs.alone(model))


def test_a_block_cannot_reach_the_cluster(model, user, nodes):
    host, port = nodes.address.split(":")
    with pytest.raises(ImportError, match="--allow-import ray"):
        with model.trace(X, backend=user):
            import ray  # noqa: F401
    with pytest.raises(PermissionError):
        with model.trace(X, backend=user):
            socket.socket().connect((host, int(port)))
    folder = os.environ["RAY_TMPDIR"]
    with pytest.raises(PermissionError):
        with model.trace(X, backend=user):
            os.listdir(folder)


@pytest.mark.parametrize("what", ["host", "node"])
def test_what_is_lost_while_a_job_runs_costs_that_job_and_no_other(model, user, lasting, encoded, nodes, what):
    job, processes = begun(user, lasting)
    with model.trace(X, backend=encoded):
        result = model.output.save()
    next_job = user.submit(encoded.data)["id"]
    if what == "node":
        nodes.cluster.remove_node(nodes.node, allow_graceful=False)
        nodes.node = nodes.cluster.add_node(**NODE)
    else:
        os.kill(processes.host, signal.SIGKILL)
    failure = user.wait(job)["failure"]
    assert failure["reason"] == "host", failure
    if what == "node":
        processes.gone()
    assert user.wait(next_job)["state"] == "completed", user.get(next_job)
    assert torch.equal(user.result(next_job)["result"], test_server_jobs.alone(model))


def test_an_actor_that_is_lost_while_it_is_idle_costs_no_job(model, user):
    with model.trace(X, backend=user):
        host = nnsight.save(os.getppid())
    os.kill(parent(host), signal.SIGKILL)
    with model.trace(X, backend=user):
        result = model.output.save()
    assert torch.equal(result, test_server_jobs.alone(model))


def test_a_server_that_is_killed_leaves_nothing_on_the_nodes_and_loses_no_job(
    nodes, model, lasting, encoded, store_folder
):
    allowed = ("--allow-import", "os", "--engine", "ray", "--ray-resource", "served_models:mlp:lab=1")
    server = Server(store_folder, *allowed).start()
    key = server.key("ada")
    user = Client(server.url, key)
    job, processes = begun(user, lasting)
    with model.trace(X, backend=encoded):
        result = model.output.save()
    queued = user.submit(encoded.data)["id"]
    server.kill()
    processes.gone()
    with server.running():
        user = Client(server.url, key)
        user.http.delete(f"/jobs/{job}")
        assert user.wait(job)["state"] == "cancelled"
        assert torch.equal(user.result(user.wait(queued)["id"])["result"], test_server_jobs.alone(model))


def test_a_cluster_that_dies_costs_the_job_that_ran_and_can_come_back(nodes, model, user, lasting, encoded):
    job, processes = begun(user, lasting)
    nodes.stop()
    assert user.wait(job)["failure"]["reason"] == "host"
    processes.gone()
    with model.trace(X, backend=encoded):
        result = model.output.save()
    failure = user.wait(user.submit(encoded.data)["id"])["failure"]
    assert failure["reason"] == "model" and nodes.address in failure["message"], failure
    nodes.start()
    done = user.wait(user.submit(encoded.data)["id"])
    assert torch.equal(user.result(done["id"])["result"], test_server_jobs.alone(model))


def start(engine: RayEngine) -> str:
    """Why a model cannot be started."""

    async def starting() -> None:
        host = engine.host(ModelSpec("mlp", "served_models:mlp"))
        try:
            await host.start()
        finally:
            await host.stop()

    with pytest.raises(HostError) as raised:
        asyncio.run(starting())
    return str(raised.value)


def test_a_cluster_without_room_says_what_was_asked_for_and_what_there_is(nodes):
    resources = {"": {"lab": 1.0, "memory": 2.0**40}, "mlp": {"num_cpus": 3.0}, "other": {"num_cpus": 9.0}}
    said = start(RayEngine(Confinement(), resources=resources, wait_seconds=1, address=nodes.address))
    assert "within 1 s" in said and "given lab=1, memory=1024G, num_cpus=3" in said and "lab=2" in said
    assert "It has" in said and "num_cpus=2" in said


def test_a_node_with_other_versions_is_refused_by_name(nodes, tmp_path):
    about = tmp_path / "nnsight_remote-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nnsight-remote\nVersion: 9.9\n")
    other = {"PYTHONPATH": os.pathsep.join([str(tmp_path), PATH])}
    node = nodes.cluster.add_node(num_cpus=1, resources={"newer": 1}, object_store_memory=100 << 20, env_vars=other)
    said = start(RayEngine(Confinement(), resources={"": {"newer": 1.0}}, address=nodes.address))
    nodes.cluster.remove_node(node)
    assert f"ray {ray.__version__}" in said
    assert node.node_id[:12] in said and "nnsight-remote 9.9 there" in said and "the same on all nodes" in said


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", "no connection"), ("ray://lab:10001", "ray start")])
def test_an_address_where_no_cluster_is_says_so(address, said):
    complaint = start(RayEngine(Confinement(), wait_seconds=5, address=address))
    assert said in complaint and address in complaint


def test_a_resident_job_that_is_stopped_is_dead_and_takes_the_model_with_it(nodes, lasting, tmp_path):
    said: list[bytes] = []
    (tmp_path / "request").write_bytes(lasting)

    async def stopping() -> bool:
        printed = asyncio.Event()

        def heard(line: bytes) -> None:
            said.append(line)
            printed.set()

        engine = RayEngine(Confinement(imports=("os",)), "resident", resources={"": {"lab": 1}}, address=nodes.address)
        host = engine.host(ModelSpec("mlp", "served_models:mlp"))
        about = await host.start()
        assert about["isolation"] == "resident" and host.alive
        run = asyncio.create_task(host.run(Task(tmp_path / "request", tmp_path / "result", Limits(), heard)))
        await asyncio.wait_for(printed.wait(), 60)
        job = int(re.search(rb"it runs (\d+)", b"".join(said))[1])
        end = os.pidfd_open(job)
        run.cancel()
        await asyncio.wait([run])
        assert select.select([end], [], [], 0)[0], "the job runs on"
        os.close(end)
        alive = host.alive
        await host.stop()
        return alive

    assert asyncio.run(stopping()) is False


def test_resources_are_for_all_models_or_for_one():
    words = ["num_gpus=1", "large:num_gpus=4", "memory=2G", "node:10.0.0.7=0.1", "a:b:num_cpus=2"]
    found = parse_resources(words, ["large", "a:b"])
    assert found == {
        "": {"num_gpus": 1, "memory": 2 << 30, "node:10.0.0.7": 0.1},
        "large": {"num_gpus": 4},
        "a:b": {"num_cpus": 2},
    }
    assert as_options(found[""]) == {"num_gpus": 1, "memory": 2 << 30, "resources": {"node:10.0.0.7": 0.1}}
    engine = RayEngine(Confinement(), resources=found)
    assert engine.resources_of("large")["num_gpus"] == 4 and engine.resources_of("other")["num_gpus"] == 1
    assert in_words({"memory": 2 << 30, "num_cpus": 1}) == "memory=2G, num_cpus=1" and in_words({}) == "nothing"
    for wrong in ("num_gpus", "num_gpus=many", "num_gpus=-1", "=1", "large:=1"):
        with pytest.raises(ValueError, match="NAME=NUMBER"):
            parse_resources([wrong], ["large"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [(["--ray-resource", "num_gpus"], "NAME=NUMBER"), (["--ray-wait", "0"], "seconds above 0")],
)
def test_a_line_that_asks_for_no_cluster_that_could_be_is_refused(line, complaint, store_folder, capsys):
    assert command.main(["m", "--engine", "ray", *line, "--store", str(store_folder)]) == 2
    assert complaint in capsys.readouterr().err and not store_folder.exists()


def test_without_ray_it_says_what_to_install(store_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command.main(["m", "--engine", "ray", "--store", str(store_folder)]) == 2
    assert 'pip install "nnsight-remote[ray]"' in capsys.readouterr().err
