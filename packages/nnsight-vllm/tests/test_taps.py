"""What `VLLM(..., taps=[...])` takes, and what it says to what it cannot do. No engine is started, but for the last."""

from __future__ import annotations

import pytest
from engines import OPTIONS

from nnsight import VLLM, NNsightError
from nnsight_vllm import taps
from nnsight_vllm.engine import SyncEngine


def test_graphs_without_declared_sites_are_refused_and_declared_sites_without_graphs(llama):
    with pytest.raises(NNsightError, match=r"none is declared.*taps=\["):
        VLLM(str(llama.folder), enforce_eager=False, **OPTIONS)
    with pytest.raises(NNsightError, match="leave one of them out"):
        VLLM(str(llama.folder), enforce_eager=True, taps=["model.layers.0"], **OPTIONS)


def test_a_site_is_a_module_or_one_of_its_stages_by_any_of_its_names(llama, gpt2):
    found = taps.resolve(
        llama.served, ["model.layers.1", "model.layers.1.output", "model.layers.2.mlp.input", "lm_head"]
    )
    assert found == [("model.layers.1", "output"), ("model.layers.2.mlp", "input"), ("lm_head", "output")]
    named = VLLM(str(gpt2.folder), rename={"transformer.h": "blocks"}, **OPTIONS)
    assert taps.resolve(named, ["blocks.0.mlp.inputs"]) == [("transformer.h.0.mlp", "input")]


@pytest.mark.parametrize("wrong", ["model.layers.9", "model.layers.1.outputs", "", "output", "model.layer.1"])
def test_what_is_no_site_is_refused_when_the_model_is_made(llama, wrong):
    with pytest.raises(ValueError, match="no site of this model") as caught:
        VLLM(str(llama.folder), taps=["model.layers.1", wrong], **OPTIONS)
    assert repr(wrong) in str(caught.value)


def test_one_site_is_given_in_a_list(llama):
    with pytest.raises(TypeError, match=r"as \['model.layers.1'\]"):
        VLLM(str(llama.folder), taps="model.layers.1", **OPTIONS)


@pytest.mark.parametrize("mode", ["FULL", "FULL_AND_PIECEWISE", "full_decode_only"])
def test_graphs_of_whole_forwards_are_refused(llama, mode):
    with pytest.raises(NNsightError, match="one graph, which ends nowhere inside"):
        VLLM(str(llama.folder), taps=["model.layers.1"], compilation_config={"cudagraph_mode": mode}, **OPTIONS)


def test_a_pipeline_is_refused(llama):
    with pytest.raises(NNsightError, match="cannot be had together"):
        VLLM(str(llama.folder), taps=["model.layers.1"], pipeline_parallel_size=2, **OPTIONS)


def test_other_options_are_kept():
    made = taps.engine_options(
        {
            "compilation_config": {"compile_sizes": [1], "splitting_ops": ["mine::op"]},
            "additional_config": {"mine": 1},
            "load_format": "dummy",
        },
        [("a", "output")],
    )
    assert made["compilation_config"]["splitting_ops"] == ["mine::op", taps.OPERATION]
    assert made["compilation_config"]["compile_sizes"] == [1]
    assert made["additional_config"] == {"mine": 1, taps.FIELD: {"taps": [["a", "output"]], "load_format": "dummy"}}


def test_what_is_compiled_as_one_cannot_end_inside_and_the_engine_says_so(llama, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    model = VLLM(str(llama.folder), taps=["model"], **OPTIONS)
    with pytest.raises(NNsightError, match="`model`, which is compiled as one"):
        model.dispatch()


def test_an_engine_that_was_started_with_graphs_by_somebody_else_is_refused(llama, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    engine = SyncEngine({"model": str(llama.folder), "enforce_eager": False, **OPTIONS}, 60)
    with pytest.raises(NNsightError, match="compiled graphs, inside which nobody can look"):
        engine.start()
