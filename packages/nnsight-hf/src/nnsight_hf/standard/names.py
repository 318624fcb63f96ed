"""`StandardNames`: one vocabulary over all decoders, as a view of a language model.

What a name means in this model was found out by `resolve.py` and is served by `values.py`; here is the vocabulary itself.
The names are those that nnterp (Dumas 2025) made familiar.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nnsight.plugin import eproperty
from nnsight_hf.padding import side
from nnsight_hf.standard.resolve import AbsentNameError, Resolution
from nnsight_hf.standard.values import PerLayer, part, states

#: What each value of the vocabulary is, for the table.
VALUES = {
    "token_embeddings": "what the embedding gives",
    "layers_input": "the residual stream before a layer",
    "layers_output": "the residual stream after it",
    "attentions_input": "what its attention takes",
    "attentions_output": "what its attention adds to the stream",
    "attention_probabilities": "how much each position attends to each [rows, heads, positions, positions]",
    "mlps_input": "what its feed-forward part takes",
    "mlps_output": "what its feed-forward part adds to the stream",
    "logits": "of the next token [rows, positions, tokens]",
}


class Layer:
    """One layer: its envoy, with `.self_attn`, `.mlp`, and `.input` and `.output` that are tensors."""

    def __init__(self, names: StandardNames, index: int) -> None:
        own = self.__dict__
        own["_names"] = names
        own["_index"] = index
        own["_envoy"] = names._envoy(names.resolution.layers[index])

    @property
    def self_attn(self) -> Any:
        """The envoy of the attention."""
        return self._names._module_of("attention", self._index)

    @property
    def mlp(self) -> Any:
        """The envoy of the feed-forward part."""
        return self._names._module_of("mlp", self._index)

    @property
    def input(self) -> Any:
        """The residual stream before the layer."""
        return self._names.layers_input[self._index]

    @property
    def output(self) -> Any:
        """The residual stream after the layer."""
        return self._names.layers_output[self._index]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "input":
            self._names.layers_input[self._index] = value
        elif name == "output":
            self._names.layers_output[self._index] = value
        else:
            setattr(self._envoy, name, value)

    def __getattr__(self, name: str) -> Any:
        again = getattr(type(self), name, None)
        if isinstance(again, property):
            return again.fget(self)  # type: ignore[misc]  # it raised an AttributeError, which Python takes for a missing name
        return getattr(self.__dict__["_envoy"], name)

    def __repr__(self) -> str:
        return repr(self._envoy)


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

    def __init__(self, model: Any, found: Resolution) -> None:
        own = self.__dict__
        own["model"] = model
        own["resolution"] = found
        own["_logits"] = part("logits", lambda tensor: tensor.dim() == 3 and tensor.is_floating_point())
        own["_embeddings"] = states("token_embeddings", found.hidden)
        count = len(found.layers)
        envoys = [self._envoy(path) for path in found.layers]
        own["layers_output"] = self._per("layers_output", envoys, [states("layers_output", found.hidden)] * count)
        chained = found.absent.get("layers_input", "")
        entry = None if chained else states("layers_input", found.hidden, "input")
        own["layers_input"] = self._per("layers_input", envoys, [entry] * count, [chained] * count)
        for kind, paths, name in (("attention", found.attention, "attentions"), ("feed_forward", found.mlp, "mlps")):
            self._add_parts(kind, paths, name)

    def _add_parts(self, kind: str, paths: list[str | None], name: str) -> None:
        found = self.resolution
        what = "attention" if kind == "attention" else "feed-forward part"
        inputs = [None if path is None else states(f"{name}_input", found.hidden, "input") for path in paths]
        nothing = [f"the layer has no single module that is its {what}"] * len(paths)
        envoys = [None if path is None else self._envoy(path) for path in paths]
        own = self.__dict__
        own[f"{name}_input"] = self._per(f"{name}_input", envoys, inputs, nothing)
        at = [getattr(parts, kind) for parts in found.parts]
        outputs = [
            None if path is None else states(f"{name}_output", found.hidden, scale=parts.scale)
            for path, parts in zip(at, found.parts)
        ]
        givers = [None if path is None else self._envoy(path) for path in at]
        own[f"{name}_output"] = self._per(f"{name}_output", givers, outputs, [parts.why for parts in found.parts])
        if kind == "attention":
            weights = None if not paths else part("attention_probabilities", _is_probabilities, reads_only=True)
            eager = getattr(self.model.config, "_attn_implementation", None) == "eager"
            ask = "this attention does not compute them as such; load the model with `attn_implementation='eager'`"
            props = [weights if eager and path is not None else None for path in paths]
            own["attention_probabilities"] = self._per("attention_probabilities", envoys, props, [ask] * len(paths))

    def _per(
        self, name: str, envoys: list[Any], props: list[eproperty | None], why: list[str] | None = None
    ) -> PerLayer:
        return PerLayer(name, envoys, props, why or [""] * len(props), self._refusal)

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

    def _module_of(self, kind: str, index: int) -> Any:
        path = getattr(self.resolution, kind)[index]
        if path is None:
            what = "attention" if kind == "attention" else "feed-forward part"
            name = "self_attn" if kind == "attention" else "mlp"
            raise self._refusal(f"layers[{index}].{name}", f"the layer has no single module that is its {what}")
        return self._envoy(path)

    # -- modules -----------------------------------------------------------------------------------------------------

    @property
    def embed_tokens(self) -> Any:
        """The envoy of the token embedding."""
        return self._named("embed_tokens")

    @property
    def layers(self) -> list[Layer]:
        """The layers, in the order in which the residual stream goes through them."""
        if not self.resolution.layers:
            raise self._refusal("layers", self.resolution.absent["layers"])
        return [Layer(self, index) for index in range(len(self.resolution.layers))]

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
        return len(self.resolution.layers)

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
        return self._embeddings.fget(self.embed_tokens)

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
        found = self.resolution
        if found.lm_head is None or "ln_final" in found.absent and found.ln_final is None and found.between:
            name = "lm_head" if found.lm_head is None else "ln_final"
            raise self._refusal("project_on_vocab", found.absent[name])
        if found.ln_final is None and "no norm between" not in found.absent.get("ln_final", ""):
            raise self._refusal("project_on_vocab", found.absent["ln_final"])
        way = [path for path in (found.ln_final, *found.between, found.lm_head) if path is not None]
        for path in way:
            states = self._envoy(path)._module(states)
        states = states if found.logit_scale == 1.0 else states * found.logit_scale
        return torch.tanh(states / found.cap) * found.cap if found.cap else states

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
            envoy = self._envoy(self.resolution.layers[index])
            envoy.skip(stream if self.resolution.bare[index] else (stream,))

    # -- the view ----------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in self.__dict__:
            raise AttributeError(name)
        again = getattr(type(self), name, None)
        if isinstance(again, property):
            return again.fget(self)  # type: ignore[misc]  # as above
        return getattr(self.__dict__["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "logits":
            self._logits.fset(self.model, value)
        elif name == "token_embeddings":
            self._embeddings.fset(self.embed_tokens, value)
        elif name in VALUES or name in dir(type(self)):
            raise AttributeError(f"`{name}` cannot be assigned as a whole; index it with the number of a layer")
        else:
            setattr(self.model, name, value)

    def __repr__(self) -> str:
        from nnsight_hf.standard.report import listing

        return listing(self)


def _is_probabilities(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point() and tensor.shape[-1] >= tensor.shape[-2]
