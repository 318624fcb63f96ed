"""What one process times for a row: the bare forward, and the same work done by each contender that lives there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import diffusion
import hooks
import texts
from models import Subject, build

Case = Callable[[], Any]

#: Taken before anybody has imported nnsight, which puts its own method over it.
plain_backward = torch.Tensor.backward


def cases(work: str, model: str, count: int, contender: str) -> dict[str, Case]:
    """Return what is to be timed, by contender; `contender` is who this process is for ("ours", "peer", ...)."""
    subject = build(model)
    if contender in ("pyvene", "TransformerLens"):
        import others

        theirs = others.case(contender, work, subject, count)
        return {"bare": lambda: subject.net(subject.x), contender: theirs} if theirs is not None else {}
    made = _MAKERS[work](subject, count, contender)
    if contender == "peer":
        made.pop("hooks", None)  # they are timed beside ours
    return made


def agree(work: str, model: str, count: int, contender: str) -> None:
    """Check that the contender computes what hooks compute.

    Raises:
        AssertionError: it does not, so its time says nothing.
    """
    subject = build(model)
    made = _MAKERS[work](subject, count, contender)
    # On language models and pipelines "bare" itself does the work, if hooks are not listed beside it.
    itself = work in texts.MAKERS or work in diffusion.MAKERS
    reference = made.get("hooks") or (made["bare"] if itself else None)
    if reference is None:
        return
    expected = _shown(reference(), subject)
    for name in (contender, "in place"):
        if name in made:
            torch.testing.assert_close(_shown(made[name](), subject), expected)


def _shown(value: Any, subject: Subject) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list):
        return torch.stack(value)
    entry = value[f"model.layers.{len(subject.net.layers) - 1}"]
    return entry if isinstance(entry, Tensor) else entry.output


def _wrap(subject: Subject, contender: str) -> Any:
    import blocks

    return blocks.wrap(subject.net, peer=contender == "peer")


def _untouched(subject: Subject) -> Subject:
    return Subject(copy.deepcopy(subject.net), subject.x)


def _empty(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x = _untouched(subject), _wrap(subject, contender), subject.x
    return {"bare": lambda: plain.net(x), contender: lambda: blocks.empty(model, x)}


def _read(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x, layers = _untouched(subject), _wrap(subject, contender), subject.x, subject.picked(count)
    return {
        "bare": lambda: plain.net(x),
        "hooks": lambda: hooks.read(plain.net, x, layers),
        contender: lambda: blocks.read(model, x, layers),
    }


def _replace(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x, layers = _untouched(subject), _wrap(subject, contender), subject.x, subject.picked(count)
    return {
        "bare": lambda: plain.net(x),
        "hooks": lambda: hooks.replace(plain.net, x, layers),
        contender: lambda: blocks.replace(model, x, layers),
    }


def _cache(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x = _untouched(subject), _wrap(subject, contender), subject.x
    return {
        "bare": lambda: plain.net(x),
        "hooks": lambda: hooks.cache(plain.net, x),
        contender: lambda: blocks.cache(model, x),
    }


_turn = 0


def _idle(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    # Which of two equal models is the wrapped one alternates.
    global _turn
    _turn += 1
    pair = [subject, _untouched(subject)]
    plain, wrapped = pair[_turn % 2], pair[1 - _turn % 2]
    model, x = _wrap(wrapped, contender), subject.x
    blocks.empty(model, x)
    blocks.read(model, x, [0])
    kept = model  # as in a session, where the wrapper stays alive
    return {"bare": lambda: plain.net(x), contender: lambda kept=kept: wrapped.net(x)}


def _invokes(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x, layer = _untouched(subject), _wrap(subject, contender), subject.x, subject.picked(2)[0]
    batch = torch.cat([x] * count)
    return {
        "bare": lambda: plain.net(batch),
        "hooks": lambda: hooks.invokes(plain.net, x, count, layer),
        contender: lambda: blocks.invokes(model, x, count, layer),
    }


def _assign(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x = _untouched(subject), _wrap(subject, contender), subject.x
    value, batch = torch.rand_like(x), torch.cat([x] * count)
    return {
        "bare": lambda: plain.net(batch),
        "hooks": lambda: hooks.overwrite(plain.net, x, count, value),
        "in place": lambda: blocks.edit_in_place(model, x, count, value),
        contender: lambda: blocks.assign(model, x, count, value),
    }


def _backward(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks  # noqa: F401 - with it nnsight, and what it puts over `Tensor.backward`

    loss = torch.rand((), requires_grad=True) * 2

    def bare() -> None:
        plain_backward(loss, retain_graph=True)

    def patched() -> None:
        loss.backward(retain_graph=True)

    return {"bare": bare, contender: patched}


def _generate(subject: Subject, count: int, contender: str) -> dict[str, Case]:
    import blocks

    plain, model, x, layer = _untouched(subject), _wrap(subject, contender), subject.x, subject.picked(2)[0]
    return {
        "bare": lambda: plain.net.generate(x, count),
        "hooks": lambda: hooks.generate(plain.net, x, count, layer),
        contender: lambda: blocks.generate(model, x, count, layer),
    }


_MAKERS: dict[str, Callable[[Subject, int, str], dict[str, Case]]] = {
    "empty trace": _empty,
    "read": _read,
    "read and replace": _replace,
    "cache all": _cache,
    "wrapped, idle": _idle,
    "invokes": _invokes,
    "assigning invokes": _assign,
    "plain backward": _backward,
    "generation, steps": _generate,
    **texts.MAKERS,
    **diffusion.MAKERS,
}
