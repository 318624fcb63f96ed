"""The picture of a model, held against torch's own."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import nn

from nnsight._core import printing
from nnsight._core.naming import Naming
from nnsight._core.printing import render


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))


class Model(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.h, self.ln = nn.ModuleList(blocks), nn.LayerNorm(4)


class Chatty(nn.Module):
    def __init__(self, inner: bool) -> None:
        super().__init__()
        if inner:
            self.inner = nn.Linear(2, 2)

    def extra_repr(self) -> str:
        return "first=1\n\nsecond=2"


class OwnName(nn.Module):
    def _get_name(self) -> str:
        return "Lazy" + type(self).__name__


class OwnRepr(nn.Linear):
    def __repr__(self) -> str:
        return "lora." + super().__repr__()


def with_none() -> nn.Module:
    module = Block()
    module.register_module("attn", None)
    return module


def fresh_list(*modules: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(modules)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 3),
        lambda: nn.Identity(),
        lambda: nn.ModuleList(),
        lambda: nn.Sequential(),
        lambda: nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}),
        lambda: fresh_list(*[nn.Linear(2, 2) for _ in range(4)]),
        lambda: fresh_list(nn.ReLU(), nn.ReLU(), nn.Tanh(), nn.ReLU(), Chatty(True), Chatty(True), Chatty(False)),
        lambda: fresh_list(fresh_list(Block(), Block(), Block(8)), fresh_list(Block(), Block(), Block(8))),
        lambda: Model([Block() for _ in range(3)]),
        lambda: Model([Block(), Block(8), Block()]),
        lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.LSTM(3, 4, num_layers=2),
        lambda: nn.Sequential(OwnName(), nn.Linear(2, 2), OwnRepr(2, 2)),
        lambda: nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]),
        lambda: fresh_list(OwnRepr(2, 2), OwnRepr(2, 2), OwnRepr(2, 3)),
        lambda: nn.Sequential(Chatty(True), nn.Linear(1, 1), Chatty(False)),
        with_none,
    ],
)
def test_a_plain_model_looks_as_torch_shows_it(make) -> None:
    module = make()
    torchs = "\n".join(line.rstrip() for line in str(module).split("\n"))
    assert render(module) == torchs
    assert render(module, lambda path, module: [], lambda path: []) == torchs


def test_relies_on_torch_nn_module_repr() -> None:
    """Both methods of torch that we draw ourselves, and the names that its modules go by, are where we look."""
    assert "__repr__" in vars(nn.Module) and "__repr__" in vars(nn.ModuleList)
    assert nn.Sequential.__repr__ is nn.ModuleDict.__repr__ is nn.Module.__repr__
    assert nn.Linear(1, 1)._get_name() == "Linear"


def transformers_model(kind: str, **sizes: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        return getattr(transformers, kind)(getattr(transformers, kind).config_class(**sizes))


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertModel", "OPTForCausalLM"])
def test_transformers_models_look_as_torch_shows_them(kind: str) -> None:
    module = transformers_model(kind)
    assert render(module) == str(module)


def test_gpt2_shows_its_hierarchy_and_aliases() -> None:
    module = transformers_model("GPT2LMHeadModel")
    naming = Naming({"transformer.h": "layers", "mlp": "feedforward"})
    text = render(module, names_of=lambda path: naming.names_of(module, path))
    for part in (
        "GPT2LMHeadModel(",
        "(transformer): GPT2Model",
        "(h/layers): ModuleList",
        "(0-11): 12 x GPT2Block",
        "(attn): GPT2Attention",
        "(mlp/feedforward): GPT2MLP",
        "(lm_head): Linear",
    ):
        assert part in text, part
    assert text.replace("/layers", "").replace("/feedforward", "") == str(module)


def test_only_the_first_of_equal_blocks_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = printing._write

    def counting(drawing: printing.Drawing) -> str:
        written.append(drawing.head)
        return write(drawing)

    monkeypatch.setattr(printing, "_write", counting)
    text = render(Model([Block() for _ in range(80)]))
    assert "(0-79): 80 x Block(" in text
    assert written.count("Block") == 1 and written.count("Linear") == 3


def test_aliases_stand_beside_the_name_and_part_a_run() -> None:
    module = Model([Block() for _ in range(4)])
    names = {"h": ["layers", "stack"], "h.0": ["bottom"]}
    text = render(module, names_of=lambda path: names.get(path, []))
    assert "\n  (h/layers/stack): ModuleList(\n    (0/bottom): Block(\n" in text
    assert "\n    (1-3): 3 x Block(\n" in text


def test_the_same_alias_in_each_block_keeps_the_run() -> None:
    module = Model([Block() for _ in range(4)])
    naming = Naming({"mlp": "ff"})
    text = render(module, names_of=lambda path: naming.names_of(module, path))
    assert text == str(module).replace("(mlp)", "(mlp/ff)")


def test_supplied_lines_come_after_the_modules_own_and_before_its_children() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Chatty(True), OwnRepr(2, 2))

    def describe(path: str, module: nn.Module) -> list[str]:
        return [] if isinstance(module, nn.Sequential) else [f"(heads): of {path}"]

    assert render(module, describe).split("\n") == [
        "Sequential(",
        "  (0): Linear(",
        "    in_features=4, out_features=4, bias=True",
        "    (heads): of 0",
        "  )",
        "  (1): ReLU(",
        "    (heads): of 1",
        "  )",
        "  (2): Chatty(",
        "    first=1",
        "",
        "    second=2",
        "    (heads): of 2",
        "    (inner): Linear(",
        "      in_features=2, out_features=2, bias=True",
        "      (heads): of 2.inner",
        "    )",
        "  )",
        "  (3): lora.OwnRepr(in_features=2, out_features=2, bias=True)",
        "    (heads): of 3",
        ")",
    ]


def test_equal_lines_keep_a_run_and_others_part_it() -> None:
    module = Model([Block() for _ in range(4)])
    heads = "(heads): per-head view\n[batch, head, seq, dim]"
    text = render(module, lambda path, module: [heads] if path.endswith("attn") else [])
    assert "(0-3): 4 x Block(" in text
    assert "        (heads): per-head view\n        [batch, head, seq, dim]\n" in text
    text = render(module, lambda path, module: [heads] if path == "h.2.attn" else [])
    assert "(0-1): 2 x Block(" in text and "(2): Block(" in text and "(3): Block(" in text


def test_runs_collapse_in_other_containers() -> None:
    assert render(nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)], nn.ReLU())).split("\n") == [
        "Sequential(",
        "  (0-4): 5 x Linear(in_features=2, out_features=2, bias=True)",
        "  (5): ReLU()",
        ")",
    ]
    blocks = nn.ModuleDict({f"block_{i}": nn.ReLU() for i in range(8, 12)})
    assert "(block_8-block_11): 4 x ReLU()" in render(blocks)
    gaps = nn.ModuleDict({"1": nn.ReLU(), "3": nn.ReLU(), "x": nn.ReLU(), "y1": nn.ReLU(), "z2": nn.ReLU()})
    assert render(gaps) == str(gaps)


def test_named_parts_of_a_module_are_no_run() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(2, 2), nn.Linear(2, 2)

    assert render(Net()) == str(Net())


def test_a_shared_module_is_noted_where_it_comes_again() -> None:
    shared, block = nn.Linear(2, 2), Block()
    module = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared}), "first": block, "again": block})
    text = render(module)
    linear = "Linear(in_features=2, out_features=2, bias=True)"
    assert f"\n  (a): {linear}\n" in text
    assert f"\n    (c): {linear}  # the same module as a\n" in text
    assert "\n  (again): Block(...)  # the same module as first\n" in text
    assert text.count("(mlp)") == 1


def test_a_module_shared_within_each_block_keeps_the_run() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = self.down = nn.Linear(2, 2)

    text = render(nn.ModuleList([Tied() for _ in range(3)]))
    assert "(0-2): 3 x Tied(" in text and "# the same module as 0.up" in text


def test_one_module_repeated() -> None:
    text = render(nn.ModuleList([nn.ReLU()] * 4))
    assert text.split("\n")[1:-1] == ["  (0): ReLU()", "  (1-3): 3 x ReLU()  # the same module as 0"]


def test_a_module_within_itself_is_drawn_once() -> None:
    module = Block()
    module.itself = module
    assert "\n  (itself): Block(...)  # the same module as the outermost\n" in render(module)


def test_examples_run() -> None:
    globs = {"render": render, "mlp": nn.Sequential(nn.Linear(4, 8), nn.ReLU())}
    for test in doctest.DocTestFinder().find(render, "render", printing, globs=globs):
        assert doctest.DocTestRunner().run(test).failed == 0
