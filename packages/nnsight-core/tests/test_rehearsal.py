"""`remote="local"`: a block in a fresh interpreter, compared with the same block here."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import pytest
import torch

from nnsight import NNsight, RemoteError
from nnsight._core import rehearsal

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Own(torch.nn.Module):
    """A module whose class the other interpreter does not have."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return halved(self.second(torch.tanh(self.first(x))))


def halved(x):
    return x / 2


@pytest.fixture
def model():
    return NNsight(Own())


def test_a_block_runs_where_nothing_of_the_user_can_be_imported(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_w.py").write_text("SCALE = 3\ndef scaled(x):\n    return x * SCALE\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine_w = importlib.import_module("mine_w")
    with model.edit() as edited:
        model.first.output = model.first.output + 1
    with edited.session(remote="local"):
        with edited.trace(X):
            hidden = mine_w.scaled(edited.first.output).save()
            print("said there")
        with edited.trace(X) as tracer:
            out = tracer.result.save()
        try:
            importlib.import_module("mine_w")
            found = [True]
        except ImportError:
            found = [False]
        found += [os.getpid(), os.getcwd(), "pytest" in sys.modules]
        found.save()
    with edited.trace(X) as tracer:
        here, result = edited.first.output, tracer.result
    assert torch.equal(hidden, here * 3) and torch.equal(out, result)
    assert found[0] is False and found[1] != os.getpid() and found[2] != os.getcwd() and found[3] is False
    assert "said there" in capsys.readouterr().out
    del sys.modules["mine_w"]


def test_an_interpreter_that_ends_before_the_block_does_is_an_error(model, monkeypatch):
    monkeypatch.setattr(rehearsal, "_BEGIN", "import os; os._exit(3)")
    with pytest.raises(RemoteError, match="ended before it was done, with code 3"):
        with model.trace(X, remote="local"):
            model.first.output.sum()


def test_an_error_there_is_raised_here(model, monkeypatch):
    class Done:
        def wait(self):
            return 0

    @contextlib.contextmanager
    def in_this_process(place):
        ours, theirs = os.pipe()
        here = os.getcwd()
        try:
            rehearsal.main(place, theirs)
        finally:
            os.chdir(here)
        with open(ours, "rb") as answers:
            yield Done(), answers

    monkeypatch.setattr(rehearsal, "_interpreter", in_this_process)
    with pytest.raises(ZeroDivisionError) as raised:
        with model.trace(X, remote="local"):
            model.first.output.sum() + 1 / 0
    assert "model.first.output.sum() + 1 / 0" in raised.value.__notes__[-1]
