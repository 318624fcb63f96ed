"""`StandardNames`: a model that vLLM serves under standard names.

Where the values lie was found out by `look.py`, and is served by `values.py`. Which names there are, and what is done with
them, is the core's.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.plugin import standard

from .found import Block, Found, Spot
from .values import Logits, States


class StandardNames(standard.StandardNames):
    """A model that vLLM serves under standard names: `model.standard`.

    Everything that is not a standard name is the model's own (`trace`, `generate`, `tokenizer`, ...). Values have the shapes
    that they have in a `LanguageModel` with one prompt: [1, positions, hidden]. `logits` are those of the token after the
    last [1, 1, tokens]: an engine computes no others. `lm_head` is there for its weights: vLLM does not call it as a module,
    and its output is `logits`.

    Args:
        model: the model.
        resolution: what the names mean in it.

    Example::

        model = VLLM("openai-community/gpt2").standard
        with model.trace("The Eiffel Tower is in the city of", max_tokens=1):
            stream = model.layers_output[2].save()
            model.mlps_output[3] = model.mlps_output[3] * 0
            probabilities = model.next_token_probs.save()
    """

    resolution: Found

    _how = ", as vLLM runs it"

    def __reduce__(self) -> Any:
        return _again, (self.model, self.resolution.plain())

    def _serve(self, name: str, where: Spot, block: Block) -> standard.Value:
        return States(name, self.model.get(where.path), where, self.hidden_size)

    def _embeddings_of(self, envoy: Any) -> standard.Value:
        return States("token_embeddings", envoy, Spot(envoy._path), self.hidden_size)

    def _logits_of(self, model: Any) -> standard.Value:
        return Logits(model.logits)

    def _unchanged(self, block: Block, stream: torch.Tensor) -> Any:
        given = stream if block.row else stream[0]
        return (torch.zeros_like(given), given) if block.pair else given

    @property
    def num_heads(self) -> int:
        """How many heads an attention has."""
        return int(self.model._text_config().num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model._text_config().vocab_size)

    def project_on_vocab(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits that the model would give if the stream ended here: the logit lens (nostalgebraist 2020).

        Within a trace: the weights are where the engine is.

        Args:
            states: hidden states [..., hidden].

        Returns:
            Logits [..., tokens]; for the last layer's output, the model's own.
        """
        flat = states.flatten(0, -2) if states.dim() > 1 else states[None]
        projected: torch.Tensor = self.model._project(self.ln_final, flat)
        return projected.unflatten(0, states.shape[:-1]) if states.dim() > 1 else projected[0]


def _again(model: Any, plain: dict[str, Any]) -> StandardNames:
    names = model.__dict__["_standard_names"] = StandardNames(model, Found.of(plain))
    return names
