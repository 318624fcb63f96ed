"""How large the stream is, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes

#: Okabe and Ito's colours, which all colour visions tell apart, each with a mark of its own.
_STYLES = [
    ("#0072b2", "o"),
    ("#e69f00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#d55e00", "v"),
    ("#56b4e9", "P"),
    ("#7f7f7f", "X"),
]
#: From which ratio of the largest to the smallest norm on the axis is logarithmic, if it was not said.
_WIDE = 30


def layer_norms(
    norms: Any,
    layers: Sequence[str] | None = None,
    *,
    label: str = "norm",
    log: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw norms over layers: a line for each quantity, and a band where there are several positions.

    Args:
        norms: [layers], or [layers, positions]; or a mapping from names to such.
        layers: the names of the layers; their numbers if not given.
        label: what the norms are of.
        log: a logarithmic axis; if not given, where the norms differ thirtyfold.
        ax: where to draw.

    Returns:
        The axes. The line is the median over positions, the band reaches from their 10th to their 90th percentile: the
        first position of many models is far off, and a mean would show little else.
    """
    named = norms if isinstance(norms, Mapping) else {"": norms}
    series = {name: torch.as_tensor(values).detach().float().cpu() for name, values in named.items()}
    lengths = {len(values) for values in series.values()}
    if len(lengths) != 1 or any(values.dim() not in (1, 2) for values in series.values()):
        shapes = {name: tuple(values.shape) for name, values in series.items()}
        raise ValueError(f"norms are [layers] or [layers, positions], with one number of layers; they were {shapes}")
    (length,) = lengths
    if layers is not None and len(layers) != length:
        raise ValueError(f"there are norms of {length} layers, and names of {len(layers)}")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(max(5.0, min(12.0, 2 + 0.4 * length)), 3.4), layout="constrained")
    xs = list(range(length))
    for (name, values), (colour, mark) in zip(series.items(), _STYLES * (1 + len(series) // len(_STYLES))):
        middle = values if values.dim() == 1 else values.median(dim=-1).values
        ax.plot(xs, middle.tolist(), f"{mark}-", color=colour, label=name, markersize=5)
        if values.dim() == 2 and values.shape[1] > 1:
            low, high = values.quantile(torch.tensor([0.1, 0.9]), dim=-1)
            ax.fill_between(xs, low.tolist(), high.tolist(), color=colour, alpha=0.18, linewidth=0)
    every = torch.cat([values.flatten() for values in series.values()])
    positive = bool((every > 0).all())
    if log if log is not None else positive and bool(every.max() > _WIDE * every.min()):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_xticks(xs if length <= 40 else xs[:: -(-length // 20)])
    if layers is not None:
        ax.set_xticks(xs, layers, rotation=0 if length <= 8 else 60, parse_math=False)
    ax.set_xlabel("layer")
    ax.set_ylabel(label)
    ax.grid(axis="y", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if list(series) != [""]:
        ax.legend(frameon=False)
    return ax
