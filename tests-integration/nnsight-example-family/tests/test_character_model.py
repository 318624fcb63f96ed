"""The family keeps the promises of every family, and a few of its own."""

import pytest
import torch
from nnsight_example.network import CharacterNetwork

from nnsight import CharacterModel
from nnsight.testing import GeneratingSuite, seeded


class TestCharacterModel(GeneratingSuite):
    generates = "write"
    options = {"count": 4}

    def make_model(self):
        return CharacterModel(seeded(CharacterNetwork))

    def inputs(self):
        return ["hello", "a longer line", ["ab", "xyz"]]

    def part(self, value, alone):
        """Time comes first here, and shorter texts are padded behind."""
        return value[: len(alone)] if isinstance(value, torch.Tensor) and value.dim() == 3 else value


@pytest.fixture
def model():
    return CharacterModel(seeded(CharacterNetwork))


def test_text_is_spelled_by_its_alphabet(model):
    with model.trace("abc"):
        characters = model.embed.input
    assert characters.flatten().tolist() == [1, 2, 3]


def test_a_head_is_changed_by_name(model):
    with model.trace("hello"):
        model.mix.heads[:, 1] = 0
        output = model.mix.output
    with model.trace("hello"):
        plain = model.mix.output
    assert (
        not output[:, 4:8].any()
        and torch.equal(output[:, :4], plain[:, :4])
        and torch.equal(output[:, 8:], plain[:, 8:])
    )


def test_it_writes_on(model):
    first = CharacterNetwork.alphabet[model.trace("hello", trace=False)[0].argmax()]
    second = CharacterNetwork.alphabet[model.trace(f"hello{first}", trace=False)[0].argmax()]
    assert "".join(CharacterNetwork.alphabet[n] for n in model.write("hello", count=2)[0]) == first + second


def test_an_empty_text_is_refused(model):
    with pytest.raises(ValueError, match="empty"):
        with model.trace(""):
            pass
