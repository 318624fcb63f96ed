"""Every group of tasks: inputs of several invokes share a forward, and each gets what transformers alone makes of its own.

Which sites carry rows, how they lie there and that an edit stays within them is checked at modules throughout the model, as
for any family.
"""

from __future__ import annotations

from typing import Any

import pytest
import tasks
import torch
from tasks import KINDS, Kind

from nnsight import RowsError
from nnsight.testing.reference import assert_alike
from nnsight.testing.subjects import change


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "tapas":
        pytest.importorskip("pandas")
    return KINDS[request.param]()


@pytest.fixture(autouse=True)
def without_graphs() -> Any:
    with torch.no_grad():
        yield


def places(kind: Kind, model: Any, plain: Any) -> list[str]:
    return [path for path in kind.found_sites(model, plain) if path.startswith(kind.within)]


def test_an_input_gives_what_transformers_makes_of_it(kind: Kind) -> None:
    model = kind.make_model()
    for given in kind.given:
        want = kind.hooked(model, given)
        sites = places(kind, model, want)
        with model.trace(given) as tracer:
            seen = {path: model.get(path).output for path in sites}
            result = tracer.result
        assert_alike(seen, {path: want[path] for path in sites}, kind.rounding)
        assert_alike(result, want.result, kind.rounding)


def test_invokes_share_a_forward_and_are_strangers_to_each_other(kind: Kind) -> None:
    model = kind.make_model()
    plain = [kind.hooked(model, given) for given in kind.given]
    sites = places(kind, model, plain[0])
    if kind.refused:
        with pytest.raises(RowsError, match=kind.refused), model.trace() as tracer:
            for given in kind.given:
                with tracer.invoke(given):
                    tracer.result
        return
    got: list[Any] = []
    whole: dict[str, Any] = {}
    with model.trace() as tracer:
        for given in kind.given:
            with tracer.invoke(given):
                got.append(({path: model.get(path).output for path in sites}, tracer.result))
        with tracer.invoke():
            whole.update((path, model.get(path).output) for path in sites)
    layout, rows = kind.stated(model, kind.given)
    carrying = [path for path in sites if layout.take(whole[path], rows[0], model.get(path).path) is not None]
    assert len(carrying) > len(sites) / 2, f"of {sites} only {carrying} carry rows"
    for want, (seen, result) in zip(plain, got, strict=True):
        for path in carrying:
            assert_alike(kind.part(seen[path], want[path]), want[path], kind.rounding)
        assert_alike(kind.part(result, want.result), want.result, kind.rounding)

    path = carrying[len(carrying) // 2]
    changed = kind.changed(model, kind.given[0], path)
    with model.trace() as tracer:
        with tracer.invoke(kind.given[0]):
            model.get(path).output = change(model.get(path).output)
            mine = tracer.result
        with tracer.invoke(kind.given[1]):
            other = tracer.result
    assert_alike(kind.part(mine, changed), changed, kind.rounding)
    assert_alike(kind.part(other, plain[1].result), plain[1].result, kind.rounding)


def test_a_page_comes_after_the_padding_of_its_text() -> None:
    kind = KINDS["layoutlmv3"]()
    model = kind.make_model()
    got = []
    with model.trace() as tracer:
        for page in tasks.pages():
            with tracer.invoke(page):
                got.append(model.output.start_logits)
    lengths = [kind.encode(page)["input_ids"].shape[1] for page in tasks.pages()]
    assert lengths[0] != lengths[1]
    for page, mine, length in zip(tasks.pages(), got, lengths, strict=True):
        want = model._module(**kind.encode(page)).start_logits
        seen = want.shape[1] - length
        assert_alike(torch.cat([mine[:, :length], mine[:, mine.shape[1] - seen :]], 1), want, kind.rounding)
