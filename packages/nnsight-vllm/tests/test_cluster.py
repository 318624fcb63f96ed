"""What is said of clusters without one: the example of the documentation, and what is refused before Ray is asked."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from nnsight_vllm.cluster import join
from nnsight_vllm.errors import ClusterError

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "vllm-cluster"


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_where_vllm_does_not_use_ray_it_is_said_before_anything_starts(llama):
    with pytest.raises(ClusterError, match="cpu"):
        join({"tensor_parallel_size": 2}, 1)
    from nnsight import VLLM

    options = {"dtype": "float32", "max_model_len": 64}
    model = VLLM(str(llama.folder), tensor_parallel_size=2, distributed_executor_backend="ray", **options)
    with pytest.raises(ClusterError, match="cpu"):
        model.dispatch()
    assert not model.dispatched


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_where_ray_is_missing_it_is_said_what_to_install():
    with pytest.raises(ClusterError, match=r"nnsight-vllm\[ray\]"):
        join({"tensor_parallel_size": 2}, 1)


@pytest.mark.skipif(not EXAMPLE.is_dir(), reason="the documentation is not here")
def test_the_compose_file_names_what_is_there():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())
    services = found["services"]
    assert set(services) == {"head", "node-1", "node-2", "client"}
    dockerfile = (EXAMPLE / "Dockerfile").read_text()
    for service in services.values():
        for word in " ".join(service["command"]).replace("&&", " ").split():
            if word.endswith((".sh", ".py")):
                assert (EXAMPLE / word).is_file() and word in dockerfile
        for other in service.get("depends_on", {}):
            assert other in services
    for script in EXAMPLE.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert os.access(script, os.X_OK)
