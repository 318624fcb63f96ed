"""Standard names mean in an engine what they mean in transformers, whatever a layer of the engine gives.

The oracle is the same checkpoint in transformers, with plain hooks on the parts that are named for each family.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from engines import OPTIONS
from families import FAMILIES

import nnsight
from nnsight import VLLM, NNsightError
from nnsight_vllm.standard import AbsentNameError

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
IDS = [*range(10, 31), 7]


class Twin:
    """A model of transformers, and what passes in it.

    Args:
        plain: the model.
        family: what its parts are called.
    """

    def __init__(self, plain: Any, family: Any) -> None:
        self.plain, self.family = plain, family
        # Of classes that vLLM runs with transformers' code, it changes the call, for what it builds and for all others.
        plain.base_model.do_not_compile = True
        self.layers = plain.get_submodule(family.layers)
        self.change: dict[str, Any] = {}

    def run(self, ids: list[int]) -> dict[str, Any]:
        """Run the model with `change` made, and return what passed [1, tokens, hidden]."""
        seen: dict[str, list[Any]] = {
            "layers_input": [],
            "attentions_output": [],
            "mlps_output": [],
            "layers_output": [],
        }
        parts = [(self.plain.get_input_embeddings(), "token_embeddings", 0)]
        for number, layer in enumerate(self.layers):
            parts += [(layer.get_submodule(self.family.attention), "attentions_output", number)]
            parts += [(layer.get_submodule(self.family.mlp), "mlps_output", number), (layer, "layers_output", number)]
        handles = [part.register_forward_hook(self._hook(seen, name, at), with_kwargs=True) for part, name, at in parts]
        with torch.no_grad():
            seen["logits"] = self.plain(torch.tensor([ids])).logits
        for handle in handles:
            handle.remove()
        return seen

    def _hook(self, seen: dict[str, Any], name: str, at: int) -> Any:
        scale = self.family.scale if name in ("attentions_output", "mlps_output") else 1.0

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            value = output if isinstance(output, torch.Tensor) else output[0]
            shape = value.shape
            if name == "layers_output":
                given = args[0] if args else kwargs["hidden_states"]
                seen["layers_input"].append(given)
                value = given if self.change.get("skip") == at else value
            value = value.reshape(1, -1, value.shape[-1]) * scale
            value = self.change.get(f"{name} {at}", lambda same: same)(value)
            seen.setdefault(name, []).append(value)
            new = (value / scale).reshape(shape)
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        return hook

    def tokens(self, count: int) -> list[int]:
        """Return what is greedily generated."""
        ids = list(IDS)
        for _ in range(count):
            ids.append(int(self.run(ids)["logits"][0, -1].argmax()))
        return ids[len(IDS) :]


@pytest.fixture(scope="module", params=list(FAMILIES))
def both(request, tmp_path_factory):
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    twin = Twin(checkpoints.save(folder, family.make()), family)
    model = VLLM(str(folder), **OPTIONS)
    yield model.standard, twin
    model.shutdown()
    gc.collect()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_value_is_that_of_transformers(both):
    model, twin = both
    with model.trace(IDS, max_tokens=1, **GREEDY):
        embeddings = model.token_embeddings.save()
        seen = nnsight.save({})
        for at in range(model.num_layers):
            for name in ("layers_input", "attentions_output", "mlps_output", "layers_output"):
                seen.setdefault(name, []).append(getattr(model, name)[at])
        lens = model.project_on_vocab(model.layers_output[-1]).save()
        logits, probabilities = model.logits.save(), model.next_token_probs.save()
    wanted = twin.run(IDS)
    assert seen.keys() == {"layers_input", "attentions_output", "mlps_output", "layers_output"}
    for name, values in seen.items():
        assert len(values) == len(wanted[name]) == 3
        for ours, theirs in zip(values, wanted[name]):
            close(ours, theirs)
    for before, attention, mlp, after in zip(*seen.values()):
        close(before + attention + mlp, after)
    if "Gemma" not in twin.family.model:  # what vLLM multiplies behind the embedding, transformers does within
        close(embeddings, wanted["token_embeddings"][0])
    close(lens, wanted["logits"])
    close(logits, wanted["logits"][:, -1:])
    close(probabilities, wanted["logits"][:, -1].softmax(-1))


def test_what_is_written_is_what_the_model_goes_on_with(both):
    model, twin = both
    direction = torch.linspace(-2, 2, 128)

    def after(**change):
        twin.change = {name.replace("__", " "): value for name, value in change.items()}
        try:
            return twin.run(IDS)["logits"][:, -1:]
        finally:
            twin.change = {}

    with model.trace() as tracer:
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.layers_output[1] = model.layers_output[1] * 0.5
            stream = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.layers_output[0][:, 3] += direction  # in place
            edited = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.layers_input[2] = model.layers_input[2] + 1
            given = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.attentions_output[1] = torch.zeros_like(model.attentions_output[1])
            attention = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.mlps_output[1] = model.mlps_output[1] * 2
            mlp = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.steer(1, direction, 0.5, positions=-1)
            steered = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            model.skip_layers(1)
            skipped = model.logits.save()
        with tracer.invoke(IDS, max_tokens=1, **GREEDY):
            untouched = model.logits.save()

    def at(position, factor=1.0):
        def change(value):
            value = value.clone()
            value[:, position] += direction * factor
            return value

        return change

    close(stream, after(layers_output__1=lambda value: value * 0.5))
    close(edited, after(layers_output__0=at(3)))
    close(given, after(layers_output__1=lambda value: value + 1))
    close(attention, after(attentions_output__1=lambda value: value * 0))
    close(mlp, after(mlps_output__1=lambda value: value * 2))
    close(steered, after(layers_output__1=at(-1, 0.5)))
    close(skipped, after(skip=1))
    close(untouched, after())


def test_names_mean_the_same_in_every_step(both):
    model, twin = both
    direction = torch.linspace(-3, 3, 128)
    with model.trace(IDS, max_tokens=4, **GREEDY) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:]:
            model.steer(0, direction)
            seen.append(model.layers_output[2])
        tokens = nnsight.save(list(tracer.result.outputs[0].token_ids))
    twin.change = {"layers_output 0": lambda value: value + direction}
    try:
        assert twin.tokens(4) == tokens
        close(torch.cat(seen, 1), twin.run([*IDS, *tokens[:-1]])["layers_output"][2])
    finally:
        twin.change = {}


def recomputed(model, cache):
    """Call modules again with what they took, and return those that do not give what was kept of them."""
    wrong, count = [], 0
    for path in cache:
        entry = cache[path]
        module = model._module.get_submodule(path.partition(".")[2])
        inner = [type(one).__module__ for one in module.modules()]
        # Attention needs the engine's memory, in which more is by now, and experts its context.
        if path == "model" or isinstance(entry, list) or any(".attention" in one or "moe" in one for one in inner):
            continue
        args, kwargs = copied(entry.inputs)
        again = module(*args, **kwargs)
        count += 1
        for one, other in zip(tensors(entry.output), tensors(again)):
            if not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
                wrong.append(path)
    return wrong, count


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for one in value for leaf in tensors(one)] if isinstance(value, (list, tuple)) else []


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(copied(one) for one in value)
    return {name: copied(one) for name, one in value.items()} if isinstance(value, dict) else value


def test_what_is_kept_of_a_module_is_what_it_gave_and_no_later_contents_of_its_memory(both):
    model, twin = both
    with model.trace(IDS, max_tokens=1, **GREEDY) as tracer:

        def kept():
            cache = tracer.cache(include_inputs=True)
            tracer.result  # noqa: B018
            return recomputed(model.model, cache)

        found = nnsight.save(kept())
    wrong, count = found
    assert count > 8 and wrong == []


def test_what_cannot_be_given_says_what_to_use_instead(both):
    model, _ = both
    with pytest.raises(AbsentNameError, match="`LanguageModel` and `attn_implementation='eager'`"):
        model.attention_probabilities[0]  # noqa: B018
    with pytest.raises(NNsightError, match="in the block of a trace"):
        model.project_on_vocab(torch.zeros(128))
    with pytest.raises(IndexError, match="has 3 layers"):
        model.layers_output[3]  # noqa: B018
    assert model.num_layers == 3 and model.hidden_size == 128 and model.vocab_size == 96 and model.num_heads == 4
    assert "layers_output[0..2]" in repr(model) and model.mixers == ["attention"] * 3


def test_names_are_found_out_before_they_are_used_in_a_block(both):
    names, _ = both
    model = names.model
    with model.trace(IDS, max_tokens=1, **GREEDY):
        by_layer = names.layers[1].output.save()
        names.layers[2].input = names.layers[2].input * 0
        logits = names.logits.save()
    with model.trace(IDS, max_tokens=1, **GREEDY):
        by_name = names.layers_output[-2].save()
        names.layers_output[1] = names.layers_output[1] * 0
        again = names.logits.save()
    close(by_layer, by_name)
    close(logits, again)


def lfm2() -> Any:
    """A LFM2: convolutions over positions in most layers, attention in some."""
    importlib.import_module("vllm").ModelRegistry.register_model(
        "Lfm2ForCausalLM", importlib.import_module("vllm.model_executor.models.lfm2").Lfm2ForCausalLM
    )
    widths = {"conv_dim": 128, "conv_dim_out": 128, "block_dim": 128, "block_ff_dim": 192, "intermediate_size": 192}
    config = transformers.Lfm2Config(
        vocab_size=96,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **widths,
    )
    return transformers.Lfm2ForCausalLM, config


def test_what_mixes_positions_without_being_attention_is_not_passed_off_as_it(tmp_path):
    # How the engine's attention goes with such layers on a CPU is its own matter: parts are called by hand here.
    plain = checkpoints.save(tmp_path, lfm2())
    engine = VLLM(str(tmp_path), **OPTIONS)
    try:
        model = engine.standard
        assert model.mixers == ["ShortConv", "attention", "ShortConv"]
        assert list(model.attentions_output.absent) == [0, 2] and not model.mixers_output.absent
        with model.trace() as tracer:
            with tracer.invoke(IDS, max_tokens=1, **GREEDY):
                seen = nnsight.save({})
                for at in range(3):
                    for name in ("layers_input", "mixers_input", "mixers_output", "mlps_output", "layers_output"):
                        seen[name, at] = getattr(model, name)[at]
                        if (name, at) == ("mixers_output", 1):
                            seen["attentions_output", at] = model.attentions_output[at]
            with tracer.invoke(IDS, max_tokens=1, **GREEDY):
                model.mixers_output[0] = model.mixers_output[0] * 0
                given, after = model.mlps_input[0].save(), model.layers_output[0].save()
        with pytest.raises(AbsentNameError, match="no attention: .*`model.layers.0.short_conv`, a ShortConv"):
            model.attentions_output[0]  # noqa: B018
        assert model.layers[0].mixer._path == "model.model.layers.0.short_conv"
    finally:
        engine.shutdown()
    for at in range(3):
        total = seen["layers_input", at] + seen["mixers_output", at] + seen["mlps_output", at]
        close(total, seen["layers_output", at])
    assert torch.equal(seen["attentions_output", 1], seen["mixers_output", 1])
    with torch.no_grad():
        for at in (0, 2):
            close(seen["mixers_output", at], plain.model.layers[at].conv(seen["mixers_input", at]))
        close(after, seen["layers_input", 0] + plain.model.layers[0].feed_forward(given))
