"""`StandardNames`: the vocabulary, as a view of a model that vLLM serves.

The names are those that nnterp (Dumas 2025) made familiar, with the meanings that they have in `LanguageModel.standard`.
Where the values lie was found out by `look.py`, and is served by `values.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .found import AbsentNameError, Found
from .layer import Layer, PerLayer
from .values import States, logits_of

#: What each value of a layer is, for the table.
VALUES = {
    "layers_input": "the residual stream before a layer",
    "mixers_input": "what mixes its positions takes",
    "attentions_input": "what its attention takes",
    "attention_probabilities": "how much each position attends to each",
    "attentions_output": "what its attention adds to the stream",
    "mixers_output": "what mixes its positions adds to the stream",
    "mlps_input": "what its feed-forward part takes",
    "mlps_output": "what its feed-forward part adds to the stream",
    "layers_output": "the residual stream after it",
}


class StandardNames:
    """A model that vLLM serves under standard names: `model.standard`.

    Everything that is not a standard name is the model's own (`trace`, `generate`, `tokenizer`, ...). Values have the shapes
    that they have in a `LanguageModel` with one prompt.

    Args:
        model: the model.
        found: what the names mean in it.

    Example::

        model = VLLM("openai-community/gpt2").standard
        with model.trace("The Eiffel Tower is in the city of", max_tokens=1):
            stream = model.layers_output[2].save()
            model.mlps_output[3] = model.mlps_output[3] * 0
            probabilities = model.next_token_probs.save()
    """

    layers_input: PerLayer
    layers_output: PerLayer
    attentions_input: PerLayer
    attentions_output: PerLayer
    mixers_input: PerLayer
    mixers_output: PerLayer
    mlps_input: PerLayer
    mlps_output: PerLayer
    attention_probabilities: PerLayer

    def __init__(self, model: Any, found: Found) -> None:
        own = self.__dict__
        own["model"] = model
        own["found"] = found
        own["_logits"] = logits_of("logits")
        for name in VALUES:
            served = [self._serve(name, index) for index in range(len(found.blocks))]
            own[name] = PerLayer(name, served, self._refusal)

    def __reduce__(self) -> Any:
        return _again, (self.model, self.found.plain())

    def _serve(self, name: str, index: int) -> States | str:
        """Return what serves a value of a layer, or why nothing does."""
        found, block = self.found, self.found.blocks[index]
        if name in found.why:
            return found.why[name]
        if name not in block.where:
            return block.why.get(name, "it was not found")
        return States(f"{name}[{index}]", self.model, block.where[name], found.hidden)

    def _refusal(self, name: str, why: str) -> AbsentNameError:
        return AbsentNameError(
            f"`{name}` cannot be given truthfully in {type(self.model._module).__name__}, as vLLM runs it: {why}. "
            "`print(model.standard)` shows the names that can; the model's own modules are at their paths as ever."
        )

    def _named(self, name: str) -> Any:
        path = getattr(self.found, name)
        if path is None:
            raise self._refusal(name, "it was not found")
        return self.model.get(path)

    def _module_of(self, name: str, index: int) -> Any:
        path = self.found.blocks[index].modules.get(name)
        if path is None:
            what = {"self_attn": "attention", "mlp": "feed-forward part"}[name]
            raise self._refusal(f"layers[{index}].{name}", f"the layer has no single module that is its {what}")
        return self.model.get(path)

    # -- modules and sizes -------------------------------------------------------------------------------------------

    @property
    def embed_tokens(self) -> Any:
        """The envoy of the token embedding."""
        return self._named("embed_tokens")

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which the residual stream goes through them."""
        if not self.found.blocks:
            raise self._refusal("layers", self.found.why["layers"])
        return [Layer(self, index) for index in range(len(self.found.blocks))]

    @property
    def ln_final(self) -> Any:
        """The envoy of the norm between the last layer and the head."""
        return self._named("ln_final")

    @property
    def lm_head(self) -> Any:
        """The envoy of the output embedding. vLLM does not call it as a module: its output is `logits`."""
        return self._named("lm_head")

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.found.blocks)

    @property
    def hidden_size(self) -> int:
        """The size of the hidden states."""
        return self.found.hidden

    @property
    def num_heads(self) -> int:
        """How many heads an attention has."""
        return int(self.model._text_config().num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model._text_config().vocab_size)

    # -- values ------------------------------------------------------------------------------------------------------

    @property
    def token_embeddings(self) -> Any:
        """What the embedding gives [1, positions, hidden]."""
        return self._embeddings.get()

    @property
    def _embeddings(self) -> States:
        from .found import Spot

        return States("token_embeddings", self.model, Spot(self.embed_tokens._path.partition(".")[2]), self.hidden_size)

    @property
    def logits(self) -> Any:
        """The logits of the token after the last [1, 1, tokens]: an engine computes no others."""
        return self._logits.fget(self.model.logits)

    @property
    def next_token_probs(self) -> torch.Tensor:
        """The probabilities of the token after the last [1, tokens]."""
        probabilities: torch.Tensor = self.logits[:, -1].softmax(-1)
        return probabilities

    def project_on_vocab(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits that the model would give if the stream ended here: the logit lens (nostalgebraist 2020).

        Within a trace: the weights are where the engine is.

        Args:
            states: hidden states [..., hidden].

        Returns:
            Logits [..., tokens]; for the last layer's output, those of the model.
        """
        flat = states.flatten(0, -2) if states.dim() > 1 else states[None]
        projected: torch.Tensor = self.model._project(self.ln_final, flat)
        return projected.unflatten(0, states.shape[:-1]) if states.dim() > 1 else projected[0]

    # -- interventions -----------------------------------------------------------------------------------------------

    def steer(
        self,
        layers: int | Iterable[int],
        vector: torch.Tensor,
        factor: float = 1.0,
        positions: int | slice | list[int] | None = None,
    ) -> None:
        """Add a vector to the residual stream after some layers, within a trace.

        Args:
            layers: the number of a layer, or several in rising order.
            vector: what to add [hidden], or one for each position.
            factor: by what to multiply it.
            positions: where, among those of the step; everywhere if not given.
        """
        for index in [layers] if isinstance(layers, int) else layers:
            stream = self.layers_output[index].clone()
            stream[:, slice(None) if positions is None else positions] += (vector * factor).to(stream)
            self.layers_output[index] = stream

    def skip_layers(self, first: int, last: int | None = None) -> None:
        """Let the residual stream go past layers, within a trace.

        Args:
            first: the first layer to skip.
            last: the last one; only the first if not given.
        """
        last = first if last is None else last
        if not 0 <= first <= last < self.num_layers:
            raise IndexError(
                f"layers {first} to {last} are no range of layers of this model, which has {self.num_layers}"
            )
        row = self.layers_input[first]
        for block in self.found.blocks[first : last + 1]:
            stream = row if block.row else row[0]
            value = (torch.zeros_like(stream), stream) if block.pair else stream
            self.model.get(block.path).skip(value)

    # -- the view ----------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in self.__dict__:
            raise AttributeError(name)
        again = getattr(type(self), name, None)
        if isinstance(again, property):
            return again.fget(self)  # type: ignore[misc]  # it raised an AttributeError, which Python takes for a missing name
        return getattr(self.__dict__["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "logits":
            self._logits.fset(self.model.logits, value)
        elif name == "token_embeddings":
            self._embeddings.set(value)
        elif name in VALUES or name in dir(type(self)):
            raise AttributeError(f"`{name}` cannot be assigned as a whole; index it with the number of a layer")
        else:
            setattr(self.model, name, value)

    def __repr__(self) -> str:
        rows = [(name, getattr(self.found, name) or "absent") for name in ("embed_tokens", "ln_final", "lm_head")]
        rows += [(f"{name}[0]", getattr(self, name).shown(0)) for name in VALUES if self.found.blocks]
        return "\n".join(
            [f"{type(self.model._module).__name__}, {self.num_layers} layers"] + [f"  {a:<28}{b}" for a, b in rows]
        )


def _again(model: Any, plain: dict[str, Any]) -> StandardNames:
    names = model.__dict__["_standard_names"] = StandardNames(model, Found.of(plain))
    return names
