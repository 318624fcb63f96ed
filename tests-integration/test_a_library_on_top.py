"""A library as they are written on top of nnsight: a `LanguageModel` with names of its own over several architectures.

Written by us, in the manner of libraries in the wild; it uses what DESIGN says they rely on, and nothing else.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from nnsight.intervention.tracing.globals import Object

from nnsight import Envoy, LanguageModel, save

NAMES = {
    # Many names to one: most keys lead nowhere in any one model.
    "transformer": "model",
    "gpt_neox": "model",
    "backbone": "model",
    "h": "layers",
    "blocks": "layers",
    "wte": "embed_tokens",
    "embed_in": "embed_tokens",
    "ln_f": "ln_final",
    "norm": "ln_final",
    "final_layer_norm": "ln_final",
    "attn": "self_attn",
    "attention": "self_attn",
    "feed_forward": "mlp",
    "embed_out": "lm_head",
    # And the way to the layers cut short.
    "model.layers": "layers",
}


class PerLayer:
    """One value of each layer, read and assigned by the layer's number."""

    def __init__(self, model: Standardized, part: str | None, kind: str) -> None:
        self.model, self.part, self.kind = model, part, kind

    def envoy(self, layer: int) -> Envoy:
        found = self.model.layers[layer]
        return found if self.part is None else getattr(found, self.part)

    def __getitem__(self, layer: int) -> Object:
        value = getattr(self.envoy(layer), self.kind)
        return value[0] if isinstance(value, tuple) else value

    def __setitem__(self, layer: int, value: Object) -> None:
        envoy = self.envoy(layer)
        old = getattr(envoy, self.kind)
        setattr(envoy, self.kind, (value, *old[1:]) if isinstance(old, tuple) else value)


class Standardized(LanguageModel):
    """A language model whose parts have the same names whatever its architecture."""

    def __init__(self, model: Any, *, trust_remote_code: bool = False, rename: Any = None, **kwargs: Any) -> None:
        kwargs.setdefault("tokenizer_kwargs", {"add_prefix_space": False})
        if isinstance(model, str):
            kwargs.setdefault("device_map", "cpu")
            kwargs.setdefault("attn_implementation", "eager")
        super().__init__(model, trust_remote_code=trust_remote_code, rename=NAMES | (rename or {}), **kwargs)
        self.seen_batches: list[int] = []
        self.layers_output = PerLayer(self, None, "output")
        self.layers_input = PerLayer(self, None, "input")
        self.attentions_output = PerLayer(self, "self_attn", "output")
        self.mlps_output = PerLayer(self, "mlp", "output")

    def _prepare_input(self, *inputs: Any, **kwargs: Any) -> Any:
        args, prepared, size = super()._prepare_input(*inputs, **kwargs)
        self.seen_batches.append(size)
        return args, prepared, size

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def logits(self) -> Object:
        return self.output.logits

    @property
    def next_token_probs(self) -> Object:
        return self.logits[:, -1].softmax(-1)

    def project_on_vocab(self, hidden: Object) -> Object:
        return self.lm_head(self.model.ln_final(hidden))

    def steer(self, layer: int, vector: torch.Tensor, factor: float = 1.0) -> None:
        self.layers_output[layer] = self.layers_output[layer] + factor * vector

    def skip_layers(self, first: int, last: int) -> None:
        hidden = self.layers_input[first]
        for layer in range(first, last + 1):
            given = self.layers[layer]
            given.skip(hidden)


PROMPT = "The Eiffel Tower is in the city of"


