"""What must hold on every rank of a tensor-parallel model: run by `test_parallel.py` in two processes.

Each check compares with the same checkpoint loaded whole in the same process. A check is a function that takes a `Bench`;
what it raises is written to a file, by rank, and everything else goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForCausalLM

from nnsight import LanguageModel, OutOfOrderError, RanksError, ScanError
from nnsight.plugin import decode_results, encode_results, leaves

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 5, 14, 9, 16]])
KINDS = ("llama", "mixtral", "qwen3_moe", "gpt_neox", "gemma3", "olmo2")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 26}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, **GROUPED}


def config(kind: str) -> Any:
    """Return a tiny configuration; each kind has a plan of another sort."""
    made: Any = {
        "llama": lambda: transformers.LlamaConfig(**GROUPED),
        "mixtral": lambda: transformers.MixtralConfig(num_local_experts=4, **EXPERTS),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            num_experts=4, moe_intermediate_size=24, head_dim=8, decoder_sparse_step=1, **EXPERTS
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
        "gemma3": lambda: transformers.Gemma3TextConfig(head_dim=8, sliding_window=4, **GROUPED),
        "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
    }[kind]()
    made.pad_token_id, made.bos_token_id, made.eos_token_id = 0, 1, None
    return made


def save(folder: Path, kind: str) -> None:
    """Save a checkpoint with seeded weights, and a tokenizer."""
    import checkpoints

    torch.manual_seed(len(kind))
    module = AutoModelForCausalLM.from_config(config(kind))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    module.save_pretrained(folder)
    checkpoints.tokenizer().save_pretrained(folder)


class Bench:
    """The models of one process: each checkpoint spread over the ranks, and whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank = dist.get_rank()
        self.seen: dict[Any, Any] = {}

    def pair(self, kind: str, **options: Any) -> tuple[Any, Any]:
        """Return the model spread over the ranks, and the whole one."""
        key = (kind, *sorted(map(str, options.items())))
        if key not in self.seen:
            where = self.folder / kind
            plan = {} if "distributed_config" in options else {"tp_plan": "auto"}
            spread = LanguageModel(where, **plan, dispatch=True, **options)
            options.pop("distributed_config", None)
            self.seen[key] = (spread, LanguageModel(where, dispatch=True, **options))
        return self.seen[key]


def close(one: Any, other: Any) -> None:
    """Compare two structures of tensors, to rounding."""
    ones, others = leaves(one), leaves(other)
    assert len(ones) == len(others)
    for a, b in zip(ones, others):
        assert a.shape == b.shape, (a.shape, b.shape)
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_everything(bench: Bench, kind: str, but: str = "", **options: Any) -> None:
    spread, whole = bench.pair(kind, **options)
    paths = [path for path, _ in whole.named_modules() if not but or not path.endswith(but)]
    kept = []
    for model in (spread, whole):
        with torch.no_grad(), model.trace(IDS) as tracer:
            kept.append(tracer.cache(modules=paths if but else None, include_inputs=True))
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) > 20
    for path, theirs in kept[1].items():
        try:
            close(kept[0][path].output, theirs.output)
            close(kept[0][path].inputs, theirs.inputs)
        except AssertionError as error:
            raise AssertionError(f"{path}: {error}") from None


def read_llama(bench: Bench) -> None:
    read_everything(bench, "llama")


def read_llama_with_attention_weights(bench: Bench) -> None:
    read_everything(bench, "llama", attn_implementation="eager")
    spread, whole = bench.pair("llama", attn_implementation="eager")
    for model, found in ((spread, mine := []), (whole, theirs := [])):
        with torch.no_grad(), model.trace(IDS, output_attentions=True):
            found.append(model.model.layers[1].self_attn.output[1])
            found.append(model.output.attentions)
    assert mine[0].shape[1] == 4
    close(mine, theirs)


def read_mixtral(bench: Bench) -> None:
    read_everything(bench, "mixtral")


def read_qwen3_moe(bench: Bench) -> None:
    read_everything(bench, "qwen3_moe")


def read_gpt_neox(bench: Bench) -> None:
    read_everything(bench, "gpt_neox")


def read_gemma3(bench: Bench) -> None:
    read_everything(bench, "gemma3")


def read_olmo2(bench: Bench) -> None:
    read_everything(bench, "olmo2")


