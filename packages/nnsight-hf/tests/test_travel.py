"""What of a language model goes over a wire by name, and what of it comes back as what it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import transformers
from transformers import DynamicCache

import nnsight
from nnsight.plugin import decode_request, decode_results, encode_request, encode_results
from nnsight_hf import LanguageModel

TEXT = "The Eiffel Tower is in the city of"


class Wire:
    """Sends each block through bytes, to the same model, and what it saved back."""

    def run(self, request):
        self.data = encode_request(request)
        saved = decode_request(self.data, request.node._root).replay()
        return decode_results(encode_results(saved))


@pytest.fixture(scope="module")
def model():
    return LanguageModel("nnsight/toy-landmarks", dispatch=True)


def test_a_one_line_block_is_small(model):
    wire = Wire()
    with model.trace(TEXT, backend=wire):
        hidden = model.lm_head.output.save()
    assert len(wire.data) < 1000
    with model.trace(TEXT):
        here = model.lm_head.output
    assert torch.equal(hidden, here)


def test_a_tokenizer_and_a_configuration_go_by_name(model):
    wire = Wire()
    tokenizer, config = model.tokenizer, model.config

    def words(ids):
        return tokenizer.decode(ids)

    with model.trace(TEXT, backend=wire):
        said = nnsight.save([words(model.lm_head.output[0, -1:].argmax(-1)), tokenizer is model.tokenizer])
        said.append(config is model.config)
    assert len(wire.data) < 1500
    with model.trace(TEXT):
        here = tokenizer.decode(model.lm_head.output[0, -1:].argmax(-1))
    assert said == [here, True, True]


def test_standard_names_go_with_the_model_and_what_was_said_about_them(model):
    other = LanguageModel("nnsight/toy-landmarks", dispatch=True)
    other.standardize(layers="transformer.h")
    for standard in (model.standard, other.standard):
        layer = standard.layers[1]
        with standard.trace(TEXT, backend=Wire()):
            standard.mlps_output[0] = standard.mlps_output[0] * 2
            stream, logits = layer.output.save(), standard.logits.save()
        with standard.trace(TEXT):
            standard.model.transformer.h[0].mlp.output = standard.model.transformer.h[0].mlp.output * 2
            stream_here, logits_here = standard.model.transformer.h[1].output, standard.model.lm_head.output
        assert torch.equal(stream, stream_here) and torch.equal(logits, logits_here)


def test_outputs_and_caches_come_back_as_what_they_are(model):
    with model.trace(TEXT, use_cache=True, backend=Wire()) as tracer:
        out = tracer.result.save()
    plain = model._module(**model.tokenizer(TEXT, return_tensors="pt"), use_cache=True)
    assert type(out) is type(plain) and isinstance(out, transformers.utils.ModelOutput)
    assert torch.equal(out.logits, plain.logits) and out["logits"] is out.logits and out[0] is out.logits
    assert type(out.past_key_values) is type(plain.past_key_values)
    assert isinstance(out.past_key_values, DynamicCache)
    assert out.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    more = model._module(torch.tensor([[1]]), past_key_values=out.past_key_values)
    assert torch.equal(more.logits, model._module(torch.tensor([[1]]), past_key_values=plain.past_key_values).logits)


def test_asking_what_a_model_has_at_both_ends_imports_no_transformers():
    code = """
import sys, torch, nnsight
from nnsight.plugin import encode_request
class Catch:
    def run(self, request):
        encode_request(request)
        return {}
class Thing:
    pass
thing = nnsight.CONFIG
with nnsight.NNsight(torch.nn.Linear(2, 2)).trace(torch.ones(1, 2), backend=Catch()):
    seen = [thing, torch.Generator()]
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


def test_a_plain_generation_elsewhere_is_run_there_and_gives_its_tokens(model):
    wanted = model.generate(TEXT, max_new_tokens=3)
    wire = Wire()
    assert torch.equal(model.generate(TEXT, max_new_tokens=3, backend=wire), wanted)
    assert len(wire.data) < 1200

    class Later:
        """What a backend returns that does not wait."""

        def deliver_to(self, bind):
            self.bind = bind

    class Unhurried:
        def run(self, request):
            return Later()

    assert isinstance(model.generate(TEXT, max_new_tokens=3, backend=Unhurried()), Later)
