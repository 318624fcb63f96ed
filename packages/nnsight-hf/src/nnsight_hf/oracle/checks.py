"""What must hold for every language model: each check runs a model through nnsight and through plain hooks, and compares.

A check returns nothing if it holds and raises `Failed` with the first difference otherwise. `CHECKS` names them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nnsight import LanguageModel, NNsightError, RowsError
from nnsight.plugin import leaves, tree_map
from nnsight_hf import padding
from nnsight_hf.oracle.zoo import tokens
from nnsight_hf.standard import AbsentNameError
from nnsight_hf.standard.report import absent

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


# -- what plain hooks see --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seen(module: torch.nn.Module, call: Callable[[], Any]) -> dict[str, list[Any]]:
    """Return the outputs of all modules in a call, visit by visit."""
    outputs: dict[str, list[Any]] = {}

    def watch(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            outputs.setdefault(path, []).append(copied(output))

        return hook

    handles = [part.register_forward_hook(watch(path)) for path, part in module.named_modules()]
    with hooks(handles), torch.no_grad():
        call()
    return outputs


def output(model: Any, path: str) -> Any:
    """Return the output of a module, also of one with a submodule called `output`, as BERT's layers have."""
    return model.get(path).nns_output


def copied(output: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors of an output, as they are now."""
    return [leaf.detach().clone() for leaf in leaves(output) if leaf.is_floating_point()]


def blocks(module: torch.nn.Module) -> list[str]:
    """Return the paths of the blocks of the decoder: the members of its longest list of modules that a call visits."""
    ran = seen(module, lambda: module(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False))
    lists = [
        [f"{path}.{name}" for name, _ in part.named_children()]
        for path, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList)
    ]
    whole = [paths for paths in lists if paths and all(ran.get(path) and ran[path][0] for path in paths)]
    if not whole:
        raise Failed("no list of blocks that a forward visits")
    # The outermost of the longest: experts and heads lie inside of a block. In a model that goes through some of its
    # blocks again and again, those that it goes through least: what is changed in the others hardly shows at the end.
    return min(whole, key=lambda paths: (len(ran[paths[0]]), paths[0].count("."), -len(paths)))


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
    first = leaves(output)[0]
    return tree_map(lambda leaf: first * 1.5 + 0.25 if leaf is first else leaf, output)


def _edit_first_visit(part: torch.nn.Module) -> Any:
    visits = iter(range(1_000_000))
    return part.register_forward_hook(lambda module, args, output: _edit(output) if next(visits) == 0 else None)


def _alone(module: torch.nn.Module, prompt: Sequence[int]) -> dict[str, list[Any]]:
    return seen(module, lambda: module(input_ids=torch.tensor([prompt])))


def _generated(module: Any, prompt: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        tokens: torch.Tensor = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
    return tokens


# -- the checks ------------------------------------------------------------------------------------------------------


def trace(model: Any) -> None:
    """A trace gives at every module what a hook sees there."""
    want = _alone(model._model, PROMPTS[1])
    paths = [path for path, visits in want.items() if path and visits[0]]
    got: dict[str, Any] = {}
    with torch.no_grad(), model.trace(PROMPTS[1]):
        for path in paths:  # in the order in which their first visits end
            got[path] = copied(output(model, path))
        logits = model.nns_output.logits
    for path in paths:
        for mine, other in zip(got[path], want[path][0], strict=True):
            close(mine, other, path)
    close(logits, want[""][0][0], "logits")


def batched(model: Any) -> None:
    """Invokes of different lengths share one forward, and each gets at its tokens what it gets alone, or that is refused."""
    if not padding.takes_padding(model._model):
        raise Refused(f"{type(model._model).__name__} takes inputs of one length only")
    paths = blocks(model._model)
    want = [_alone(model._model, prompt) for prompt in PROMPTS]
    got: list[dict[str, Any]] = []
    with torch.no_grad(), model.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                mine = {path: leaves(output(model, path))[0] for path in paths}
                mine["logits"] = model.nns_output.logits
                got.append(mine)
    side = padding.side(model._model)
    for prompt, mine, alone in zip(PROMPTS, got, want, strict=True):
        for path, value in mine.items():
            right = alone["" if path == "logits" else path][0][0]
            close(*_own(value, right, len(prompt), side), f"{path} of the prompt of {len(prompt)} tokens")


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
    want = _generated(model._model, PROMPTS[1])
    got = model.generate(PROMPTS[1], max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    if not torch.equal(got, want):
        raise Failed(f"{got[0, -NEW:].tolist()} instead of {want[0, -NEW:].tolist()}")


def together(model: Any) -> None:
    """Several prompts, of one length or not, are continued in one batch as they are alone, or that is refused."""
    for prompts in (TWINS, PROMPTS):
        try:
            _continued(model, prompts, [_generated(model._model, prompt) for prompt in prompts])
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
    path = blocks(model._model)[0]
    part = model._model.get_submodule(path)
    with hooks([_edit_first_visit(part)]), torch.no_grad():
        want = model._model(input_ids=torch.tensor([PROMPTS[1]])).logits
    with torch.no_grad(), model.trace(PROMPTS[1]):
        model.get(path).nns_output = _edit(output(model, path))
        got = model.nns_output.logits
    close(got, want, "logits after an edit")
    unchanged = _alone(model._model, PROMPTS[1])[""][0][0]
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
    """A scan gives the shapes of a run."""
    want = _alone(model._model, PROMPTS[1])
    paths = blocks(model._model)
    with model.scan(PROMPTS[1]):
        got = {path: [tuple(leaf.shape) for leaf in copied(output(model, path))] for path in paths}
        logits = tuple(model.nns_output.logits.shape)
    for path in paths:
        if got[path] != [tuple(leaf.shape) for leaf in want[path][0]]:
            raise Failed(f"{path}: {got[path]} instead of {[tuple(leaf.shape) for leaf in want[path][0]]}")
    if logits != tuple(want[""][0][0].shape):
        raise Failed(f"logits: {logits} instead of {tuple(want[''][0][0].shape)}")


def names(model: Any) -> None:
    """The standard names that a model has hold what they say: their sums are the residual stream, their end the logits."""
    standard = model.standard
    layers = standard.resolution.layers
    lacks = absent(standard)
    if "layers" in lacks:
        return
    whole = (
        [at for at in range(len(layers)) if not {f"attentions_output[{at}]", f"mlps_output[{at}]"} & lacks.keys()]
        if not {"attentions_output", "mlps_output"} & lacks.keys()
        else []
    )
    before: dict[int, torch.Tensor] = {}
    after: list[torch.Tensor] = []
    added: dict[int, torch.Tensor] = {}
    with torch.no_grad(), model.trace(PROMPTS[1]):
        for at in range(len(layers)):
            if "layers_input" not in lacks:
                before[at] = standard.layers_input[at].clone()
            if at in whole:
                added[at] = standard.attentions_output[at].clone()
                added[at] = added[at] + standard.mlps_output[at]
            after.append(standard.layers_output[at].clone())
        logits = standard.logits.clone()
    for at in range(len(layers)):
        if at in whole and at in before:
            close(
                before[at] + added[at], after[at], f"layers_input[{at}] + attentions_output[{at}] + mlps_output[{at}]"
            )
        if at and at in before:
            close(before[at], after[at - 1], f"layers_input[{at}]")
    try:
        with torch.no_grad():
            got = standard.project_on_vocab(after[-1])
    except AbsentNameError:
        return
    close(got, logits, "project_on_vocab(layers_output[-1])")


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
    """What came of a check: it holds, it does not, or what it asks for is refused clearly."""

    kind: Literal["holds", "fails", "refused"]
    why: str = ""


def check(model: Any, name: str) -> Verdict:
    """Make one check of a model."""
    try:
        CHECKS[name](model)
    except Refused as refusal:
        return Verdict("refused", str(refusal))
    except (Failed, NNsightError) as failure:
        return Verdict("fails", str(failure))
    return Verdict("holds")


def wrap(module: torch.nn.Module) -> Any:
    """Return a language model for the checks."""
    return LanguageModel(module)
