"""`StandardNames`: a language model under standard names.

What a name means in this model was found out by `resolve.py` and is served by `values.py`. Which names there are, and what is
done with them, is the core's.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight import AbsentNameError
from nnsight.plugin import standard
from nnsight_hf.padding import side
from nnsight_hf.standard.found import Block, Resolution, Where
from nnsight_hf.standard.head import finish
from nnsight_hf.standard.identities import Identities, measure
from nnsight_hf.standard.values import Part, Probabilities, States


class StandardNames(standard.StandardNames):
    """A language model under standard names: `model.standard`.

    Everything that is not a standard name is the model's own (`trace`, `generate`, `tokenizer`, ...).

    Args:
        model: the model, with its weights.
        resolution: what the names mean in it.

    Example::

        model = LanguageModel("nnsight/toy-landmarks").standard
        with model.trace("The Eiffel Tower is in the city of"):
            stream = model.layers_output[2]
            model.mlps_output[3] = model.mlps_output[3] * 0
            logits = model.logits
    """

    resolution: Resolution

    def __reduce__(self) -> Any:
        # A copy, here or where a block runs, finds out again what the names mean in the model that is there.
        return _again, (self.model, vars(self.model).get("_corrections"))

    def _serve(self, name: str, where: Where, block: Block) -> standard.Value:
        found = self.resolution
        return States(name, self.model, where, found.hidden, block.where["layers_input"][0], found.flat)

    def _found(self, name: str, index: int) -> standard.Value | str:
        if name != "attention_probabilities" or name in self.resolution.absent:
            return super()._found(name, index)
        block = self.resolution.blocks[index]
        if block.weights is None:
            return self._unweighed(block.mixer)
        return Probabilities(f"{name}[{index}]", self.model, block.weights)

    def _unweighed(self, mixer: str) -> str:
        """Return why there are no attention probabilities."""
        by = getattr(self.model.config.get_text_config(), "_attn_implementation", None)
        if mixer and "attention" not in mixer.split(" + "):
            return f"the layer has no attention: its positions are mixed by a `{mixer}`"
        if by != "eager":
            return f"with {by!r} attention they are never computed as such; load it with `attn_implementation='eager'`"
        return "there is no one place where the weights of its attention are computed by a call of their own"

    def _logits_of(self, model: Any) -> standard.Value:
        return Part("logits", model, lambda tensor: tensor.dim() == 3 and tensor.is_floating_point())

    def _unchanged(self, block: Block, stream: torch.Tensor) -> Any:
        return stream if block.bare else (stream,)

    @property
    def num_heads(self) -> int:
        """How many heads an attention has."""
        return int(self.model.config.get_text_config().num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model._module.get_input_embeddings().weight.shape[0])

    @property
    def next_token_probs(self) -> torch.Tensor:
        """The probabilities of the token after the last [rows, tokens]."""
        if side(self.model._module) == "right":
            raise AbsentNameError(
                "`next_token_probs` reads the last position, and this model is padded on the right, where that may be "
                "padding. Read `logits` at the last token of each row."
            )
        return super().next_token_probs

    def project_on_vocab(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits that the model would give if the stream ended here: the logit lens (nostalgebraist 2020).

        Args:
            states: hidden states [..., hidden].

        Returns:
            Logits [..., tokens]; for the last layer's output, exactly the model's own.
        """
        head = self.resolution.head
        if head is None:
            raise self._refusal("project_on_vocab", self.resolution.absent["project_on_vocab"])
        for path, factor in head.way:
            part = self.model.get(path)._module
            states = part(states if factor == 1.0 else states * factor)
        return finish(states, head)

    def identities(self, *given: Any, **kwargs: Any) -> Identities:
        """Run the model and compare both sides of each identity that the names stand for, with what the names serve.

        Args:
            given: a prompt, and options, as for `trace`; a few tokens if not given.

        Returns:
            A list that can be printed: the norm and the direction of one side by the other's, for each layer.
        """
        return measure(self, given, kwargs)


def _again(model: Any, given: Any) -> StandardNames:
    return model._standard(given)
