"""The package is found by the core as a plugin, and its model by the names that users write."""

from __future__ import annotations

from importlib.metadata import entry_points, version

import nnsight
import nnsight_vllm
from nnsight_vllm import plugin


def test_the_entry_point_is_declared_and_loads_the_plugin_module() -> None:
    (entry,) = entry_points(group="nnsight", name="vllm")
    assert entry.dist is not None and entry.dist.name == "nnsight-vllm"
    assert entry.load() is plugin


def test_the_core_finds_it_and_finds_nothing_wrong() -> None:
    (found,) = [one for one in nnsight.plugins() if one.distribution == "nnsight-vllm"]
    assert (found.name, found.version, found.problem) == ("vllm", nnsight_vllm.__version__, None)
    assert "VLLM" in found.offers["families"]


def test_the_version_in_the_code_is_the_version_installed() -> None:
    assert nnsight_vllm.__version__ == version("nnsight-vllm")


def test_the_model_is_had_from_the_core_and_from_the_path_of_earlier_releases() -> None:
    from nnsight.modeling.vllm import VLLM as earlier

    from nnsight import VLLM
    from nnsight_vllm.model import VLLM as here

    assert VLLM is here and earlier is here


def test_what_a_prompt_leads_to_in_an_engine_is_what_it_leads_to_in_transformers(llama, gpt2) -> None:
    for pair in (llama, gpt2):
        ids = [5, 17, 33, 60]
        output = pair.served.generate(ids, temperature=0, max_tokens=5, ignore_eos=True)
        import torch

        given = torch.tensor([ids])
        plain = pair.plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=5, do_sample=False)
        assert list(output.outputs[0].token_ids) == plain[0, 4:].tolist()
