"""The Ray cluster that an engine is spread over: joined, and looked at, before vLLM is started on it.

One idea: vLLM asks the cluster for its devices and waits half an hour for them, without a word to whoever asked. So what
can be known is found out first, in a bounded time: that Ray is here and the cluster there, that it has so many devices free,
and that its nodes have the same code. This process joins as a driver and takes no device; the workers are actors.

relies on: `ray.init` is left alone where Ray is connected already; an engine in a process of its own connects to
`RAY_ADDRESS`; `ray_device_key` of a platform names the resource that a worker takes; vLLM 0.28 to 0.33.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ClusterError

#: What multiplies the number of workers.
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
_LOOK = 0.5


def join(options: Mapping[str, Any], seconds: float) -> None:
    """Connect this process to the cluster of an engine, and return when there is room for it.

    `RAY_ADDRESS` says where the cluster is; without it, it is the one that this machine is part of, or one that begins here.

    Args:
        options: of the engine.
        seconds: how long the cluster may take to answer, and to have devices free.

    Raises:
        ClusterError: Ray is missing, nothing answers, devices are missing, or nodes have other code.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ClusterError(
            "distributed_executor_backend='ray' needs Ray, which is not installed here: pip install 'nnsight-vllm[ray]'"
        ) from error
    import vllm.envs
    from vllm.platforms import current_platform

    if not current_platform.ray_device_key:
        raise ClusterError(
            f"vLLM does not spread a model with Ray where it runs on {current_platform.device_type}: leave "
            "distributed_executor_backend='ray' out"
        )
    ours = not ray.is_initialized()
    own_process = bool(vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING)
    if ours and not _connect(ray, seconds):
        if own_process:
            return  # the engine begins one in its own process, with what this machine has
        ray.init(logging_level="warning")
    wanted = 1
    for name in _SIZES:
        wanted *= int(options.get(name) or 1)
    _check_nodes(ray, current_platform.ray_device_key, seconds)
    _wait_for_devices(ray, current_platform.ray_device_key, wanted, seconds)
    if own_process:
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        if ours:
            ray.shutdown()  # that process is forked, and a connection is no good to two


def _connect(ray: Any, seconds: float) -> bool:
    """Connect to a cluster that is there; say whether there is one."""
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS={address} is for Ray's client, and an engine is a driver on a machine of the cluster. Join it with "
            "`ray start --address=HOST:6379 --num-cpus=0 --num-gpus=0`, and set RAY_ADDRESS=HOST:6379"
        )
    host, colon, port = address.rpartition(":")
    path = os.environ.get("PYTHONPATH")
    # What is found here by its path may be found so on nodes, too, beside what these have.
    environment = {"env_vars": {"PYTHONPATH": f"{path}{os.pathsep}${{PYTHONPATH}}"}} if path else None
    try:
        if colon and port.isdigit():
            # Ray itself tries for minutes to reach what is not there.
            socket.create_connection((host.strip("[]"), int(port)), seconds).close()
        ray.init(address=address, logging_level="warning", runtime_env=environment)
    except ConnectionError as error:
        if address == "auto":
            return False
        raise ClusterError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: also for other versions of Python or Ray
        raise ClusterError(f"no connection to the Ray cluster at {address}: {error}") from error
    return True


def _check_nodes(ray: Any, key: str, seconds: float) -> None:
    """See that every node that has devices has the code that is here."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    code = _looking()
    here, ask = code(), ray.remote(code)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(key)]
    asked = {
        ask.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): (f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    if silent:
        raise ClusterError(f"the Ray node {asked[silent[0]]} runs nothing: it did not answer within {seconds:g} s")
    for answer in answered:
        there = ray.get(answer)
        differs = [f"{name} {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]
        if differs:
            raise ClusterError(
                f"the Ray node {asked[answer]} has other code than this process: {'; '.join(differs)}. Install the same on "
                "all nodes; what lies in folders is found there by the PYTHONPATH of `ray start`"
            )


def _looking() -> Callable[[], dict[str, str]]:
    """Return a function that says what an engine's workers need, and which of it there is where it runs."""

    # In here, so that it travels by value: to nodes that may have nothing of ours.
    def code() -> dict[str, str]:
        import importlib.util
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name, package in (("vllm", "vllm"), ("nnsight-vllm", "nnsight_vllm"), ("nnsight-core", "nnsight")):
            for distribution in (name, f"{name}-cpu"):
                try:
                    found[name] = version(distribution)
                    break
                except PackageNotFoundError:
                    continue
            else:
                found[name] = "as a folder" if importlib.util.find_spec(package) else "not installed"
        return found

    return code


def _wait_for_devices(ray: Any, key: str, wanted: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (free := ray.available_resources().get(key, 0)) < wanted:
        if time.monotonic() > end:
            there = ray.cluster_resources().get(key, 0)
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
            raise ClusterError(
                f"the engine needs {wanted} {key}s, one for each of its workers, and the Ray cluster (nodes: {nodes}) has "
                f"{there:g}, of which {free:g} are free; that was waited for {seconds:g} s (`cluster_seconds=`). `ray "
                "status` says what uses them; a smaller `tensor_parallel_size=` needs fewer"
            )
        time.sleep(_LOOK)