def read_experts_on_ranks_of_their_own(bench: Bench) -> None:
    options = {"distributed_config": {"tp_size": 2, "ep_size": 2}}
    read_everything(bench, "mixtral", but="experts.act_fn", **options)
    spread, _ = bench.pair("mixtral", **options)
    with pytest.raises(RanksError, match="mlp.experts.act_fn.output` is a value of a part .* is not known"):
        with torch.no_grad(), spread.trace(IDS):
            spread.model.layers[0].mlp.experts.act_fn.output


def read_operations(bench: Bench) -> None:
    spread, whole = bench.pair("llama", attn_implementation="eager")
    found = []
    for model in (spread, whole):
        layer, attention = model.model.layers[0].source, model.model.layers[1].self_attn.source
        softmax = attention.attention_interface_0.source.nn_functional_softmax_0
        with torch.no_grad(), model.trace(IDS):
            found.append([layer.self_self_attn_0.output, layer.self_mlp_0.input])
            found[-1].append(attention.apply_rotary_pos_emb_0.output)
            found[-1].append(softmax.output)
            found[-1].append(attention.attention_interface_0.output)
            found[-1].append(model.output.logits)
    assert found[0][3].shape == (2, 4, 6, 6)
    close(*found)


def read_operations_that_make_no_whole(bench: Bench) -> None:
    spread, _ = bench.pair("llama")
    partial = spread.model.layers[1].self_attn.o_proj.source
    with pytest.raises(RanksError, match="original_forward_0.output` is an operation inside .* Ask for the input or"):
        with torch.no_grad(), spread.trace(IDS):
            partial.original_forward_0.output
    spread, _ = bench.pair("mixtral")
    experts = spread.model.layers[1].mlp.experts.source
    with pytest.raises(
        RanksError, match="original_forward_0.output` is an operation inside .* such as `.*mlp.experts`"
    ):
        with torch.no_grad(), spread.trace(IDS):
            experts.original_forward_0.output


