"""Figures that people expect of a look inside a language model, drawn with matplotlib.

Each is a function of plain numbers and strings, and knows nothing of models: what is drawn can come from a trace, from
hooks or from a file. Each takes the `ax` to draw on, makes one with pyplot if it gets none, and returns it. Needs
`pip install "nnsight-hf[figures]"`.

Colours can be told apart by all colour visions: one hue, darker with every step, for what has a natural zero at one end;
two hues that meet in white at zero for what has a sign.
"""

from __future__ import annotations

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'Figures are drawn with matplotlib, which cannot be imported here ({error}): pip install "nnsight-hf[figures]"'
    ) from error

from .labels import token_labels
from .lines import layer_norms
from .maps import attention, attention_heads, heat_map, logit_lens, patching

__all__ = ["attention", "attention_heads", "heat_map", "layer_norms", "logit_lens", "patching", "token_labels"]
