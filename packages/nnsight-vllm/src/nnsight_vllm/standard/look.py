"""Find out what the standard names mean in a model: a request of a few tokens is looked at, where the model is.

Structure proposes (the list of layers, the embedding, which modules hold attention), and sums decide (`sums.py`). What cannot
be given truthfully is noted with the reason, for the error that asking for it raises.

relies on: attention is an `AttentionLayerBase`, and a `MambaBase` what mixes positions in its stead; embeddings are
`VocabParallelEmbedding`, the head a `ParallelLMHead`, and layers lie in a `ModuleList`; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from nnsight.plugin import leaves, standard

from .found import Block, Found, Spot
from .sums import equal, terms

#: The tokens that a model is tried with: any do, as long as they differ; low ones are often special.
TOKENS = (12, 17, 22, 27, 32, 37)
PAGED = (
    "the engine's attention never computes them as such. Load the checkpoint with `LanguageModel` and "
    "`attn_implementation='eager'`, where they are values like any other"
)


def look(model: Any, tracer: Any) -> dict[str, Any]:
    """Watch the request whose block this is called in, and return what was found, as plain data.

    Args:
        model: the model, as the block knows it.
        tracer: the trace.
    """
    cache = tracer.cache(include_inputs=True)
    tracer.result  # noqa: B018  # when that comes, all has passed
    return _Look(model._module, model._path, cache, model._text_config()).found().plain()


class _Look:
    """What passed in one forward, and what that says."""

    def __init__(self, module: torch.nn.Module, root: str, cache: Any, config: Any) -> None:
        self.module = module
        self.hidden = int(config.hidden_size)
        self.numbers = [float(one) for one in config.to_dict().values() if type(one) is float and one > 0]
        self.taken: dict[str, list[torch.Tensor]] = {}
        self.given: dict[str, list[torch.Tensor]] = {}
        #: What gives one row of all tokens.
        self.rows: set[str] = set()
        for path in cache:
            entry = cache[path]
            if not isinstance(entry, list) and path != root:  # what is called several times has no single value
                below = path.removeprefix(f"{root}.")
                self.taken[below] = self._states(entry.inputs)
                self.given[below] = self._states(entry.output)
                if any(leaf.dim() == 3 for leaf in leaves(entry.output)):
                    self.rows.add(below)
        #: What mixes positions, and how: `"attention"`, or the class.
        self.mixing = {
            name: type(part).__name__ if isinstance(part, MambaBase) else "attention"
            for name, part in module.named_modules()
            if isinstance(part, AttentionLayerBase)
        }

    def _states(self, value: Any) -> list[torch.Tensor]:
        flat = (leaf[0] if leaf.dim() == 3 and leaf.shape[0] == 1 else leaf for leaf in leaves(value))
        wanted = (len(TOKENS), self.hidden)
        return [leaf.to("cpu") for leaf in flat if leaf.is_floating_point() and leaf.shape == wanted]

    def found(self) -> Found:
        """Return what the names mean."""
        made = Found(self.hidden)
        made.absent["attention_probabilities"] = PAGED
        for name, part in self.module.named_modules():
            if isinstance(part, ParallelLMHead):
                made.lm_head = made.lm_head or name
            elif isinstance(part, VocabParallelEmbedding):
                made.embed_tokens = made.embed_tokens or name
        made.lm_head = made.lm_head or made.embed_tokens
        layers = self._layers()
        if not layers:
            made.absent["layers"] = (
                "no list of modules is gone through once, each giving hidden states [tokens, hidden]"
            )
            return made
        made.blocks = [self._block(layer) for layer in layers]
        for before, after in zip(layers, layers[1:]):
            if not equal(_sum(self.taken[after]), _sum(self.given[before])):
                made.absent["layers_input"] = f"`{after}` does not take what `{before}` gives"
        last = _sum(self.given[layers[-1]])
        for path, taken in self.taken.items():
            norm = "norm" in type(self.module.get_submodule(path)).__name__.lower()
            if norm and taken and not path.startswith(f"{layers[-1]}.") and equal(_sum(taken), last):
                made.ln_final = path
        return made

    def _layers(self) -> list[str]:
        lists = []
        for name, part in self.module.named_modules():
            if isinstance(part, torch.nn.ModuleList) and len(part):
                inner = [f"{name}.{child}" for child, _ in part.named_children()]
                if all(self.given.get(one) and self.taken.get(one) for one in inner):
                    lists.append(inner)
        # The outermost and longest: experts lie inside of a layer.
        return min(lists, key=lambda inner: (inner[0].count("."), -len(inner))) if lists else []

    def _block(self, path: str) -> Block:
        taken, given = self.taken[path], self.given[path]
        block = Block(path, pair=len(given) == 2, row=path in self.rows)
        block.where["layers_input"] = Spot(path, "input", summed=len(taken) == 2)
        block.where["layers_output"] = Spot(path, summed=len(given) == 2)
        inside = {one: values[0] for one, values in self.given.items() if one.startswith(f"{path}.") and values}
        outermost = dict(sorted(inside.items(), key=lambda item: item[0].count(".")))
        found = terms(outermost, _sum(taken), _sum(given), self.numbers)
        if found is None:
            why = "no values inside the layer add up to what it does"
            sites = [f"{name}_{site}" for name in ("attentions", "mixers", "mlps") for site in ("input", "output")]
            block.why.update(dict.fromkeys(sites, why))
            return block
        paths, scale = found
        mixers = {one: mixer for one in paths if (mixer := self._mixer(path, one)) is not None}
        attending = [one for one, mixer in mixers.items() if self.mixing[mixer] == "attention"]
        block.mixer = " + ".join(sorted({self.mixing[mixer] for mixer in mixers.values()}))
        self._part(block, "self_attn", "attentions", attending, scale)
        self._part(block, "mixer", "mixers", list(mixers), scale)
        self._part(block, "mlp", "mlps", [one for one in paths if one not in mixers], scale)
        if mixers and not attending:
            said = f"the layer has no attention: its positions are mixed by `{next(iter(mixers.values()))}`, a {block.mixer}"
            block.why.update(dict.fromkeys(("attentions_input", "attentions_output"), f"{said} (see `mixers_output`)"))
        return block

    def _part(self, block: Block, part: str, name: str, paths: list[str], scale: float) -> None:
        what = standard.PARTS[part]
        if len(paths) != 1:
            why = f"the layer has no {what}" if not paths else f"its {what} adds {len(paths)} values to the stream"
            block.why.update({f"{name}_{site}": why for site in ("input", "output")})
            return
        block.where[f"{name}_output"] = Spot(paths[0], scale=scale)
        origin = self._origin(block.path, paths[0])
        taker = self._taker(block.path, origin)
        if taker == origin:
            block.modules[part] = origin
        if taker is None:
            block.why[f"{name}_input"] = f"the layer has no single module that is its {what}"
        else:
            block.where[f"{name}_input"] = Spot(taker, "input")

    def _mixer(self, block: str, path: str) -> str | None:
        """Return the module by which a value has to do with other positions, if there is one."""
        origin = self._origin(block, path)
        return next((one for one in self.mixing if f"{one}.".startswith(f"{origin}.")), None)

    def _origin(self, block: str, path: str) -> str:
        """Return the module that a value comes from, behind norms."""
        while "norm" in type(self.module.get_submodule(path)).__name__.lower() and self.taken.get(path):
            before = [
                one
                for one, values in self.given.items()
                if one.startswith(f"{block}.")
                and one != path
                and values
                and torch.equal(values[0], self.taken[path][0])
            ]
            if not before:
                break
            path = min(before, key=lambda one: one.count("."))
        # What mixes positions without being attention may write into memory that it is given, and return nothing itself.
        return next((one for one in self.mixing if path.startswith(f"{one}.")), path)

    def _taker(self, block: str, origin: str) -> str | None:
        """Return the module with which a part begins: itself, or the first of those that stand in the layer for it."""
        if self.taken.get(origin):
            return origin
        order = list(self.given)
        standing = [
            one
            for one in order[: order.index(origin)]
            if one.rpartition(".")[0] == block
            and self.taken.get(one)
            and not self.given[one]
            and "norm" not in type(self.module.get_submodule(one)).__name__.lower()
        ]
        return standing[-1] if standing else None


def _sum(states: list[torch.Tensor]) -> torch.Tensor:
    return states[0] if len(states) == 1 else states[0] + states[1]