def edit_operations(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama", attn_implementation="eager"):
        attention = model.model.layers[0].self_attn.source.attention_interface_0
        with torch.no_grad(), model.trace(IDS):
            attention.source.nn_functional_softmax_0.output[:, 1:3] = 1 / 6
            heads, weights = attention.output
            attention.output = (heads * torch.tensor([1.0, 0.0, 1.0, 2.0])[:, None], weights)
            found.append(model.output.logits)
        with model.generate(IDS, max_new_tokens=3, do_sample=False) as tracer:
            for _step in tracer.iter[:3]:
                attention.inputs[0][1][:] = 0  # the queries
            found.append(tracer.result)
    close(found[:2], found[2:])


def read_by_hand(bench: Bench) -> None:
    spread, whole = bench.pair("llama")
    found = []
    for model in (spread, whole):
        layer = model.model.layers[0]
        with torch.no_grad(), model.trace(IDS):
            hidden = layer.output
            lens = model.lm_head(model.model.norm(hidden))
            query = layer.self_attn.q_proj(hidden)
            back = layer.self_attn.o_proj(query)
        with torch.no_grad():
            found.append([lens, query, back, layer.mlp.act_fn(layer.mlp.gate_proj(hidden)), model(IDS).logits])
    close(*found)


def read_before_the_weights(bench: Bench) -> None:
    lazy = LanguageModel(bench.folder / "llama", tp_plan="auto")
    with lazy.scan(IDS):
        assert lazy.model.layers[0].self_attn.q_proj.output.shape == (2, 6, 32)
    assert not lazy.dispatched
    spread, whole = bench.pair("llama")
    with pytest.raises(ScanError, match="spread over several processes"):
        with spread.scan(IDS):
            pass
    with torch.no_grad(), whole.trace(IDS):
        theirs = whole.model.layers[0].mlp.up_proj.output
    with torch.no_grad(), lazy.trace(IDS):
        mine = lazy.model.layers[0].mlp.up_proj.output
    assert lazy.dispatched
    close(mine, theirs)


# -- editing ---------------------------------------------------------------------------------------------------------


def double(model: Any) -> None:
    layer = model.model.layers[0]
    layer.self_attn.q_proj.output = layer.self_attn.q_proj.output * 2


def edit_in_place(model: Any) -> None:
    model.model.layers[0].mlp.act_fn.output[:, -1, 5:40] = 0


def replace_input(model: Any) -> None:
    value = model.model.layers[1].self_attn.o_proj.input.clone()
    value[..., :20] = 1
    model.model.layers[1].self_attn.o_proj.input = value


def leave_out_a_projection(model: Any) -> None:
    model.model.layers[0].mlp.gate_proj.skip(torch.linspace(-1, 1, 48).expand(2, 6, 48))


def leave_out_a_layer(model: Any) -> None:
    layer = model.model.layers[1]
    layer.skip(layer.input)


def ablate_a_head(model: Any) -> None:
    heads = model.model.layers[0].self_attn.o_proj.input
    heads.unflatten(-1, (4, 8))[:, :, 2] = 0


def scale_what_is_whole(model: Any) -> None:
    model.model.layers[0].output[:] *= 1.5
    model.model.layers[1].self_attn.output = (model.model.layers[1].self_attn.output[0] * 0.5, None)


EDITS = [
    double,
    edit_in_place,
    replace_input,
    leave_out_a_projection,
    leave_out_a_layer,
    ablate_a_head,
    scale_what_is_whole,
]


def edit_values(bench: Bench) -> None:
    spread, whole = bench.pair("llama")
    for change in EDITS:
        logits = []
        for model in (spread, whole):
            with torch.no_grad(), model.trace(IDS):
                change(model)
                logits.append(model.output.logits)
        close(*logits)
        assert not torch.allclose(logits[0], plain(whole), atol=1e-3), change.__name__


def plain(whole: Any) -> torch.Tensor:
    with torch.no_grad():
        return whole._module(IDS).logits


def edit_for_good(bench: Bench) -> None:
    logits = []
    for model in bench.pair("llama"):
        with model.edit() as edited:
            edited.model.layers[0].self_attn.v_proj.output[..., 3:13] = 0.5
        with torch.no_grad(), edited.trace(IDS):
            logits.append(edited.output.logits)
        logits.append(edited.generate(IDS, max_new_tokens=3, do_sample=False))
    close(logits[:2], logits[2:])


def edit_in_invokes(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        layer = model.model.layers[0]
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                layer.self_attn.k_proj.output = layer.self_attn.k_proj.output + 1
                one = model.output.logits.save()
            with tracer.invoke(IDS[1:]):
                layer.self_attn.q_proj.output[:] = 0
                keys = layer.mlp.gate_proj.output.save()
                two = model.output.logits.save()
            with tracer.invoke():
                every = model.output.logits.save()
        found.append([one, two, keys, every])
    assert found[0][2].shape == (1, 6, 48)
    close(*found)


def edit_skipped_rows(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        up = model.model.layers[0].mlp.up_proj
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                up.skip(torch.full((1, 6, 48), 0.25))
            with tracer.invoke(IDS[1:]):
                kept = up.output.save()
            with tracer.invoke():
                every = model.output.logits.save()
        found.append([kept, every])
    close(*found)


def edit_generation(bench: Bench) -> None:
    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 2}):
        found = []
        for model in bench.pair("llama"):
            steps = []
            with model.generate(IDS, max_new_tokens=4, **options) as tracer:
                for step in tracer.iter[:4]:
                    steps.append(model.model.layers[0].self_attn.k_proj.output)
                    if step == 2:
                        model.model.layers[1].mlp.act_fn.output[:] = 2
                tokens = tracer.result
            found.append([*steps, tokens])
        assert len(found[0]) == 5
        close(*found)


def edit_generation_of_invokes_with_beams(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        with model.generate(max_new_tokens=3, num_beams=2, do_sample=False) as tracer:
            with tracer.invoke(IDS[:1]):
                model.model.layers[0].self_attn.q_proj.output[..., :9] = 0
                one = model.generator.output.save()
            with tracer.invoke(IDS[1:]):
                key = model.model.layers[1].self_attn.k_proj.output.save()
                two = model.generator.output.save()
        found.append([one, two, key])
    assert found[0][2].shape[0] == 2
    close(*found)


# -- gradients -------------------------------------------------------------------------------------------------------


def gradients(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        layer = model.model.layers[0]
        with model.trace(IDS):
            query = layer.self_attn.q_proj.output
            heads = layer.self_attn.o_proj.input
            hidden = layer.mlp.act_fn.output
            output = layer.output
            loss = model.output.logits[:, -1].logsumexp(-1).sum() + query.pow(2).sum()
            with loss.backward():
                found.append([each.grad.clone() for each in (output, hidden, heads, query)])
        weight = model.model.layers[0].self_attn.q_proj.weight
        found[-1] += [
            weight.grad.clone(),
            model.model.layers[1].mlp.down_proj.weight.grad.clone(),
            model.model.norm.weight.grad.clone(),
            model.lm_head.weight.grad.clone(),
        ]
        model._module.zero_grad()
    close(*found)


def gradients_that_are_edited(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        layer = model.model.layers[1]
        with model.trace(IDS):
            value = layer.mlp.gate_proj.output
            loss = model.output.logits.pow(2).mean()
            with loss.backward():
                value.grad = value.grad * torch.linspace(0, 1, 48)
        found.append(
            [layer.mlp.gate_proj.weight.grad.clone(), model.model.layers[0].self_attn.k_proj.weight.grad.clone()]
        )
        model._module.zero_grad()
    close(*found)


def gradients_of_an_edit(bench: Bench) -> None:
    found = []
    for model in bench.pair("mixtral"):
        added = torch.zeros(32, requires_grad=True)
        with model.trace(IDS):
            query = model.model.layers[0].self_attn.q_proj
            query.output = query.output + added
            loss = model.output.logits[:, -1].logsumexp(-1).sum()
        loss.backward()
        found.append(added.grad)
        model._module.zero_grad()
    assert found[0].abs().min() > 0
    close(*found)


# -- parameters ------------------------------------------------------------------------------------------------------


def parameters(bench: Bench) -> None:
    for kind in ("llama", "mixtral"):
        spread, whole = bench.pair(kind)
        for name, theirs in whole._module.named_parameters():
            mine = spread.get(name)
            assert mine.shape == theirs.shape, name
            assert torch.equal(mine, theirs), name


def parameters_in_a_block(bench: Bench) -> None:
    found = []
    for model in bench.pair("llama"):
        with torch.no_grad(), model.trace(IDS):
            hidden = model.model.layers[0].mlp.gate_proj.input
            found.append(hidden @ model.model.layers[0].mlp.gate_proj.weight.T)
            found.append(model.model.layers[0].mlp.gate_proj.output)
    close(found[0], found[1])
    close(found[:2], found[2:])


def parameters_refuse_edits_in_place(bench: Bench) -> None:
    spread, whole = bench.pair("llama")
    projection = spread.model.layers[0].self_attn.k_proj
    edits = [
        lambda weight: weight.mul_(2),
        lambda weight: weight.__setitem__((0, 0), 3.0),
        lambda weight: weight.data.zero_(),
        lambda weight: weight.detach()[:2].fill_(1),
        lambda weight: torch.add(weight, 1, out=weight),
        lambda weight: weight.__iadd__(1),
    ]
    for edit in edits:
        with torch.no_grad(), pytest.raises(RanksError, match="copy of the whole.*k_proj.weight = torch.nn.Parameter"):
            edit(projection.weight)
    computed = projection.weight * 2
    computed.add_(1)
    assert type(computed) is torch.Tensor
    assert torch.equal(projection.weight, whole.model.layers[0].self_attn.k_proj.weight)
    there = decode_results(encode_results({"weight": projection.weight}))["weight"]
    assert type(there) is torch.Tensor and torch.equal(there, whole.model.layers[0].self_attn.k_proj.weight)


def parameters_are_assigned_whole(bench: Bench) -> None:
    made, kind = [], "mixtral"
    for model in (LanguageModel(bench.folder / kind, tp_plan="auto"), LanguageModel(bench.folder / kind)):
        model.dispatch()
        attention, experts = model.model.layers[0].self_attn, model.model.layers[1].mlp.experts
        attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight.detach() * 2)
        experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj.detach().flip(1))
        with torch.no_grad(), model.trace(IDS):
            made.append([model.output.logits])
        made[-1] += [attention.o_proj.weight.detach(), experts.gate_up_proj.detach()]
        if model._sharding is not None:
            with pytest.raises(RanksError, match=r"has shape \(32, 32\), of which this rank holds \(32, 16\)"):
                attention.o_proj.weight = torch.nn.Parameter(torch.zeros(32, 16))
    close(*made)


# -- ranks that do not agree -------------------------------------------------------------------------------------------


def parted(bench: Bench, block: Any, match: str) -> None:
    """Run a block that depends on the rank: every rank must hear of it, and the model must work afterwards."""
    spread, whole = bench.pair("llama")
    with torch.no_grad(), pytest.raises(RanksError, match=match):
        block(spread, bench.rank)
    with torch.no_grad(), spread.trace(IDS):
        logits = spread.output.logits
    close(logits, plain(whole))


def ranks_that_ask_for_different_sites(bench: Bench) -> None:
    def only_one_asks(model: Any, rank: int) -> None:
        with model.trace(IDS):
            if rank == 0:
                model.model.layers[0].output

    def another_site(model: Any, rank: int) -> None:
        with model.trace(IDS):
            model.model.layers[rank].mlp.up_proj.output

    def one_more(model: Any, rank: int) -> None:
        with model.trace(IDS):
            model.model.layers[0].output
            if rank == 1:
                model.lm_head.output

    def another_stage(model: Any, rank: int) -> None:
        with model.trace(IDS):
            model.lm_head.output if rank else model.lm_head.input

    def in_an_invoke(model: Any, rank: int) -> None:
        with model.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                model.model.layers[0].output
            with tracer.invoke(IDS[1:]):
                if rank:
                    model.model.layers[1].output

    def a_cache(model: Any, rank: int) -> None:
        with model.trace(IDS) as tracer:
            if rank:
                tracer.cache(modules=[model.lm_head])

    def a_step(model: Any, rank: int) -> None:
        with model.generate(IDS, max_new_tokens=3, do_sample=False) as tracer:
            for step in tracer.iter[:3]:
                if step < 2 or rank == 0:
                    model.lm_head.output

    def a_stop(model: Any, rank: int) -> None:
        with model.trace(IDS) as tracer:
            model.model.layers[0].output
            if rank:
                tracer.stop()

    def a_call_by_hand(model: Any, rank: int) -> None:
        with model.trace(IDS):
            hidden = model.model.layers[0].output
            if rank:
                model.lm_head(hidden)

    parted(
        bench, only_one_asks, "rank 0 waits for `model.model.layers.0.output` .*rank 1 has come to the end of its block"
    )
    parted(
        bench,
        another_site,
        "layers.0.mlp.up_proj.output` .*; rank 1 waits for `model.model.layers.1.mlp.up_proj.output`",
    )
    parted(bench, one_more, "rank 0 has come to the end of its block .*; rank 1 waits for `model.lm_head.output`")
    parted(bench, another_stage, "lm_head.input` .* `model.lm_head.output`")
    parted(bench, in_an_invoke, "end of invoke 1.*; rank 1 waits for `model.model.layers.1.output` in invoke 1")
    parted(bench, a_cache, "rank 1 makes a cache of 1 modules")
    parted(bench, a_step, "rank 0 waits for `model.lm_head.output` of step 2")
    parted(bench, a_stop, "rank 0 has come to the end of its block .*; rank 1 stops the run")
    parted(bench, a_call_by_hand, "rank 0 has come to the end of its block.*; rank 1 calls `model.lm_head`")


def ranks_that_give_different_values(bench: Bench) -> None:
    def noise(model: Any, rank: int) -> None:
        torch.manual_seed(rank)
        with model.trace(IDS):
            model.model.layers[0].output += torch.randn(2, 6, 32)

    def only_one_edits(model: Any, rank: int) -> None:
        with model.trace(IDS):
            hidden = model.model.layers[0].self_attn.q_proj.output
            if rank:
                hidden[:] = 0
            model.lm_head.output

    def only_one_skips(model: Any, rank: int) -> None:
        with model.trace(IDS):
            hidden = model.model.layers[1].input
            if rank:
                model.model.layers[1].skip(hidden)

    def inputs(model: Any, rank: int) -> None:
        with model.trace(IDS + rank):
            model.lm_head.output

    parted(bench, noise, "gave the model different numbers.*torch.manual_seed")
    parted(bench, only_one_edits, "they gave the model values of shapes")
    parted(bench, only_one_skips, "they gave the model values of shapes")
    parted(bench, inputs, "opens a run of `model`.*different numbers")


def ranks_that_sample_with_different_seeds(bench: Bench) -> None:
    def sample(model: Any, rank: int) -> None:
        torch.manual_seed(rank)
        with model.generate(IDS, max_new_tokens=3, do_sample=True) as tracer:
            tracer.result

    parted(bench, sample, "samples.*torch.manual_seed")
    spread, whole = bench.pair("llama")
    tokens = []
    for model in (spread, whole):
        torch.manual_seed(3)
        tokens.append(model.generate(IDS, max_new_tokens=4, do_sample=True))
    close(*tokens)


def ranks_of_which_one_raises(bench: Bench) -> None:
    spread, whole = bench.pair("llama")

    def inline(rank: int) -> None:
        with spread.trace(IDS):
            spread.model.layers[0].output
            if rank == 1:
                raise KeyError("mine")
            spread.model.layers[1].output

    def at_the_end(rank: int) -> None:
        with spread.trace(IDS):
            spread.model.layers[0].output
            if rank == 1:
                raise KeyError("mine")

    def in_an_invoke(rank: int) -> None:
        with spread.trace() as tracer:
            with tracer.invoke(IDS[:1]):
                spread.model.layers[0].output
                if rank == 1:
                    raise KeyError("mine")
            with tracer.invoke(IDS[1:]):
                spread.model.layers[1].output

    for block in (inline, at_the_end, in_an_invoke):
        expected = KeyError if bench.rank else RanksError
        with torch.no_grad(), pytest.raises(expected, match="mine" if bench.rank else "rank 1 raised KeyError: 'mine'"):
            block(bench.rank)
        with torch.no_grad(), spread.trace(IDS):
            logits = spread.output.logits
        close(logits, plain(whole))


def ranks_that_raise_the_same(bench: Bench) -> None:
    spread, whole = bench.pair("llama")
    for _ in range(2):
        with torch.no_grad(), pytest.raises(OutOfOrderError):
            with spread.trace(IDS):
                spread.model.layers[1].output
                spread.model.layers[0].output
    with torch.no_grad(), spread.trace(IDS) as tracer:
        hidden = spread.model.layers[0].mlp.act_fn.output
        tracer.stop()
    assert hidden.shape == (2, 6, 48)


def ranks_of_which_one_runs_backward(bench: Bench) -> None:
    spread, _ = bench.pair("llama")
    with pytest.raises(RanksError, match="rank 0 has come to the end of its block.*rank 1 runs backward"):
        with spread.trace(IDS):
            value = spread.model.layers[0].mlp.up_proj.output
            loss = spread.output.logits.sum()
            if bench.rank:
                with loss.backward():
                    value.grad
    spread._module.zero_grad()


def relies_on_what_a_spread_model_says_of_itself(bench: Bench) -> None:
    module = bench.pair("llama")[0]._module
    assert module._device_mesh["tp"].size() == 2
    stated = module.config.distributed_config
    assert (stated.tp_size, stated.ep_size, stated.pp_size, stated.fsdp_size, stated.dp_replicate_size) == (
        2,
        1,
        1,
        1,
        1,
    )
    assert set(module.dummy_inputs) == {"input_ids"}
    assert dist.distributed_c10d._get_default_store().check(["nothing of this name"]) is False


def example_of_the_documentation(bench: Bench) -> None:
    folder = bench.folder / "llama"
    said = io.StringIO()
    before, sys.argv = sys.argv, ["", str(folder)]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(Path(__file__).with_name("tensor_parallel_example.py")))
    finally:
        sys.argv = before
    whole = LanguageModel(folder)
    prompt = "the cat sat on the red"
    with torch.no_grad(), whole.trace(prompt):
        whole.model.layers[0].self_attn.o_proj.input[..., 16:24] = 0
        logits = whole.lm_head.output[:, -1]
    with whole.generate(prompt, max_new_tokens=3, do_sample=False) as tracer:
        for _step in tracer.iter[:3]:
            whole.model.layers[1].mlp.act_fn.output[..., :8] = 0
        tokens = tracer.result
    told = f"queries (1, 6, 32)\nwithout head 2 {logits.argmax(-1).tolist()}\ntokens {tokens[0].tolist()}\n"
    assert said.getvalue() == (told if bench.rank == 0 else "")


def zz_a_rank_whose_script_is_over_leaves_nobody_waiting(bench: Bench) -> None:
    """The last check: rank 1 does nothing, and ends."""
    if bench.rank == 0:
        spread, _ = bench.pair("llama")
        said = r"Rank 0 opens a run of `model` \(.*, line \d+\) and waits for rank 1 .*, but its process has ended"
        with torch.no_grad(), pytest.raises(RanksError, match=said):
            with spread.trace(IDS):
                spread.lm_head.output


_NAMES = ("read_", "edit_", "gradients", "parameters", "ranks_", "relies_", "example_", "zz_")
_HELPERS = {"read_everything", "edit_in_place"}
CHECKS = {name: check for name, check in list(globals().items()) if name.startswith(_NAMES) and name not in _HELPERS}


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    bench = Bench(folder)
    wanted = sorted(sys.argv[3:] or CHECKS)
    for name in wanted:
        try:
            CHECKS[name](bench)
            said = ""
        except Exception:
            said = traceback.format_exc()
        (out / f"{name}.{bench.rank}").write_text(said)


if __name__ == "__main__":
    main()
