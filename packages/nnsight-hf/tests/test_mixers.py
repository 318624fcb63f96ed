"""Names for what is no attention, and for what is added up from several modules: against sums taken by plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight import LanguageModel, OutOfOrderError
from nnsight_hf.oracle import zoo
from nnsight_hf.standard import AbsentNameError
from nnsight_hf.standard.report import lacking

PROMPT, OTHER = zoo.tokens(6), zoo.tokens(4)
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def hooked(
    module: Any, prompt: list[int], changes: dict[str, Any] | None = None
) -> tuple[dict[str, Any], torch.Tensor]:
    """What every module gives first, and the logits; with changes of what some give."""
    seen: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def see(part: Any, args: Any, output: Any) -> Any:
            tensor = output if isinstance(output, torch.Tensor) else output[0] if isinstance(output, tuple) else None
            if changes and path in changes and tensor is not None:
                tensor = changes[path](tensor)
                output = tensor if isinstance(output, torch.Tensor) else (tensor, *output[1:])
            if isinstance(tensor, torch.Tensor):
                seen.setdefault(path, tensor.clone())
            return output

        return see

    handles = [part.register_forward_hook(hook(path)) for path, part in module.named_modules()]
    try:
        with torch.no_grad():
            logits = module(torch.tensor([prompt])).logits
    finally:
        for handle in handles:
            handle.remove()
    return seen, logits


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("qwen3_next", ["Qwen3NextGatedDeltaNet", "attention"]),
        ("lfm2", ["Lfm2ShortConv", "attention"]),
        ("granitemoehybrid", ["GraniteMoeHybridMambaLayer", "attention"]),
        ("falcon_h1", ["FalconH1Mixer + attention"] * 2),
        ("nemotron_h", ["NemotronHMamba2Mixer", "none", "attention", "none"]),
        ("mamba", ["MambaMixer"] * 2),
        ("inkling_text", ["attention"] * 2),
        ("gpt2", ["attention"] * 2),
    ],
)
def test_what_mixes_the_positions_of_each_layer_is_said(architecture: str, kinds: list[str]) -> None:
    names = LanguageModel(zoo.module(architecture)).standard
    assert names.mixers == kinds and not lacking(names)
    given = [at not in names.attentions_output.absent for at in range(len(kinds))]
    assert given == ["attention" in kind.split(" + ") for kind in kinds]
    assert list(names.mixers_output.absent) == [at for at, kind in enumerate(kinds) if kind == "none"]
    assert names.identities().hold


def test_a_linear_attention_is_not_passed_off_as_attention() -> None:
    names = LanguageModel(zoo.module("qwen3_next")).standard
    with pytest.raises(AbsentNameError, match=r"no attention.*`model.layers.0.linear_attn`.*`mixers_output`"):
        names.attentions_output[0]
    with pytest.raises(AbsentNameError, match="no attention"):
        names.attentions_input[0]
    seen, _ = hooked(names.model._module, PROMPT)
    with torch.no_grad(), names.trace(PROMPT):
        mixed = [names.mixers_output[0].clone(), names.mixers_output[1].clone()]
    torch.testing.assert_close(mixed[0], seen["model.layers.0.linear_attn"])
    torch.testing.assert_close(mixed[1], seen["model.layers.1.self_attn"])
    assert names.layers[0].mixer._path.endswith("layers.0.linear_attn")
    assert names.layers[1].mixer is names.layers[1].self_attn
    assert "mixers[0]" in repr(names) and "not by attention, but by Qwen3NextGatedDeltaNet" in repr(names)


def test_attention_and_a_state_space_beside_it_are_added_up() -> None:
    module = zoo.module("falcon_h1")
    names, config = LanguageModel(module).standard, module.config
    seen, _ = hooked(module, PROMPT)
    block = "model.layers.1"
    attention = seen[f"{block}.self_attn"] * config.attention_out_multiplier
    state = seen[f"{block}.mamba"] * config.ssm_out_multiplier
    with torch.no_grad(), names.trace(PROMPT):
        both = names.mixers_output[1].clone()
        alone = names.attentions_output[1].clone()
    torch.testing.assert_close(both, attention + state, **CLOSE)
    torch.testing.assert_close(alone, attention, **CLOSE)


SUMMED = {
    "granitemoeshared": ("block_sparse_moe", "shared_mlp"),
    "granitemoehybrid": ("block_sparse_moe", "shared_mlp"),
}


@pytest.mark.parametrize("architecture", SUMMED)
def test_a_sum_is_served_whole_and_an_assignment_replaces_it_whole(architecture: str) -> None:
    module = zoo.module(architecture)
    names, scale = LanguageModel(module).standard, module.config.residual_multiplier
    first, second = (f"model.layers.0.{part}" for part in SUMMED[architecture])
    seen, _ = hooked(module, PROMPT)
    with torch.no_grad(), names.trace(PROMPT):
        added = names.mlps_output[0].clone()
    torch.testing.assert_close(added, (seen[first] + seen[second]) * scale, **CLOSE)

    halves = {first: lambda value: value * 0.5, second: lambda value: value * 0.5}
    _, want = hooked(module, PROMPT, halves)
    with torch.no_grad(), names.trace(PROMPT):
        names.mlps_output[0] = names.mlps_output[0] * 0.5
        assigned = names.logits
    with torch.no_grad(), names.trace(PROMPT):
        names.mlps_output[0].mul_(0.5)
        in_place = names.logits
    with torch.no_grad(), names.trace(PROMPT):
        names.mlps_output[0] = torch.zeros_like(added)
        nothing = names.logits
    torch.testing.assert_close(assigned, want, **CLOSE)
    torch.testing.assert_close(in_place, want, **CLOSE)
    _, gone = hooked(module, PROMPT, dict.fromkeys((first, second), torch.zeros_like))
    torch.testing.assert_close(nothing, gone, **CLOSE)


def test_a_sum_in_invokes_edits_and_steps() -> None:
    module = zoo.module("granitemoeshared")
    model = LanguageModel(module)
    names = model.standard
    halves = {f"model.layers.0.{part}": lambda value: value * 0.5 for part in SUMMED["granitemoeshared"]}
    _, want = hooked(module, PROMPT, halves)
    _, usual = hooked(module, OTHER)
    with torch.no_grad(), names.trace() as tracer:
        with tracer.invoke(OTHER):
            untouched = names.logits
        with tracer.invoke(PROMPT):
            names.mlps_output[0] = names.mlps_output[0] * 0.5
            assigned = names.logits
        with tracer.invoke(PROMPT):
            names.mlps_output[0].mul_(0.5)
            in_place = names.logits
    torch.testing.assert_close(assigned, want, **CLOSE)
    torch.testing.assert_close(in_place, want, **CLOSE)
    torch.testing.assert_close(untouched[:, -4:], usual, **CLOSE)
    with model.edit() as edited:
        names.mlps_output[0].mul_(0.5)
    with torch.no_grad(), edited.trace(PROMPT):
        torch.testing.assert_close(edited.output.logits, want, **CLOSE)
    with model.generate(PROMPT, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0) as tracer:
        sums, parts = [], []
        for _ in tracer.iter[:]:
            sums.append(names.mlps_output[0].clone())
            parts.append(model.model.layers[0].shared_mlp.output.clone())
    scale = module.config.residual_multiplier
    assert [value.shape[1] for value in sums] == [6, 1, 1]
    assert not any(torch.allclose(one, two * scale) for one, two in zip(sums, parts))


def test_a_sum_whose_first_term_has_passed_says_so() -> None:
    names = LanguageModel(zoo.module("granitemoeshared")).standard
    with pytest.raises(OutOfOrderError, match="block_sparse_moe"), torch.no_grad(), names.trace(PROMPT):
        names.model.model.layers[0].shared_mlp.output
        names.mlps_output[0]


@pytest.mark.parametrize("architecture", ["opt", "llama4_text"])
def test_rows_and_positions_in_one_dimension_are_shown_apart(architecture: str) -> None:
    module = zoo.module(architecture)
    names = LanguageModel(module).standard
    (where,) = names.resolution.blocks[0].where["mlps_output"]
    assert where.flat
    alone = [hooked(module, prompt)[0][where.path] for prompt in (PROMPT, OTHER)]
    with torch.no_grad(), names.trace() as tracer:
        with tracer.invoke(PROMPT):
            mine = names.mlps_output[0].clone()
        with tracer.invoke(OTHER):
            other = names.mlps_output[0].clone()
            with pytest.raises(ValueError, match=r"was assigned to it"):
                names.mlps_output[0] = other[:, :2]
    assert mine.shape == (1, 6, 32) and other.shape == (1, 6, 32)
    torch.testing.assert_close(mine[0], alone[0].reshape(-1, 32), **CLOSE)
    torch.testing.assert_close(other[0, -4:], alone[1].reshape(-1, 32), **CLOSE)
    with torch.no_grad(), names.trace([PROMPT, PROMPT]):
        assert names.mlps_output[1].shape == (2, 6, 32)
    with names.generate(
        PROMPT, max_new_tokens=3, min_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0
    ) as tracer:
        shapes = [tuple(names.mlps_output[1].shape) for _ in tracer.iter[:]]
    assert shapes == [(2, 6, 32), (2, 1, 32), (2, 1, 32)]


def test_a_model_in_half_precision_has_the_same_names() -> None:
    for architecture in ("llama", "granite", "gemma2", "opt"):
        whole = LanguageModel(zoo.module(architecture)).standard
        half = LanguageModel(zoo.module(architecture).to(torch.bfloat16)).standard
        for one, other in zip(whole.resolution.blocks, half.resolution.blocks):
            assert {name: [spot.path for spot in where] for name, where in one.where.items()} == {
                name: [spot.path for spot in where] for name, where in other.where.items()
            }
            scales = [[spot.scale for spot in block.where["mlps_output"]] for block in (one, other)]
            assert scales[0] == pytest.approx(scales[1])
        assert half.identities().hold


def test_attention_that_calls_the_chosen_implementation_has_is_causal() -> None:
    from transformers import AttentionInterface

    def hidden(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        """What a kernel of its own would do: no function of torch that computes attention is called."""
        each = module.num_key_value_groups
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
        scores = (query @ key.transpose(2, 3) * scaling).exp()
        scores = scores * torch.ones(scores.shape[-2:]).tril()
        return (scores / scores.sum(-1, keepdim=True) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("hidden", hidden)
    module: Any = zoo.module("qwen3_next")
    module.set_attn_implementation("hidden")
    names = LanguageModel(module).standard
    assert names.mixers == ["Qwen3NextGatedDeltaNet", "attention"] and not lacking(names)
    with pytest.raises(AbsentNameError, match="attn_implementation='eager'"):
        names.attention_probabilities[1]


def test_names_are_found_in_a_model_that_is_being_trained() -> None:
    module = zoo.module("opt").train()
    assert module.config.dropout > 0
    names = LanguageModel(module).standard
    assert not lacking(names) and module.training and module.model.decoder.layers[0].self_attn.training
