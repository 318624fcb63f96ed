"""`VLLM(...)` as it is by default: traces are waited for, and the engine has processes of its own, which end with ours. Here
it is spread over two workers; in `test_async.py` it is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import json, multiprocessing, sys
from vllm.v1.engine import utils
from vllm.v1.executor import multiproc_executor

import nnsight
from nnsight import VLLM

# Forks of this process, which has imported all that takes long to import.
utils.get_mp_context = multiproc_executor.get_mp_context = lambda: multiprocessing.get_context("fork")

if __name__ == "__main__":
    model = VLLM(
        sys.argv[1], dtype="float32", max_model_len=256, max_num_seqs=8, block_size=32, num_gpu_blocks_override=40,
        tensor_parallel_size=2,
    )
    assert not model.dispatched
    with model.trace() as tracer:
        seen = nnsight.save({})
        for number, ids in enumerate(([5, 6, 7], [60])):
            with tracer.invoke(ids, max_tokens=4, temperature=0, ignore_eos=True):
                hidden, gate_up = [], []
                for _ in tracer.iter[:]:
                    gate_up.append(model.model.layers[1].mlp.gate_up_proj.output[0])
                    hidden.append(sum(model.model.layers[2].output))
                seen[number] = [hidden, tracer.result.outputs[0].token_ids, gate_up]
    try:
        with model.trace([5], max_tokens=4):
            model.model.layers[0].output
            1 / 0
    except ZeroDivisionError as error:
        raised = type(error).__name__
    with model.edit() as changed:
        model.model.layers[1].output[0][:] = 0
    model.install("changed", changed)
    given = [model.generate([5, 6, 7], max_tokens=4, temperature=0, ignore_eos=True, standing=s) for s in ((), "changed")]
    print(json.dumps({
        "seen": {
            number: [[h.tolist() for h in hidden], list(tokens), [one.tolist() for one in gate_up]]
            for number, (hidden, tokens, gate_up) in seen.items()
        },
        "raised": raised,
        "tracebacks by": sys.excepthook.__module__,
        "given": [list(one.outputs[0].token_ids) for one in given],
        "processes": [process.pid for process in multiprocessing.active_children()],
    }))
"""


@pytest.mark.timeout(400)  # three processes, each of which imports vLLM
def test_a_program_that_ends_takes_its_engine_along_and_what_it_saw_is_what_transformers_gives(plain, folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    ended = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "EngineDeadError" not in ended.stdout + ended.stderr
    said = json.loads(ended.stdout.strip().splitlines()[-1])
    seen, parts, mlp = [], [], plain.model.layers[1].mlp
    hooks = [
        plain.model.layers[2].register_forward_hook(lambda module, args, out: seen.append(out[0])),
        mlp.gate_proj.register_forward_hook(lambda module, args, out: parts.append(out[0])),
        mlp.up_proj.register_forward_hook(lambda module, args, out: parts.append(out[0])),
    ]
    for number, ids in enumerate(([5, 6, 7], [60])):
        ids = torch.tensor([ids])
        with torch.no_grad():
            out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
            seen.clear(), parts.clear()
            plain(out[:, :-1])
        hidden, tokens, gate_up = said["seen"][str(number)]
        torch.testing.assert_close(
            torch.tensor([row for step in gate_up for row in step]), torch.cat(parts, -1), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            torch.tensor([row for step in hidden for row in step]), seen[0], atol=1e-4, rtol=1e-4
        )
        assert tokens == out[0, ids.shape[1] :].tolist()
    for hook in hooks:
        hook.remove()
    assert said["raised"] == "ZeroDivisionError" and not said["tracebacks by"].startswith("torch")
    assert said["given"][0] == said["seen"]["0"][1] != said["given"][1]
    assert said["processes"] and not any(map(_is_there, said["processes"]))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
