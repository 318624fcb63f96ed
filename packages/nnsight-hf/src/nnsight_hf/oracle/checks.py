"""What must hold for every language model: each check runs a model through nnsight and through plain hooks, and compares.

A check returns nothing if it holds; if not, it raises `Failed` with the first difference. `CHECKS` names them all. What is
compared with is `plain.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nnsight import LanguageModel, NNsightError, RowsError
from nnsight.plugin import tree_map
from nnsight_hf import padding
from nnsight_hf.oracle import plain
from nnsight_hf.oracle.exceptions import PADDED
from nnsight_hf.oracle.plain import Site, Values, copied, first
from nnsight_hf.oracle.zoo import tokens
from nnsight_hf.standard.report import lacking

#: Prompts of three lengths, as token ids.
PROMPTS = (tokens(5), tokens(9), tokens(7))

#: Two prompts of one length.
TWINS = (tokens(9), tokens(9, seed=1))

#: How far values may lie apart, as a part of the largest value there.
ROUNDING = 2e-4

#: How many tokens are generated.
NEW = 4


class Failed(AssertionError):
    """A check that does not hold."""


class Refused(Exception):
    """What a check asks for is refused with an error that says what to do instead."""


class Lacks(Exception):
    """Some of what a check asks for is not there, and says why; the rest holds."""


def value(model: Any, site: Site) -> Any:
    """Return what passes at a site, also of a module with a submodule called `output`, as BERT's layers have."""
    path, kind = site
    envoy = model.get(path)
    return envoy.nns_output if kind == "output" else envoy.nns_inputs


def output(model: Any, path: str) -> Any:
    """Return the output of a module."""
    return value(model, (path, "output"))


def close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    """Compare two tensors."""
    if got.shape != want.shape:
        raise Failed(f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    if got.numel() == 0:
        return
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()):
        raise Failed(f"{what}: not finite in other places")
    scale = max(1.0, float(want[finite].abs().max())) if finite.any() else 1.0
    apart = float((got[finite].float() - want[finite].float()).abs().max()) if finite.any() else 0.0
    if not apart <= ROUNDING * scale:
        raise Failed(f"{what}: off by {apart:.2g} where values reach {scale:.2g}")


def _edit(output: Any) -> Any:
    """Return an output with another first tensor."""
    states = first(output)
    return tree_map(lambda leaf: states * 1.5 + 0.25 if leaf is states else leaf, output)


def _edit_first_visit(part: torch.nn.Module) -> Any:
    visits = iter(range(1_000_000))
    return part.register_forward_hook(lambda module, args, output: _edit(output) if next(visits) == 0 else None)


# -- the checks ------------------------------------------------------------------------------------------------------


def trace(model: Any) -> None:
    """A trace gives at the inputs and outputs of every module what hooks see there."""
    want = plain.alone(model._model, PROMPTS[1])
    sites = [site for site, visits in want.items() if site[0] and visits[0]]
    got: dict[Site, Values] = {}
    with torch.no_grad(), model.trace(PROMPTS[1]):
        for site in sites:  # in the order in which their first visits come
            got[site] = copied(value(model, site))
        logits = model.nns_output.logits
    for site in sites:
        right = want[site][0]
        if got[site].keys() != right.keys():
            raise Failed(f"{'.'.join(site)} holds {sorted(got[site])} instead of {sorted(right)}")
        for name, tensor in right.items():
            close(got[site][name], tensor, f"{'.'.join(site)}{name}")
    close(logits, plain.logits(model._model, PROMPTS[1]), "logits")


def batched(model: Any) -> None:
    """Invokes of different lengths share one forward, and each gets at its tokens what it gets alone, or that is refused."""
    module = model._model
    if not padding.takes_padding(module):
        raise Refused(f"{type(module).__name__} takes inputs of one length only")
    blocks = plain.blocks(module, PROMPTS[0])
    want = [plain.alone(module, prompt) for prompt in PROMPTS]
    sites = [site for site in want[0] if site[0] and all(site in others and others[site][0] for others in want)]
    got: list[dict[Site, Values]] = []
    places: list[dict[tuple[Site, str], Any]] = []
    logits: list[torch.Tensor] = []
    with torch.no_grad(), model.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                mine, at = {}, {}
                for site in sites:
                    given = value(model, site)
                    at.update(_places(site, given))
                    mine[site] = copied(given)
                got.append(mine)
                places.append(at)
                logits.append(model.nns_output.logits)
    side, known = padding.side(module), PADDED.get(module.config.model_type, {})
    for number, prompt in enumerate(PROMPTS):
        who = f"of the prompt of {len(prompt)} tokens"
        close(*_own(logits[number], plain.logits(module, prompt), len(prompt), side), f"logits {who}")
        for site in sites:
            for name, alone in want[number][site][0].items():
                where = f"{'.'.join(site)}{name}"
                if any(re.search(pattern, where) for pattern in known):
                    continue
                # What all invokes get is shared: a table, a bias, tokens in an order of the experts.
                if name not in got[number][site] or len({at.get((site, name)) for at in places}) == 1:
                    if site[1] == "output" and site[0] in blocks and alone is first(want[number][site][0]):
                        raise Failed(f"{where} is shared by all invokes")
                    continue
                close(*_own(got[number][site][name], alone, len(prompt), side), f"{where} {who}")


def _places(site: Site, given: Any) -> dict[tuple[Site, str], Any]:
    """Return which memory each tensor is: the same for all invokes where there is nothing to tell apart."""
    return {(site, name): (tensor.data_ptr(), tensor.shape) for name, tensor in plain.parts(given).items()}


