"""`StandardNames`: a model under the vocabulary, whatever its family.

One idea: what a name means, how it is indexed, and what is raised where it cannot be given are the same for all models; a
family subclasses this and adds how its values lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from ..errors import AbsentNameError
from .layer import Layer, behind
from .report import listing
from .resolution import Resolution
from .values import PerLayer, Value
from .vocabulary import PARTS, VALUES


class StandardNames(ABC):
    """A model under standard names: `model.standard`.

    Everything that is not a standard name is the model's own (`trace`, `generate`, `tokenizer`, ...).

    A family defines `_serve`, `_logits_of`, `project_on_vocab`, `num_heads` and `vocab_size`; what else it may define is said
    where it stands. A copy of the view, here or where a block runs, is made of the model that is there and the resolution.

    Args:
        model: the model.
        resolution: what the names mean in it.
    """

    model: Any
    resolution: Resolution

    layers_input: PerLayer
    layers_output: PerLayer
    attentions_input: PerLayer
    attentions_output: PerLayer
    mixers_input: PerLayer
    mixers_output: PerLayer
    mlps_input: PerLayer
    mlps_output: PerLayer
    attention_probabilities: PerLayer

    #: How the model runs, where its names are to mean something only as it runs so; for messages.
    _how: ClassVar[str] = ""

    def __init__(self, model: Any, resolution: Resolution) -> None:
        own = self.__dict__
        own["model"] = model
        own["resolution"] = resolution
        own["_logits"] = self._logits_of(model)
        for name in VALUES:
            served = [self._found(name, index) for index in range(len(resolution.blocks))]
            own[name] = PerLayer(name, served, self._refusal)

    def __reduce__(self) -> Any:
        return type(self), (self.model, self.resolution)

    # -- what a family says ------------------------------------------------------------------------------------------

    @abstractmethod
    def _serve(self, name: str, where: Any, block: Any) -> Value:
        """Return what serves a value of a layer.

        Args:
            name: how messages call it (`layers_output[3]`).
            where: where it lies, as the layer's `Block` says.
            block: that.
        """

    @abstractmethod
    def _logits_of(self, model: Any) -> Value:
        """Return what serves the logits [rows, positions, tokens]."""

    def _embeddings_of(self, envoy: Any) -> Value:
        """Return what serves the token embeddings [rows, positions, hidden]: their envoy's output, unless that is not it."""
        return Value("token_embeddings", envoy)

    def _unchanged(self, block: Any, stream: torch.Tensor) -> Any:
        """Return what a layer gives which adds nothing to the stream before it: that stream, unless it gives more."""
        return stream

    def _found(self, name: str, index: int) -> Value | str:
        """Return what serves a value of a layer, or why nothing does."""
        resolution = self.resolution
        block = resolution.blocks[index]
        if name in resolution.absent:
            return resolution.absent[name]
        if name not in block.where:
            return str(block.why.get(name, "it was not found"))
        return self._serve(f"{name}[{index}]", block.where[name], block)

    # -- what is absent ----------------------------------------------------------------------------------------------

    def _refusal(self, name: str, why: str) -> AbsentNameError:
        return AbsentNameError(
            f"`{name}` cannot be given truthfully in {type(self.model._module).__name__}{self._how}: {why}. "
            "`print(model.standard)` shows the names that can; the model's own modules are at their paths as ever."
        )

    def _named(self, name: str) -> Any:
        path = getattr(self.resolution, name)
        if path is None:
            raise self._refusal(name, self.resolution.absent.get(name, "it was not found"))
        return self.model.get(path)

    def _module_of(self, name: str, index: int) -> Any:
        path = self.resolution.blocks[index].modules.get(name)
        if path is None:
            raise self._refusal(f"layers[{index}].{name}", f"the layer has no single module that is its {PARTS[name]}")
        return self.model.get(path)

    # -- modules -----------------------------------------------------------------------------------------------------

    @property
    def embed_tokens(self) -> Any:
        """The envoy of the token embedding."""
        return self._named("embed_tokens")

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which the residual stream goes through them."""
        if not self.resolution.blocks:
            raise self._refusal("layers", self.resolution.absent.get("layers", "they were not found"))
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
    @abstractmethod
    def num_heads(self) -> int:
        """How many heads an attention has."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many tokens there are."""

    # -- values ------------------------------------------------------------------------------------------------------

    @property
    def token_embeddings(self) -> Any:
        """What the embedding gives [rows, positions, hidden]."""
        return self._embeddings_of(self.embed_tokens).get()

    @property
    def logits(self) -> Any:
        """The logits [rows, positions, tokens]."""
        return self._logits.get()

    @property
    def next_token_probs(self) -> torch.Tensor:
        """The probabilities of the token after the last [rows, tokens]."""
        probabilities: torch.Tensor = self.logits[:, -1].softmax(-1)
        return probabilities

    @abstractmethod
    def project_on_vocab(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits that the model would give if the stream ended here: the logit lens (nostalgebraist 2020).

        Args:
            states: hidden states [..., hidden].

        Returns:
            Logits [..., tokens]; for the last layer's output, the model's own.
        """

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
            positions: where, among those of the step; everywhere if not given.
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
        for block in self.resolution.blocks[first : last + 1]:
            self.model.get(block.path).skip(self._unchanged(block, stream))

    # -- the view ----------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        return behind(self, name, "model")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "logits":
            self._logits.set(value)
        elif name == "token_embeddings":
            self._embeddings_of(self.embed_tokens).set(value)
        elif name in VALUES or name in dir(type(self)):
            raise AttributeError(f"`{name}` cannot be assigned as a whole; index it with the number of a layer")
        else:
            setattr(self.model, name, value)

    def __repr__(self) -> str:
        return listing(self)
