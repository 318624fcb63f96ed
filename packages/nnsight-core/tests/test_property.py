"""Whatever the tree and whatever the body: the trace gives what plain hooks give.

Trees (sequential, nested, residual, shared, recurrent, with tuples and keyword arguments) and bodies (reads, edits in
place, replacements, skips, loops, stops, errors, invokes, caches) are made up by hypothesis; what should come out is
computed by `plain_oracle.py`, which knows nothing of nnsight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_oracle import SIZE, Act, Leaf, Oracle, Site, build, copied, edited, first, instead, replaced

import nnsight
from nnsight._core.active import active
from nnsight._core.taps import running


def examples(count: int) -> settings:
    """The same examples at every run, and no more than there is time for."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


numbers = st.integers(1, 9)
leaves = numbers | st.tuples(st.just("again"), numbers)
trees = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.tuples(st.just("chain"), st.lists(parts, min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["residual", "pair", "byname"]), parts),
        st.tuples(st.just("recurrent"), parts, st.integers(2, 3)),
    ),
    max_leaves=5,
).map(lambda spec: ("chain", [spec]))

#: Where in the run, as a number that is taken modulo its length; what to do there; and a number to do it with.
kinds = st.sampled_from(["read", "edit", "replace", "skip"])
wishes = st.lists(st.tuples(st.integers(0, 199), kinds, numbers), max_size=6)