def _own(value: torch.Tensor, alone: torch.Tensor, length: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the parts of two values that belong to the tokens of a prompt."""
    if value.dim() == alone.dim():
        for dim, (size, own) in enumerate(zip(value.shape, alone.shape)):
            if size > own >= length:  # here lie the positions, maybe with a prefix that the model adds
                start = (size - length, own - length) if side == "left" else (0, 0)
                value, alone = (part.narrow(dim, at, length) for part, at in zip((value, alone), start))
    return value, alone


def generate(model: Any) -> None:
    """A generation gives the tokens that transformers gives."""
    want = plain.continued(model._model, PROMPTS[1], NEW)
    got = model.generate(PROMPTS[1], max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    if not torch.equal(got, want):
        raise Failed(f"{got[0, -NEW:].tolist()} instead of {want[0, -NEW:].tolist()}")


def together(model: Any) -> None:
    """Several prompts, of one length or not, are continued in one batch as they are alone, or that is refused."""
    for prompts in (TWINS, PROMPTS):
        try:
            _continued(model, prompts, [plain.continued(model._model, prompt, NEW) for prompt in prompts])
        except RowsError as refusal:
            raise Refused(str(refusal)) from None


def _continued(model: Any, prompts: Sequence[list[int]], want: Sequence[torch.Tensor]) -> None:
    got: list[torch.Tensor] = []
    with model.generate(max_new_tokens=NEW, do_sample=False, pad_token_id=0) as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                got.append(tracer.result)
    for prompt, mine, other in zip(prompts, got, want, strict=True):
        new, right = mine[0, max(map(len, prompts)) :], other[0, len(prompt) :]
        if not torch.equal(new[: len(right)], right):
            raise Failed(f"the prompt of {len(prompt)} tokens among others: {new.tolist()} instead of {right.tolist()}")


def edit(model: Any) -> None:
    """An edit has the effect that a hook has, and in an invoke leaves the other alone."""
    path = plain.blocks(model._model, PROMPTS[0])[0]
    part = model._model.get_submodule(path)
    with plain.hooks([_edit_first_visit(part)]):
        want = plain.logits(model._model, PROMPTS[1])
    with torch.no_grad(), model.trace(PROMPTS[1]):
        model.get(path).nns_output = _edit(output(model, path))
        got = model.nns_output.logits
    close(got, want, "logits after an edit")
    unchanged = plain.logits(model._model, PROMPTS[1])
    if torch.allclose(want, unchanged, atol=1e-3):
        raise Failed("the edit changes nothing")
    with torch.no_grad(), model.trace() as tracer:  # of one length, so that every model takes them
        with tracer.invoke(PROMPTS[1]):
            model.get(path).nns_output = _edit(output(model, path))
            changed = model.nns_output.logits
        with tracer.invoke(PROMPTS[1]):
            other = model.nns_output.logits
    close(changed, want, "logits of the invoke that edits")
    close(other, unchanged, "logits of the invoke beside it")


def scan(model: Any) -> None:
    """A scan gives the shapes of a run, at the inputs and outputs of every module."""
    want = plain.alone(model._model, PROMPTS[1])
    sites = [site for site, visits in want.items() if site[0] and visits[0]]
    with model.scan(PROMPTS[1]):
        got = {site: _shapes(plain.parts(value(model, site))) for site in sites}
        logits = tuple(model.nns_output.logits.shape)
    for site in sites:
        right = _shapes(want[site][0])
        # There may be a mask besides: a scan cannot see that it hides nothing.
        if {name: got[site].get(name) for name in right} != right:
            raise Failed(f"{'.'.join(site)}: {got[site]} instead of {right}")
    whole = tuple(plain.logits(model._model, PROMPTS[1]).shape)
    if logits != whole:
        raise Failed(f"logits: {logits} instead of {whole}")


def _shapes(values: Values) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in values.items()}


def names(model: Any) -> None:
    """The standard names that a model has hold what they say: their sums are the residual stream, their end the logits."""
    standard = model.standard
    lacks = lacking(standard)
    for identity in standard.identities(PROMPTS[1]):
        if not identity.holds:
            at = "" if identity.layer is None else f" in layer {identity.layer}"
            raise Failed(f"{identity.name}{at}: off by {identity.error:.2g} of its norm")
    if lacks:
        raise Lacks("; ".join(f"{name}: {why}" for name, why in lacks.items()))


CHECKS: dict[str, Callable[[Any], None]] = {
    "trace": trace,
    "batched": batched,
    "generate": generate,
    "together": together,
    "edit": edit,
    "scan": scan,
    "names": names,
}


@dataclass(frozen=True)
class Verdict:
    """What came of a check: it holds, it does not, what it asks for is refused clearly, or some of it is not there."""

    kind: Literal["holds", "fails", "refused", "lacks"]
    why: str = ""


def check(model: Any, name: str) -> Verdict:
    """Make one check of a model."""
    try:
        CHECKS[name](model)
    except Refused as refusal:
        return Verdict("refused", str(refusal))
    except Lacks as lack:
        return Verdict("lacks", str(lack))
    except (Failed, LookupError, NNsightError) as failure:
        return Verdict("fails", str(failure))
    return Verdict("holds")


def wrap(module: torch.nn.Module) -> Any:
    """Return a language model for the checks."""
    return LanguageModel(module)
