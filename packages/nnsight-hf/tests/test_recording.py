"""Hidden states of models that were restored in a process where none of their class was made."""

from __future__ import annotations

import pickle

import pytest
import tasks
import tasks_of_images  # noqa: F401  # it says what kinds there are
import torch
from pictures import picture
from seers import SEERS
from transformers import modeling_utils

import nnsight
from nnsight_hf import VisionLanguageModel


@pytest.fixture
def nothing_made():
    """Let transformers know as little of the classes of models as it does in a new process."""
    table = modeling_utils._CAN_RECORD_REGISTRY

    before = dict(table)
    yield table.clear
    table.clear()
    dict.update(table, before)


def assert_same(some, others):
    assert len(some) == len(others) > 1
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other)


def test_relies_on_the_table_of_what_is_recorded_an_unpickled_model_gives_hidden_states(nothing_made):
    kind = tasks.KINDS["dinov2_features"]()
    model = kind.make_model()
    arguments = kind.encode(kind.given[0])
    data = pickle.dumps(model)
    nothing_made()
    restored = pickle.loads(data)
    with restored.trace(**arguments, output_hidden_states=True):
        states = restored.output.hidden_states
    nothing_made()
    want = kind.make()(**arguments, output_hidden_states=True)
    assert_same(states, want.hidden_states)


def test_a_model_inside_a_model_gives_them_too(nothing_made):
    seer = SEERS["llava_next"]
    model = VisionLanguageModel(seer.module(), processor=seer.processor())
    data = pickle.dumps(model)
    nothing_made()
    restored = pickle.loads(data)
    text = seer.prompt("a red house", 1)
    with restored.trace(text, images=[picture(0)], output_hidden_states=True):
        output = restored.output
    nothing_made()
    with torch.no_grad():
        inputs = seer.processor()(text=text, images=[picture(0)], return_tensors="pt")
        want = seer.module()(**inputs, output_hidden_states=True)
    assert_same(output.hidden_states, want.hidden_states)


@pytest.mark.parametrize("ran_before", [True, False])
def test_hidden_states_elsewhere_are_those_of_here(ran_before):
    kind = tasks.KINDS["dinov2_features"]()
    model = kind.make_model()
    arguments = kind.encode(kind.given[0])
    if ran_before:  # then the module has hooks of transformers', which travel too
        model._module(**arguments, output_hidden_states=True)
    with model.trace(**arguments, output_hidden_states=True, remote="local"):
        states = nnsight.save(list(model.output.hidden_states))
    assert_same(states, kind.make()(**arguments, output_hidden_states=True).hidden_states)
