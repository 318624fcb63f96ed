"""Which values of a layer have standard names, and what they are.

The names are those that nnterp (Dumas 2025) made familiar, and `mixers_input`, `mixers_output` for what mixes positions
without being attention. They stand for a sum, and hold by it: `layers_input[i] + mixers_output[i] + mlps_output[i] =
layers_output[i]`, and `layers_output[i] = layers_input[i + 1]`.
"""

from __future__ import annotations

from typing import NamedTuple

_STATES = "[rows, positions, hidden]"


class Meaning(NamedTuple):
    """What a value is.

    Attributes:
        what: in words.
        shape: its dimensions.
    """

    what: str
    shape: str = _STATES


#: What each value of a layer is.
VALUES = {
    "layers_input": Meaning("the residual stream before a layer"),
    "mixers_input": Meaning("what mixes its positions takes"),
    "attentions_input": Meaning("what its attention takes"),
    "attention_probabilities": Meaning("how much each position attends to each", "[rows, heads, positions, positions]"),
    "attentions_output": Meaning("what its attention adds to the stream"),
    "mixers_output": Meaning("what mixes its positions adds to the stream: attention, or what stands in for it"),
    "mlps_input": Meaning("what its feed-forward part takes"),
    "mlps_output": Meaning("what its feed-forward part adds to the stream"),
    "layers_output": Meaning("the residual stream after a layer"),
}

#: The parts of a layer that are modules, and how messages call them.
PARTS = {"self_attn": "attention", "mixer": "mixing of positions", "mlp": "feed-forward part"}
