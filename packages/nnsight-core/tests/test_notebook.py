"""The tree that a notebook shows: well-formed, escaped, folded as the text is, with the shapes of the last scan."""

from __future__ import annotations

import copy
import pickle
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from nnsight import NNsight
from nnsight._core.notebook import _short
from nnsight._core.shapes import shape_of


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, scale: Any = None) -> tuple[torch.Tensor, None]:
        return self.down(self.act(self.up(x))), None


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.h = nn.ModuleList([Block() for _ in range(blocks)])
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> dict[str, Any]:
        x = self.embed(ids)
        for block in self.h:
            x = block(x)[0]
        return {"logits": self.head(x), "loss": None}


class Reader(HTMLParser):
    """Reads the tree back: its rows, each with what it is in, and that every tag is closed."""

    VOID = ("br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[tuple[int, str]] = []
        self.titles: list[str] = []
        self.folded: list[bool] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "details":
            self.folded.append("open" not in given)
        if tag == "summary" or given.get("class") == "leaf":
            self.rows.append((self.open.count("details"), ""))
            self.titles.append(given["title"] or "")
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and self.rows and "pre" not in self.open:
            depth, text = self.rows[-1]
            self.rows[-1] = depth, text + data

    def texts(self) -> list[str]:
        return [" ".join(text.split()) for _, text in self.rows]


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_the_tree_is_that_of_the_model() -> None:
    net = Net()
    page = Reader(NNsight(net)._repr_html_())
    assert page.texts() == _expected(net)
    assert page.titles[:5] == ["model", "model.embed", "model.h", "model.h[0-2]", "model.h[0-2].up"]
    # Open down to the first run of modules that are alike.
    assert page.folded == [False, False, True]


def _expected(net: Net) -> list[str]:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    block = net.h[0]
    return [
        f"Net {count(net)} parameters",
        f"embed: Embedding(7, 4) {count(net.embed)}",
        f"h: ModuleList {count(net.h)}",
        f"0-2: 3 × Block {count(block)}",
        *(f"{name}: {module} {count(module)}".removesuffix("() 0") for name, module in block.named_children()),
        f"head: {net.head} {count(net.head)}",
    ]


def test_a_part_of_the_model_shows_itself() -> None:
    page = Reader(NNsight(Net()).h[1]._repr_html_())
    assert page.titles[:2] == ["model.h.1", "model.h.1.up"] and page.texts()[0] == "Block 82 parameters"


def test_names_and_texts_are_escaped() -> None:
    class Sly(nn.Module):
        def extra_repr(self) -> str:
            return "<script>alert('&')</script>"

    Sly.__name__ = "<b>Sly</b>"
    model = NNsight(nn.ModuleDict({'a"><img src=x>': Sly(), "two": nn.Sequential(Sly(), nn.ReLU())}))
    text = model._repr_html_()
    page = Reader(text)
    assert page.tags == {"style", "div", "details", "summary", "span"}
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert page.texts()[1] == "a\"><img src=x>: <b>Sly</b>(<script>alert('&')</script>)"
    assert page.titles[1] == 'model.a"><img src=x>'


def test_aliases_and_modules_that_come_again_are_marked() -> None:
    shared = nn.Linear(2, 2)
    model = NNsight(nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential()}), rename={"c": "other"})
    texts = Reader(model._repr_html_()).texts()
    assert texts[2].endswith("# the same module as a") and texts[3] == "c/other: Sequential"


def test_a_module_that_is_not_yet_sized_and_one_that_is_absent() -> None:
    net = nn.ModuleDict({"lazy": nn.LazyLinear(3)})
    net.register_module("none", None)
    texts = Reader(NNsight(net)._repr_html_()).texts()
    assert texts[0] == "ModuleDict" and texts[1].startswith("lazy: LazyLinear(") and texts[2] == "none: None"
    assert texts[1].endswith(")")