def llama(tokenizer: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Standardized:
    toy = Standardized("nnsight/toy-landmarks")
    if request.param == "gpt2":
        return toy
    return Standardized(llama(toy.tokenizer), tokenizer=toy.tokenizer)


@pytest.fixture
def hidden_states(model: Standardized) -> list[torch.Tensor]:
    """What transformers gives by itself."""
    encoded = model.tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        return model.dispatch()._model(encoded["input_ids"], output_hidden_states=True).hidden_states


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_it_is_lazy_and_can_be_explored_and_scanned() -> None:
    lazy = Standardized("nnsight/toy-landmarks")
    assert not lazy.dispatched and lazy.num_layers == lazy.config.num_hidden_layers
    reached = []
    with lazy.scan("a", use_cache=False) as tracer:
        width = lazy.layers_output[0].shape[-1]
        tracer.stop()
        reached.append("after")
    assert width == lazy.config.hidden_size and not reached and not lazy.dispatched
    assert (
        isinstance(lazy.get("model.layers.0.mlp"), Envoy)
        and lazy.model.layers[0]._module is lazy._model.transformer.h[0]
    )


def test_values_by_layer(model: Standardized, hidden_states: list[torch.Tensor]) -> None:
    with model.trace(PROMPT):
        inputs = save([])
        for layer in range(model.num_layers):
            inputs.append(model.layers_input[layer])
        last = model.layers_output[-1].save()
        logits = model.logits.save()
    for got, want in zip(inputs, hidden_states):
        close(got, want)
    # The norm is part of what transformers calls the last hidden state.
    close(model.model.ln_final(last), hidden_states[-1])
    close(model.lm_head(model.model.ln_final(last)), logits)


def test_blocks_are_their_parts_added_up(model: Standardized) -> None:
    with model.trace(PROMPT):
        before = model.layers_input[1]
        attention = model.attentions_output[1]
        mlp = model.mlps_output[1]
        after = model.layers_output[1]
    close(before + attention + mlp, after)


def test_a_logit_lens(model: Standardized) -> None:
    with model.trace(PROMPT):
        early = model.project_on_vocab(model.layers_output[0])
        late = model.project_on_vocab(model.layers_output[-1])
        probs = model.next_token_probs
    assert early.shape == late.shape and not torch.allclose(early, late)
    close(late[:, -1].softmax(-1), probs)


def test_steering_and_skipping(model: Standardized, hidden_states: list[torch.Tensor]) -> None:
    vector = torch.linspace(-1, 1, model.config.hidden_size)
    with model.trace(PROMPT):
        model.steer(0, vector, factor=2)
        second = model.layers_input[1]
    close(second, hidden_states[1] + 2 * vector)
    with model.trace(PROMPT):
        model.skip_layers(0, 1)
        third = model.layers_output[1]
    close(third, hidden_states[0])


def test_embeddings_as_input(model: Standardized, hidden_states: list[torch.Tensor]) -> None:
    ids = model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    embeddings = model.dispatch()._model.get_input_embeddings()(ids)
    with model.trace(inputs_embeds=embeddings):
        first = model.layers_output[0]
    close(first, hidden_states[1])


def test_several_prompts_through_its_own_preparing(model: Standardized) -> None:
    model.seen_batches.clear()
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            one = model.next_token_probs
        with tracer.invoke([PROMPT, "The Space Needle is in"]):
            two = model.next_token_probs
    assert model.seen_batches == [1, 2]
    close(one, two[:1])


def test_an_operation_inside_attention(model: Standardized) -> None:
    operations = model.layers[0].self_attn.source
    name = next(name for name in dir(operations) if name.startswith("attention_interface"))
    with model.trace(PROMPT):
        output = getattr(model.layers[0].self_attn.source, name).output
    heads = model.config.num_attention_heads
    assert output[0].shape[-2:] == (heads, model.config.hidden_size // heads)


def test_gradients_one_token_at_a_time(model: Standardized) -> None:
    grads = []
    with model.trace(PROMPT):
        hidden = model.layers_output[0]
        hidden.requires_grad_()
        logits = model.logits[0, -1]
        for token in (3, 5):
            with logits[token].backward(retain_graph=True):
                grads.append(hidden.grad.clone())
    plain = torch.autograd.grad(logits[3], hidden, retain_graph=True)[0]
    close(grads[0], plain)
    assert not torch.allclose(grads[0], grads[1])


def test_a_cache_by_its_own_names(model: Standardized, hidden_states: list[torch.Tensor]) -> None:
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache(modules=["model.layers.0"], include_inputs=True, include_output=True)
    close(cache.model.layers[0].input, hidden_states[0])


def test_generation(model: Standardized) -> None:
    with model.generate(PROMPT, max_new_tokens=2, do_sample=False) as tracer:
        first = model.logits[0, -1].argmax()
        tokens = model.generator.output.save()
    assert tokens[0, -2] == first and tokens.shape[1] == len(model.tokenizer(PROMPT)["input_ids"]) + 2
    if model.repo_id:
        assert model.tokenizer.decode(first) == " Paris"


def test_it_moves() -> None:
    model = Standardized("nnsight/toy-landmarks")
    assert model.to(torch.float64) is model
    with model.trace(PROMPT):
        assert model.layers_output[0].dtype == torch.float64
