"""`StandardNames`: one vocabulary over all decoders, as a view of a language model.

What a name means in this model was found out by `resolve.py` and is served by `values.py`; here is the vocabulary itself.
The names are those that nnterp (Dumas 2025) made familiar, and `mixers_input`, `mixers_output` for what is no attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nnsight_hf.padding import side
from nnsight_hf.standard.found import AbsentNameError, Resolution
from nnsight_hf.standard.head import finish
from nnsight_hf.standard.identities import Identities, measure
from nnsight_hf.standard.layer import Layer
from nnsight_hf.standard.values import PerLayer, Probabilities, States, part

#: What each value of a layer is, for the table.
VALUES = {
    "layers_input": "the residual stream before a layer",
    "mixers_input": "what mixes its positions takes",
    "attentions_input": "what its attention takes",
    "attention_probabilities": "how much each position attends to each [rows, heads, positions, positions]",
    "attentions_output": "what its attention adds to the stream",
    "mixers_output": "what mixes its positions adds to the stream: attention, or what stands in for it",
    "mlps_input": "what its feed-forward part takes",
    "mlps_output": "what its feed-forward part adds to the stream",
    "layers_output": "the residual stream after it",
}


class StandardNames:
    """A language model under standard names: `model.standard`.

    Everything that is not a standard name is the model's own (`trace`, `generate`, `tokenizer`, ...).

    Args:
        model: the model, with its weights.
        found: what the names mean in it.

    Example::

        model = LanguageModel("nnsight/toy-landmarks").standard
        with model.trace("The Eiffel Tower is in the city of"):
            stream = model.layers_output[2]
            model.mlps_output[3] = model.mlps_output[3] * 0
            logits = model.logits
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

    def __init__(self, model: Any, found: Resolution) -> None:
        own = self.__dict__
        own["model"] = model
        own["resolution"] = found
        own["_logits"] = part("logits", lambda tensor: tensor.dim() == 3 and tensor.is_floating_point())
        for name in VALUES:
            served = [self._serve(name, index) for index in range(len(found.blocks))]
            own[name] = PerLayer(name, [value for value, _ in served], [why for _, why in served], self._refusal)

    def __reduce__(self) -> Any:
        # A copy, here or where a block runs, finds out again what the names mean in the model that is there.
        return _again, (self.model, vars(self.model).get("_corrections"))

    def _serve(self, name: str, index: int) -> tuple[States | Probabilities | None, str]:
        """Return what serves a value of a layer, or why nothing does."""
        found, block = self.resolution, self.resolution.blocks[index]
        if name in found.absent:
            return None, found.absent[name]
        if name == "attention_probabilities":
            if block.weights is not None:
                return Probabilities(f"{name}[{index}]", self.model, block.weights), ""
            return None, self._unweighed(block.mixer)
        if name not in block.where:
            return None, block.why.get(name, "it was not found")
        where, shown = block.where[name], block.where["layers_input"][0]
        return States(f"{name}[{index}]", self.model, where, found.hidden, shown, found.flat), ""

    def _unweighed(self, mixer: str) -> str:
        """Return why there are no attention probabilities."""
        by = getattr(self.model.config.get_text_config(), "_attn_implementation", None)
        if mixer and "attention" not in mixer.split(" + "):
            return f"the layer has no attention: its positions are mixed by a `{mixer}`"
        if by != "eager":
            return f"with {by!r} attention they are never computed as such; load it with `attn_implementation='eager'`"
        return "there is no one place where the weights of its attention are computed by a call of their own"

    def _refusal(self, name: str, why: str) -> AbsentNameError:
        return AbsentNameError(
            f"`{name}` cannot be given truthfully in {type(self.model._module).__name__}: {why}. `print(model.standard)` "
            "shows the names that can; the model's own modules are at their paths as ever."
        )

    def _envoy(self, path: str) -> Any:
        return self.model.get(path)

    def _named(self, name: str) -> Any:
        path = getattr(self.resolution, name)
        if path is None:
            raise self._refusal(name, self.resolution.absent.get(name, "it was not found"))
        return self._envoy(path)

    def _module_of(self, name: str, index: int) -> Any:
        block = self.resolution.blocks[index]
        if name not in block.modules:
            what = {"self_attn": "attention", "mixer": "mixing of positions", "mlp": "feed-forward part"}[name]
            raise self._refusal(f"layers[{index}].{name}", f"the layer has no single module that is its {what}")
        return self._envoy(block.modules[name])

    # -- modules -----------------------------------------------------------------------------------------------------

    @property
    def embed_tokens(self) -> Any:
        """The envoy of the token embedding."""
        return self._named("embed_tokens")

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which the residual stream goes through them."""
        if not self.resolution.blocks:
            raise self._refusal("layers", self.resolution.absent["layers"])
        return [Layer(self, index) for index in range(len(self.resolution.blocks))]

    @property
    def mixers(self) -> list[str]:
        """What mixes positions in each layer: `"attention"`, otherwise the class of the module that does.

        Both joined by ` + ` where a layer has several; an empty text where it is not known, or nothing does.
        """
        return [block.mixer for block in self.resolution.blocks]

    @property
    def ln_final(self) -> Any:
        """The envoy of the norm between the last layer and the head."""
        return self._named("ln_final")

    @property
    def lm_head(self) -> Any:
        """The envoy of the output embedding."""
        return self._named("lm_head")

    # -- sizes -------------------------------------------------------------------------------------------------------

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.resolution.blocks)

    @property
    def hidden_size(self) -> int:
        """The size of the hidden states."""
        return self.resolution.hidden

    @property
    def num_heads(self) -> int:
        """How many heads an attention has."""
        return int(self.model.config.get_text_config().num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model._module.get_input_embeddings().weight.shape[0])

    # -- values ------------------------------------------------------------------------------------------------------

    @property
    def token_embeddings(self) -> Any:
        """What the embedding gives [rows, positions, hidden]."""
        return self.embed_tokens.output

    @property
    def logits(self) -> Any:
        """The logits [rows, positions, tokens]."""
        return self._logits.fget(self.model)

    @property
    def next_token_probs(self) -> torch.Tensor:
        """The probabilities of the token after the last [rows, tokens]."""
        if side(self.model._module) == "right":
            raise AbsentNameError(
                "`next_token_probs` reads the last position, and this model is padded on the right, where that may be "
                "padding. Read `logits` at the last token of each row."
            )
        probabilities: torch.Tensor = self.logits[:, -1].softmax(-1)
        return probabilities

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
            part = self._envoy(path)._module
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
            vector: what to add [hidden], or one for each row and position.
            factor: by what to multiply it.
            positions: where; everywhere if not given.
        """
        for index in [layers] if isinstance(layers, int) else layers:
            stream = self.layers_output[index]
            added = (vector * factor).to(stream)
            if positions is None:
                self.layers_output[index] = stream + added
            else:
                changed = stream.clone()
                changed[:, positions] += added
                self.layers_output[index] = changed

    def skip_layers(self, first: int, last: int | None = None) -> None:
        """Let layers not run, within a trace: the residual stream goes past them.

        Args:
            first: the first layer to skip.
            last: the last one; only the first if not given.
        """
        last = first if last is None else last
        if not 0 <= first <= last < self.num_layers:
            raise IndexError(
                f"layers {first} to {last} are no range of layers of this model, which has {self.num_layers}"
            )
        stream = self.layers_input[first]
        for index in range(first, last + 1):
            block = self.resolution.blocks[index]
            self._envoy(block.path).skip(stream if block.bare else (stream,))

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
            self._logits.fset(self.model, value)
        elif name == "token_embeddings":
            self.embed_tokens.output = value
        elif name in VALUES or name in dir(type(self)):
            raise AttributeError(f"`{name}` cannot be assigned as a whole; index it with the number of a layer")
        else:
            setattr(self.model, name, value)

    def __repr__(self) -> str:
        from nnsight_hf.standard.report import listing

        return listing(self)


def _again(model: Any, given: Any) -> StandardNames:
    return model._standard(given)
