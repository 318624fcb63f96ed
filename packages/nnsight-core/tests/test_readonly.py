"""Copies that refuse edits: `nnsight.plugin.ReadOnly`."""

from __future__ import annotations

import pytest
import torch

from nnsight import NNsightError
from nnsight.plugin import ReadOnly, decode_results, encode_results


@pytest.fixture
def copy():
    return ReadOnly.of(torch.arange(6.0).reshape(2, 3), "a copy of `model.weight`. Assign a new one.")


@pytest.mark.parametrize(
    "edit",
    [
        lambda copy: copy.zero_(),
        lambda copy: copy.__setitem__(0, 1),
        lambda copy: copy[0].add_(1),
        lambda copy: copy.T.mul_(2),
        lambda copy: copy.__iadd__(1),
        lambda copy: torch.add(copy, 1, out=copy),
        lambda copy: copy.data.fill_(0),
    ],
)
def test_an_edit_of_it_or_of_a_view_is_refused_and_has_no_effect(copy, edit):
    with pytest.raises(NNsightError, match="would edit a copy of `model.weight`. Assign a new one."):
        edit(copy)
    assert torch.equal(copy.plain, torch.arange(6.0).reshape(2, 3))


def test_what_is_computed_with_it_is_plain(copy):
    for made in (copy + 1, copy @ torch.ones(3), torch.cat([copy, copy]), copy.clone()):
        assert type(made) is torch.Tensor
    made = copy * 1
    made[:] = 0
    assert float(copy.sum()) == 15


class Borrowed(ReadOnly):
    """Belongs to somebody, and says to whom."""

    carried = ("owner",)

    def refused(self, edit):
        return PermissionError(f"{edit}: ask {self.owner}")


def test_a_kind_of_its_own_says_in_its_own_words_what_is_refused_and_so_do_its_views():
    mine = torch.arange(6.0).reshape(2, 3).as_subclass(Borrowed)
    mine.owner = "Ada"
    for edit in (lambda: mine.zero_(), lambda: mine[0].T.add_(1), lambda: torch.add(mine, 1, out=mine.detach())):
        with pytest.raises(PermissionError, match="ask Ada"):
            edit()
    assert type(mine[0]) is Borrowed and type(mine + 1) is torch.Tensor
    found = decode_results(encode_results({"mine": mine, "row": mine[1]}))
    assert type(found["mine"]) is torch.Tensor
    assert torch.equal(found["mine"], mine.plain) and torch.equal(found["row"], mine.plain[1])


def test_it_travels_as_a_plain_tensor(copy):
    found = decode_results(encode_results({"whole": copy, "row": copy[1]}))
    assert type(found["whole"]) is torch.Tensor
    assert torch.equal(found["whole"], copy.plain) and torch.equal(found["row"], copy.plain[1])
