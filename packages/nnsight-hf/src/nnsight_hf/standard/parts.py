"""Which part of a block is which: what mixes positions, what works on each by itself, and what each takes and adds.

The terms of a block's sum are given (`sums.py`). One that comes from a module which computes weights over positions is
attention's; one whose module is called a feed-forward part is that; what is left mixes positions in another way, if the
block has no attention, and else works on each position.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight_hf.standard.found import Block, Spot
from nnsight_hf.standard.record import Record
from nnsight_hf.standard.sums import Sum, Term, equal

ATTENTION = re.compile(r"att|rel_attn|norm_attn")
FEED_FORWARD = re.compile(r"mlp|ffn?$|ffn|feed_?forward|moe|experts|fc\d|intermediate|channel")
_FEED_FORWARD_CLASS = re.compile(r"mlp|ffn|feed_?forward|moe|experts")

#: For each part, the names of what it takes and of what it adds.
NAMES = {
    "attention": ("attentions_input", "attentions_output"),
    "mixer": ("mixers_input", "mixers_output"),
    "mlp": ("mlps_input", "mlps_output"),
}
_MIXER_CLASS = re.compile(r"mamba|ssm|conv|delta|recurrent|linearatt|lightning|lstm|rwkv|mixer")
_WORDS = {"attention": "attention", "mixer": "mixing of positions", "mlp": "feed-forward part"}


class Parts:
    """The parts of one block.

    Args:
        module: the model.
        seen: a forward of it.
        numbers: what the model may multiply with.
        given: modules that the user says are a part, below a block, by the part: they are not searched for.
    """

    def __init__(
        self, module: Any, seen: Record, numbers: Sequence[float], given: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._module = module
        self._seen = seen
        self._numbers = numbers
        self._given = given or {}
        self._hint: tuple[str, ...] = ()

    def find(self, path: str) -> Block:
        """Find out what the names mean in a block."""
        block = Block(path, bare=self._seen.visits[path].bare)
        start, end = self._seen.input(path), self._seen.output(path)
        if start is None or end is None or start.shape != end.shape:
            self._lacks(block, "the layer does not take and give hidden states")
            return block
        block.where["layers_input"] = (self._spot(path, "input"),)
        block.where["layers_output"] = (self._spot(path),)
        self._attends(block)
        terms = self._terms(path)
        if terms is None:
            self._lacks(block, self._why(path, end))
        else:
            self._hint = tuple(term.path[len(path) :] for term in terms)
            self._sort(block, terms)
        self._name_modules(block, terms or [])
        return block

    def _terms(self, path: str) -> list[Term] | None:
        search = Sum(self._seen, path, self._numbers)
        wanted = [f"{path}.{piece}" for pieces in self._given.values() for piece in pieces]
        return search.terms([path + piece for piece in self._hint], [one for one in wanted if one in self._seen.visits])

    def _lacks(self, block: Block, why: str) -> None:
        block.why.update({name: why for _, name in NAMES.values()})

    def _why(self, path: str, end: torch.Tensor) -> str:
        inside = [one for one in self._seen.visits if one.startswith(path + ".")]
        for one in inside:
            given = self._seen.output(one)
            if (
                given is not None
                and equal(given, end)
                and "norm" in type(self._module.get_submodule(one)).__name__.lower()
            ):
                return "the block normalises the sum, so what it gives is not a sum of contributions"
        return "no values in the block add up to the difference between its output and its input"

    # -- whose a term is ---------------------------------------------------------------------------------------------

    def _sort(self, block: Block, terms: Sequence[Term]) -> None:
        kinds = {term: self._kind(block, term) for term in terms}
        attends = "attention" in kinds.values()
        for term, kind in kinds.items():
            # By its name if attention mixes positions already; else it is what stands in for attention.
            child = self._child(block.path, self._origin(block.path, term.path))
            if kind == "" and (not attends or _MIXER_CLASS.search(self._kin(block.path, child))):
                kinds[term] = "mixer"
            elif kind == "":
                kinds[term] = "mlp"
        for part in NAMES:
            mine = [term for term in terms if kinds[term] == part or (part == "mixer" and kinds[term] == "attention")]
            self._give(block, part, mine, kinds)
        mixing = [term for term in terms if kinds[term] in ("attention", "mixer")]
        names = [
            "attention"
            if kinds[term] == "attention"
            else self._class(self._child(block.path, self._origin(block.path, term.path)))
            for term in mixing
        ]
        block.mixer = " + ".join(dict.fromkeys(names)) or "none"

    def _give(self, block: Block, part: str, mine: Sequence[Term], kinds: Mapping[Term, str]) -> None:
        name, terms = NAMES[part][1], list(kinds)
        if not mine:
            mixes = any(kind == "mixer" for kind in kinds.values())
            what = "; what mixes its positions adds `mixers_output`" if part == "attention" and mixes else ""
            block.why[name] = f"the layer has no {_WORDS[part]}: all that it adds comes from {_listed(terms)}{what}"
            block.without.update(NAMES[part])
            return
        at = [terms.index(term) for term in mine]
        if at != list(range(at[0], at[-1] + 1)):
            block.why[name] = f"the {_WORDS[part]} comes in several places, with others between: {_listed(mine)}"
            return
        block.where[name] = tuple(self._spot(term.path, scale=term.scale) for term in mine)

    def _kind(self, block: Block, term: Term) -> str:
        """Return whose a term is, as far as its module's name or what it computes says; otherwise an empty text."""
        path = block.path
        for part, pieces in self._given.items():
            if any(term.path == f"{path}.{piece}" for piece in pieces):
                return part
        origin = self._origin(path, term.path)
        child = self._child(path, origin)
        attending = self._attending(path)
        if any(one == origin or one.startswith(origin + ".") or origin.startswith(one + ".") for one in attending):
            return "attention"
        if FEED_FORWARD.search(child[len(path) + 1 :].lower()) or _FEED_FORWARD_CLASS.search(self._kin(path, child)):
            return "mlp"
        behind = self._origin(path, term.path, through=attending)
        if behind in attending or any(one.startswith((child + ".", behind + ".")) or one == child for one in attending):
            return "attention"
        # A gate or a projection that stands in the block itself; a part that mixes positions is a module with parts.
        return "" if any(True for _ in self._module.get_submodule(child).children()) else "mlp"

    def _origin(self, block: str, path: str, through: Sequence[str] = ()) -> str:
        """Return the module with weights of its own that a value comes from, behind norms and dropouts.

        With `through`, go on behind modules with weights until one of these is met, or one that holds it.
        """
        while True:
            weighs = any(parameter.dim() > 1 for parameter in self._module.get_submodule(path).parameters())
            met = any(one == path or one.startswith(path + ".") for one in through)
            before = self._before(block, path)
            if before is None or met or (weighs and not through):
                return path
            path = before

    def _before(self, block: str, path: str) -> str | None:
        """Return the outermost module in a block that gave what another takes."""
        taken, at = self._seen.input(path), self._seen.visits[path]
        fits = [
            visit
            for one, visit in self._seen.visits.items()
            if one.startswith(block + ".")
            and visit.end < at.begin
            and taken is not None
            and (given := self._seen.output(one)) is not None
            and torch.equal(given, taken)
        ]
        return min(fits, key=lambda visit: (visit.path.count("."), -visit.end)).path if fits else None

    def _child(self, block: str, path: str) -> str:
        return f"{block}.{path[len(block) + 1 :].split('.')[0]}" if path != block else block

    def _class(self, path: str) -> str:
        part = self._module.get_submodule(path)
        if isinstance(part, torch.nn.ModuleList):
            part = part[0]
        return type(part).__name__

    def _kin(self, block: str, path: str) -> str:
        """Return the name of a module's class without that of its family, in which `moe` or `mamba` may stand too."""
        own, family = self._class(path), self._class(block)
        return own[len(os.path.commonprefix([own, family])) :].lower()

    # -- modules, and what they take ---------------------------------------------------------------------------------

    def _attending(self, block: str) -> list[str]:
        return [one for one in self._seen.attending if one.startswith(block + ".")]

    def _attends(self, block: Block) -> None:
        attending = self._attending(block.path)
        for one in attending:
            pieces = one.split(".")
            above = [".".join(pieces[:count]) for count in range(block.path.count(".") + 2, len(pieces) + 1)]
            fitting = [p for p in above if "norm" not in p.split(".")[-1].lower() and self._seen.input(p) is not None]
            if fitting and len(attending) == 1:
                block.modules["self_attn"] = fitting[0]
        lines = [line for one in attending for line in self._seen.attending[one]]
        if len(lines) == 1:
            block.weights = lines[0]

    def _name_modules(self, block: Block, terms: Sequence[Term]) -> None:
        path = block.path
        if not terms:
            called = self._called(path, FEED_FORWARD)
            single = [one for one in called if self._seen.output(one) is not None]
            if len(called) == 1 and single:
                block.modules["mlp"] = called[0]
            if "self_attn" not in block.modules:
                named = [one for one in self._called(path, ATTENTION) if self._seen.output(one) is not None]
                if len(named) == 1:
                    block.modules["self_attn"] = named[0]
            self._take(block, "mlp", called[:1])
            if "self_attn" in block.modules and self._attending(block.path):
                block.mixer, block.modules["mixer"] = "attention", block.modules["self_attn"]
                self._take(block, "mixer", [block.modules["mixer"]])
        else:
            self._take_terms(block, "mlp", block.where.get("mlps_output", ()))
            self._take_terms(block, "mixer", block.where.get("mixers_output", ()))
        if "self_attn" in block.modules:
            block.where["attentions_input"] = (self._spot(block.modules["self_attn"], "input"),)
        elif "attentions_input" not in block.without:
            block.why["attentions_input"] = "the layer has no single module that is its attention"
        else:
            block.why["attentions_input"] = block.why["attentions_output"]

    def _called(self, block: str, kind: re.Pattern[str]) -> list[str]:
        """Return the parts of a block that are so called and take hidden states, in the order in which they run."""
        children = [f"{block}.{name}" for name, _ in self._module.get_submodule(block).named_children()]
        found = [
            child
            for child in children
            if kind.search(child[len(block) + 1 :].lower())
            and "norm" not in child[len(block) + 1 :].lower()
            and "dropout" not in child
            and self._seen.input(child) is not None
        ]
        return sorted(found, key=lambda child: self._seen.visits[child].begin)

    def _take_terms(self, block: Block, part: str, spots: Sequence[Spot]) -> None:
        """Find what a part takes that adds these terms."""
        if not spots:
            if NAMES[part][1] in block.why:
                block.why[NAMES[part][0]] = block.why[NAMES[part][1]]
            return
        children = list(dict.fromkeys(self._child(block.path, self._origin(block.path, spot.path)) for spot in spots))
        leaf = not any(True for _ in self._module.get_submodule(children[0]).children())
        if (
            part == "mixer"
            and "attentions_output" in block.where
            and "self_attn" in block.modules
            and len(children) == 1
        ):
            children = [block.modules["self_attn"]]
        elif part == "mlp" and len(children) == 1 and leaf:
            # Its matrices stand in the block itself: it begins with the first of them.
            children = self._called(block.path, FEED_FORWARD)[:1] or children
        elif len(children) == 1 and self._seen.input(children[0]) is not None:
            block.modules[part] = children[0]
        if part == "mixer" and len(children) == 1 and self._seen.input(children[0]) is not None:
            block.modules["mixer"] = children[0]
        self._take(block, part, children)

    def _take(self, block: Block, part: str, takers: Sequence[str]) -> None:
        """State where the input of these modules lies: at theirs, or if several share it, where it comes from."""
        name = NAMES[part][0]
        taken = [value for taker in takers if (value := self._seen.input(taker)) is not None]
        if not taken:
            block.why[name] = f"the layer has no single module that is its {_WORDS[part]}"
        elif len(taken) == 1 and len(takers) == 1:
            block.where[name] = (self._spot(takers[0], "input"),)
        else:
            source = self._before(block.path, min(takers, key=lambda taker: self._seen.visits[taker].begin))
            if len(taken) == len(takers) and source and all(torch.equal(taken[0], value) for value in taken):
                block.where[name] = (self._spot(source),)
            elif all(self._seen.visits[taker].begin > self._seen.visits[takers[0]].end for taker in takers[1:]):
                block.where[name] = (
                    self._spot(takers[0], "input"),
                )  # the others go on with what it made of the stream
            else:
                block.why[name] = f"{_listed(takers)} take different values"

    def _spot(self, path: str, site: str = "output", scale: float = 1.0) -> Spot:
        return Spot(path, site, scale, self._seen.is_flat(path, site))


def _listed(terms: Sequence[Term] | Sequence[str]) -> str:
    return ", ".join(f"`{term if isinstance(term, str) else term.path}`" for term in terms)
