"""The figures: their numbers, colours and labels, read back from what was drawn."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from nnsight_hf import figures, toy
from nnsight_hf.figures import labels

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_map_has_its_numbers_where_they_belong():
    values = torch.tensor([[0.0, 0.25], [1.0, -0.001], [0.5, math.nan]])
    ax = figures.heat_map(values, ["a", "b", "c"], ["x", "y"], label="what")
    drawn = ax.images[0].get_array()
    assert drawn.mask.tolist() == values.isnan().tolist()
    assert drawn.compressed().tolist() == values[~values.isnan()].tolist()
    assert ticks(ax.yaxis) == ["a", "b", "c"] and ticks(ax.xaxis) == ["x", "y"]
    assert texts(ax) == ["0.00", "0.25", "1.00", "0.00", "0.50"]
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (pytest.approx(-0.001), 1)


def test_what_is_written_on_dark_is_white():
    ax = figures.heat_map([[0.0, 1.0]], ["a"], ["x", "y"])
    assert [text.get_color() for text in ax.texts] == ["black", "white"]


def test_a_lens_shows_words_and_probabilities():
    ax = figures.logit_lens(torch.tensor([[0.25, 0.5]]), [["Ġcity", "Ċ"]], ["The", "ĠEiffel"], ["embedding"])
    assert texts(ax) == ["·city\n0.25", "⏎\n0.50"]
    assert ticks(ax.xaxis) == ["The", "·Eiffel"] and ticks(ax.yaxis) == ["embedding"]
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (0, 1)


@pytest.mark.parametrize("effects", [[[0.1, -0.8]], [[0.3, 0.2]], [[0.0, 0.0]]])
def test_no_effect_is_white_whatever_the_others_are(effects):
    ax = figures.patching(torch.tensor(effects), ["a", "b"])
    image = ax.images[0]
    assert image.norm.vmin == -image.norm.vmax
    assert min(image.cmap(image.norm(0.0))[:3]) > 0.96
    assert image.norm.vmax == pytest.approx(max(abs(x) for x in effects[0]) or 1)


def test_a_patch_from_another_prompt_shows_both_tokens_where_they_differ():
    ax = figures.patching(torch.zeros(2, 2), ["The", "ĠSpace"], sources=["The", "ĠEiffel"])
    assert ticks(ax.xaxis) == ["The", "·Eiffel\n→ ·Space"] and ticks(ax.yaxis) == ["0", "1"]


def test_attention_leaves_the_future_empty():
    weights = torch.rand(5, 5).tril()
    ax = figures.attention(weights, list("abcde"))
    assert len(ax.texts) == 15 and ax.images[0].norm.vmin == 0
    assert ax.images[0].norm.vmax == pytest.approx(float(weights.max()))
    with pytest.raises(ValueError, match=r"one head.*\(2, 5, 5\)"):
        figures.attention(torch.rand(2, 5, 5), list("abcde"))


def test_heads_share_their_colours_and_each_has_its_name():
    weights = torch.rand(5, 3, 3)
    figure = figures.attention_heads(weights, list("abc"))
    assert isinstance(figure, Figure)
    maps = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in maps] == [f"head {n}" for n in range(5)]
    assert {ax.images[0].norm.vmax for ax in maps} == {float(weights.max())}
    for ax, head in zip(maps, weights):
        assert torch.equal(torch.as_tensor(ax.images[0].get_array().data), head)
    with pytest.raises(ValueError, match="heads"):
        figures.attention_heads(weights[0], list("abc"))


def test_norms_are_drawn_with_what_most_positions_do():
    norms = torch.rand(4, 9) + 1
    ax = figures.layer_norms({"stream": norms, "mlp": norms.mean(1)}, ["a", "b", "c", "d"])
    stream, mlp = ax.lines
    assert stream.get_ydata() == pytest.approx(norms.median(-1).values.tolist())
    assert mlp.get_ydata() == pytest.approx(norms.mean(1).tolist())
    assert len(ax.collections) == 1 and ticks(ax.xaxis) == ["a", "b", "c", "d"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["stream", "mlp"]
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0
    assert figures.layer_norms([1.0, 10.0, 100.0]).get_yscale() == "log"
    assert figures.layer_norms([1.0, 10.0, 100.0], log=False).get_yscale() == "linear"


def test_norms_of_different_layers_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        figures.layer_norms({"a": torch.ones(3), "b": torch.ones(4)})
    with pytest.raises(ValueError, match="3 layers, and names of 1"):
        figures.layer_norms(torch.ones(3), ["a"])
    with pytest.raises(ValueError, match="one number of layers"):
        figures.layer_norms(torch.ones(3, 2, 2))


def test_they_draw_where_they_are_told():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert figures.logit_lens([[0.5]], [["a"]], ["b"], ax=left) is left
    assert figures.layer_norms([1.0, 2.0], ax=right) is right


def test_numbers_of_any_kind_are_taken():
    values = torch.rand(2, 2, dtype=torch.bfloat16, requires_grad=True)
    shown = figures.patching(values, ["a", "b"]).images[0].get_array()
    assert torch.equal(torch.as_tensor(shown), values.detach().float())
    assert figures.patching(values.detach().float().numpy(), ["a", "b"]).images
    assert figures.patching(list(values), ["a", "b"]).images


def test_names_that_do_not_fit_the_numbers_are_refused():
    with pytest.raises(ValueError, match=r"2 names of rows and 1 of columns.*\(2, 2\)"):
        figures.patching(torch.zeros(2, 2), ["a"])


def test_long_prompts_keep_labels_that_can_be_read():
    many = [f"Ġtoken{n}" for n in range(200)]
    ax = figures.patching(torch.zeros(3, 200), many)
    assert len(ticks(ax.xaxis)) <= 64 and ticks(ax.xaxis)[1] == "·token4" and ax.get_xticks()[1] == 4
    assert texts(ax) == []
    assert {label.get_rotation() for label in ax.xaxis.get_ticklabels()} == {60}
    assert ax.figure.get_size_inches()[0] <= 24


@pytest.mark.filterwarnings("error")
def test_signs_that_mean_something_elsewhere_are_drawn_as_they_are():
    tokens = ["$x", "$_{", "\\frac", "%", "\x00", "<s>", "\t"]
    ax = figures.attention(torch.eye(7), tokens)
    ax.figure.canvas.draw()
    assert ticks(ax.xaxis) == ["$x", "$_{", "\\frac", "%", "\\x00", "<s>", "⇥"]


def test_labels_of_tokens():
    assert figures.token_labels(["  ", " a b ", "▁▁", "Ġ", "Ã", "ĠÃ"]) == ["··", "·a b·", "··", "·", "Ã", "·Ã"]
    assert figures.token_labels(["x" * 15 + "y" * 15]) == ["xxxxxxx…yyyyyyy"]
    assert doctest.testmod(labels) == (0, 1)


def test_bytes_are_read_as_the_tokenizer_reads_them():
    tokenizer = AutoTokenizer.from_pretrained(toy.path())
    for text in (" café", " déjà", "naïve", " Paris"):
        for number in tokenizer.encode(text):
            (spelt,) = tokenizer.convert_ids_to_tokens([number])
            decoded = tokenizer.decode([number])
            if "\N{REPLACEMENT CHARACTER}" not in decoded:
                assert figures.token_labels([spelt]) == figures.token_labels([decoded])


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None\nimport nnsight_hf.figures"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode and 'pip install "nnsight-hf[figures]"' in done.stderr