def test_a_module_that_draws_itself_keeps_its_text() -> None:
    class Own(nn.Linear):
        def __repr__(self) -> str:
            return "lora.Linear(\n  r=4 <8>\n)"

    text = NNsight(nn.Sequential(Own(2, 2)))._repr_html_()
    Reader(text)
    assert "r=4 &lt;8&gt;" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (9996, "10.0k"),
        (123_456, "123k"),
        (999_960, "1.00M"),
        (7_090_000_000, "7.09B"),
    ],
)
def test_numbers_are_short(number: int, text: str) -> None:
    assert _short(number) == text


def test_a_scan_puts_its_shapes_into_both_pictures() -> None:
    net = Net()
    model = NNsight(net)
    before = repr(model)
    with model.scan(IDS):
        pass
    # A copy knows them too, and what a part shows is the same.
    assert repr(copy.copy(model)) == repr(pickle.loads(pickle.dumps(model))) == repr(model)
    hooked: dict[str, str] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda module, given, made, name=name: hooked.update({name: f"{shape_of(given[0])} -> {shape_of(made)}"})
        )
    net(IDS)
    texts = Reader(model._repr_html_()).texts()
    assert texts[0].endswith(hooked[""]) and hooked[""] == "[2, 3] -> {logits: [2, 3, 7]}"
    assert texts[3].endswith(hooked["h.0"]) and hooked["h.0"] == "[2, 3, 4] -> ([2, 3, 4], None)"
    assert texts[4].endswith(hooked["h.0.up"])
    assert not texts[7].endswith("]")  # never called
    shown = repr(model).splitlines()
    assert shown[0] == f"Net(  # {hooked['']}" and shown[3] == f"    (0-2): 3 x Block(  # {hooked['h.0']}"
    assert "\n".join(line.partition("  # ")[0] for line in shown) == before
    assert repr(model.h[1]).startswith(f"Block(  # {hooked['h.1']}")


def test_blocks_with_other_shapes_are_not_folded_together() -> None:
    class Shrinking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pools = nn.ModuleList([nn.MaxPool1d(2) for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for pool in self.pools:
                x = pool(x)
            return x

    model = NNsight(Shrinking())
    assert "(0-2): 3 x" in repr(model)
    with model.scan(torch.zeros(1, 16)):
        pass
    assert [line.rpartition("  # ")[2] for line in repr(model).splitlines()[2:5]] == [
        *("[1, 16] -> [1, 8]", "[1, 8] -> [1, 4]", "[1, 4] -> [1, 2]"),
    ]


def test_the_last_scan_counts_and_one_that_is_stopped_shows_what_it_saw() -> None:
    model = NNsight(Net())
    with model.scan(IDS):
        pass
    with model.scan(IDS[:, :1]) as tracer:
        model.embed.output
        tracer.stop()
    texts = Reader(model._repr_html_()).texts()
    assert (
        texts[1].endswith("28 [2, 1] -> ...") and texts[0].endswith("[2, 1] -> ...") and texts[3] == "0-2: 3 × Block 82"
    )


def test_a_scan_of_invokes_shows_the_batch() -> None:
    model = NNsight(Net())
    with model.scan() as tracer:
        with tracer.invoke(IDS):
            model.head.output
    assert Reader(model._repr_html_()).texts()[1].endswith("[2, 3] -> [2, 3, 4]")


def test_shapes_of_structures() -> None:
    x = torch.zeros(2, 3)
    assert shape_of(x) == "[2, 3]" and shape_of(torch.tensor(1.0)) == "[]" and shape_of(None) == "None"
    assert shape_of((x,)) == "([2, 3],)" and shape_of({"a": x, "b": None}) == "{a: [2, 3]}"
    assert shape_of([x] * 9) == f"({', '.join(['[2, 3]'] * 6)}, ...)"
    assert shape_of(([[x]],)) == "((list,),)" and shape_of(3) == "int"


def test_ipython_shows_the_tree() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    model = NNsight(Net())
    shown = formatters.DisplayFormatter().format(model)[0]
    assert shown["text/html"] == model._repr_html_() and shown["text/plain"] == repr(model)