def inputs(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planned(root: Any, x: torch.Tensor, wished: Sequence[tuple[int, str, int]]) -> list[Act]:
    """Turn wishes into acts, in the order of the run. What lies inside a skipped module is not reached."""
    acts: list[Act] = []
    for place, kind, number in sorted(wished, key=lambda wish: wish[0] % 97):
        # Earlier acts decide what is passed, and how often.
        sites = Oracle(root, acts).run(x.clone()).sites
        at = sites.index(acts[-1].site) if acts else 0
        site = sites[at + place % (len(sites) - at)] if place % 3 else sites[at]
        if kind == "skip" and (site.stage == "output" or any(act.site == site and act.kind == "skip" for act in acts)):
            kind = "read"
        if kind != "skip" and any(act.site == site and act.kind == "skip" for act in acts):
            continue  # its output is decided already, from the input as it was
        acts.append(Act(site, kind, number))
    return acts


def envoy_of(model: Any, path: str) -> Any:
    return model.get(path) if path else model


def do(model: Any, act: Act, log: list[Any]) -> None:
    """Do with envoys what an act says."""
    envoy, module, number = envoy_of(model, act.site.path), act.site.module, act.number
    if act.site.stage == "input":
        if act.kind == "read":
            log.append(copied(envoy.input))
        elif act.kind == "edit":
            edited(envoy.input, number)
        elif act.kind == "replace":
            envoy.input = replaced(envoy.input, number)
        else:
            envoy.skip(instead(module, envoy.input, number))
    elif act.kind == "read":
        log.append(copied(envoy.output))
    elif act.kind == "edit":
        edited(first(envoy.output), number)
    else:
        envoy.output = replaced(envoy.output, number)


def perform(model: Any, tracer: Any, acts: Sequence[Act], log: list[Any]) -> None:
    for act in acts:
        if act.site.visit == 0:
            do(model, act, log)
        else:
            for _ in tracer.iter[act.site.visit]:
                do(model, act, log)


def same(mine: Any, theirs: Any, exactly: bool = True) -> bool:
    if isinstance(mine, (tuple, list)):
        return len(mine) == len(theirs) and all(same(a, b, exactly) for a, b in zip(mine, theirs))
    return torch.equal(mine, theirs) if exactly else torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def refused(may_be: bool) -> Any:
    return contextlib.suppress(nnsight.ChangedValueError) if may_be else contextlib.nullcontext()


def check_untouched(root: Any) -> None:
    assert not running and active.get() == ()
    for module in root.modules():
        assert "forward" not in module.__dict__ and not module._forward_hooks


@examples(120)
@given(trees, wishes, numbers)
@torch.no_grad()
def test_a_body_does_what_hooks_do(tree: Any, wished: Any, seed: int) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    x = inputs(2, seed)
    acts = planned(root, x, wished)
    log: list[Any] = []
    with model.trace(x.clone()) as tracer:
        kept = tracer.cache(include_inputs=True)
        copies = tracer.cache(include_inputs=True, copy=True)
        perform(model, tracer, acts, log)
        log.append(copied(tracer.result))
    check_untouched(root)
    oracle = Oracle(root, acts).run(x.clone())
    assert same(log, oracle.log)
    for module, visits in oracle.kept.items():
        for cache in (kept, copies):
            cached = cache[envoy_of(model, oracle.paths[module])._path]
            cached = [cached] if len(visits) == 1 else cached
            assert len(cached) == len(visits)
            for entry, (given_, came) in zip(cached, visits):
                # What an edit in place changed afterwards is refused by the one, and never wrong.
                with refused(cache is kept):
                    assert same(entry.output, came)
                with refused(cache is kept):
                    assert same(list(entry.inputs[0]), list(given_[0])) and entry.inputs[1].keys() == given_[1].keys()
                    assert same(list(entry.inputs[1].values()), list(given_[1].values()))


@examples(50)
@given(trees, wishes, numbers, st.sampled_from(["stop", "raise", "return", "late"]))
@torch.no_grad()
def test_a_body_that_leaves_early(tree: Any, wished: Any, seed: int, how: str) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    x = inputs(2, seed)
    acts = planned(root, x, wished)
    log: list[Any] = []
    error = KeyError("mine")

    def leave() -> None:
        with model.trace(x.clone()) as tracer:
            perform(model, tracer, acts, log)
            if how == "stop":
                tracer.stop()
                log.append("not reached")
            elif how == "raise":
                raise error
            elif how == "return":
                return
            tracer.result

    if how == "raise":
        with pytest.raises(KeyError) as caught:
            leave()
        assert caught.value is error
    else:
        leave()
    check_untouched(root)
    oracle = Oracle(root, acts, stop_at=acts[-1].site if acts else None).run(x.clone())
    assert same(log, oracle.log if acts else [])
    # And the next run is as if nothing had been.
    with model.trace(x.clone()) as tracer:
        result = tracer.result
    assert same(result, root(x.clone()))


@examples(50)
@given(trees, st.integers(0, 199), st.integers(0, 199), numbers)
@torch.no_grad()
def test_what_has_passed_cannot_be_asked_for(tree: Any, now: int, before: int, seed: int) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    x = inputs(2, seed)
    sites = Oracle(root).run(x).sites
    at = 1 + now % (len(sites) - 1)
    late = Act(sites[before % at], "read", 1)
    log: list[Any] = []
    with model.trace(x) as tracer:
        perform(model, tracer, [Act(sites[at], "read", 1)], log)
        with pytest.raises(nnsight.OutOfOrderError):
            perform(model, tracer, [late], log)
        # The run goes on from where it stood.
        result = tracer.result
    assert same([*log, result], Oracle(root, [Act(sites[at], "read", 1)]).run(x).log)
    check_untouched(root)


@examples(60)
@given(
    tree=trees,
    which=st.integers(0, 199),
    kind=st.sampled_from(["read", "edit", "replace"]),
    bound=st.none() | st.integers(1, 5),
    captured=st.booleans(),
)
@torch.no_grad()
def test_a_loop_meets_each_visit(tree: Any, which: int, kind: str, bound: int | None, captured: bool) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    x = inputs(2, which)
    sites = Oracle(root).run(x.clone()).sites
    one = sites[which % len(sites)]
    visits = [site for site in sites if (site.module, site.stage) == (one.module, one.stage)]
    met = visits if bound is None else visits[:bound]
    rounds = list(range(len(met)))
    acts = [Act(site, what, 2) for site in met for what in (kind, "read")]
    log: list[Any] = []
    count: list[int] = []
    # Whether the run stands at the first of them already when the loop begins makes no difference.
    early = [Act(visits[0], "read", 1)] if which % 2 else []
    again = [Act(Site(one.module, one.path, one.stage, 0), what, 2) for what in (kind, "read")]
    selection = slice(bound)
    before: list[Any] = []

    def body() -> None:
        if captured:
            with model.trace(x.clone()) as tracer:
                perform(model, tracer, early, before)
                with tracer.iter[selection] as step:
                    for act in again:
                        do(model, act, log)
                    count.append(step)
                log.append("after the loop")
        else:
            with model.trace(x.clone()) as tracer:
                perform(model, tracer, early, before)
                for step in tracer.iter[selection]:
                    for act in again:
                        do(model, act, log)
                    count.append(step)
                log.append("after the loop")

    if bound is not None and bound > len(visits):
        with pytest.warns(nnsight.UnmetSiteWarning, match="not reached"):
            body()
    else:
        body()
    assert count == rounds and log.pop() == "after the loop"
    assert same(log, Oracle(root, acts).run(x.clone()).log[:-1])
    check_untouched(root)


def apart(root: Any, x: torch.Tensor, wished: Sequence[tuple[int, str, int]]) -> list[Act]:
    """Plan acts that mean the same in a batch as alone.

    An edit of an input may reach what shares its memory, and when another invoke has written the same site there is
    nothing that shares any more; a module that one invoke skips runs for the others, and is visited.
    """
    wished = [(place, "read" if kind == "skip" else kind, number) for place, kind, number in wished]
    acts = []
    for act in planned(root, x, wished):
        computes = isinstance(act.site.module, Leaf)
        if act.kind == "edit" and not (computes and act.site.stage == "output"):
            act = Act(act.site, "replace", act.number)
        if act.kind == "replace" and computes and act.site.stage == "input" and act.number % 2:
            act = Act(act.site, "skip", act.number)
        if not any(other.site == act.site and other.kind == "skip" for other in acts):
            acts.append(act)
    return acts


@examples(80)
@given(trees, st.lists(st.tuples(st.integers(1, 2), wishes), min_size=2, max_size=3), st.booleans(), numbers)
@torch.no_grad()
def test_invokes_together_are_as_each_alone(tree: Any, bodies: Any, whole: bool, seed: int) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    given_: list[torch.Tensor] = [inputs(rows, seed + n) for n, (rows, _) in enumerate(bodies)]
    acts = [apart(root, x, wished) for x, (_, wished) in zip(given_, bodies)]
    logs: list[list[Any]] = [[] for _ in bodies]
    batch: list[Any] = []
    with model.trace() as tracer:
        for n, x in enumerate(given_):
            with tracer.invoke(x.clone()):
                perform(model, tracer, acts[n], logs[n])
                logs[n].append(copied(tracer.result))
        if whole:
            with tracer.invoke():
                batch.append(copied(tracer.result))
    check_untouched(root)
    alone = [Oracle(root, plan).run(x.clone()) for plan, x in zip(acts, given_)]
    for log, oracle in zip(logs, alone):
        assert same(log, oracle.log, exactly=False)
    if whole:
        assert same(batch, [torch.cat([first(oracle.log[-1]) for oracle in alone])], exactly=False)


@examples(50)
@given(trees, wishes, wishes, numbers)
@torch.no_grad()
def test_an_edit_comes_before_the_body(tree: Any, stored: Any, wished: Any, seed: int) -> None:
    root = build(tree)
    model = nnsight.NNsight(root)
    x = inputs(2, seed)
    # At each site the edit has its turn first; the body only reads, for what it does must not hang on the edit's sites.
    edit = [act for act in planned(root, x, stored) if act.site.visit == 0 and act.kind in ("edit", "replace")]
    reads = [act for act in planned(root, x, [(place, "read", n) for place, _, n in wished]) if act.site.visit == 0]
    none: list[Any] = []
    with model.edit() as edited_model:
        for act in edit:
            do(edited_model, act, none)
    log: list[Any] = []
    with edited_model.trace(x.clone()) as tracer:
        perform(edited_model, tracer, reads, log)
        log.append(copied(tracer.result))
    oracle = Oracle(root, [*edit, *reads]).run(x.clone())
    assert same(log, oracle.log)
    assert same(edited_model(x.clone()), oracle.log[-1])
    assert same(model(x.clone()), root(x.clone()))
    check_untouched(root)
