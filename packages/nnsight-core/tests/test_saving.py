"""Saving: `.save()` on values, where it is mounted, and where it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_toys import Toy, rows, seeded
from fresh_python import in_fresh_python

import nnsight
from nnsight import CONFIG, NNsight, NNsightError, NoTraceError, SaveOutsideTraceError
from nnsight._core import patches


@pytest.fixture
def model() -> Any:
    return NNsight(seeded(Toy))


VALUES: list[Any] = [
    torch.ones(2),
    torch.nn.Parameter(torch.ones(2)),
    torch.Size([1]),
    torch.float32,
    torch.device("cpu"),
    [1],
    {"a": 1},
    (1,),
    {1},
    frozenset({1}),
    1,
    1.5,
    2j,
    True,
    "text",
    b"bytes",
    bytearray(b"b"),
    range(3),
    slice(1),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_kind_of_value_can_be_saved_and_comes_back_itself(model: Any, value: Any) -> None:
    with model.trace(rows()):
        by_method = value.save()
        by_function = nnsight.save(value)
    assert by_method is value and by_function is value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_outside_any_trace_saving_is_refused(value: Any) -> None:
    for save in (lambda: value.save(), lambda: nnsight.save(value)):
        with pytest.raises(SaveOutsideTraceError, match="outside any trace"):
            save()


def test_the_refusal_is_what_a_user_would_expect() -> None:
    for kind in (RuntimeError, ValueError, NoTraceError, NNsightError):
        with pytest.raises(kind):
            nnsight.save(1)


def test_any_object_can_be_saved_by_the_function(model: Any) -> None:
    thing = object()
    with model.trace(rows()):
        assert nnsight.save(thing) is thing
        assert nnsight.save(None) is None


def test_saving_the_output_of_a_module(model: Any) -> None:
    net = model._module
    with model.trace(rows()):
        h = model.layers[0].output.save()
        shape = model.output.shape.save()
    assert torch.equal(h, net.layers[0](net.embed(rows()))) and shape == (2, 5)


def test_saving_in_an_invoke_and_in_the_block_around_it(model: Any) -> None:
    with model.trace() as tracer:
        values = [].save()
        with tracer.invoke(rows()):
            values.append(model.output.save())
        with tracer.invoke(rows()):
            values.append(model.output.save())
    assert len(values) == 2
    torch.testing.assert_close(values[0], values[1])


def test_names_stay_bound_without_saving(model: Any) -> None:
    with model.trace(rows()):
        h = model.layers[0].output
    assert h.shape == (2, 8)


def test_nothing_stays_mounted_on_object() -> None:
    class Mine:
        pass

    assert not hasattr(Mine(), "save") and not hasattr(object(), "save") and not hasattr(None, "save")
    assert not hasattr(torch.nn.Linear(1, 1), "save")


def test_a_type_with_a_save_of_its_own_keeps_it(model: Any) -> None:
    class Own(list):
        def save(self) -> str:
            return "own"

    assert Own().save() == "own"
    with model.trace(rows()):
        assert Own().save() == "own" and Own.save is not list.save


def test_unmounting_and_mounting_again() -> None:
    was = CONFIG.APP.PYMOUNT
    assert was
    try:
        CONFIG.APP.PYMOUNT = False
        for value in VALUES:
            assert not hasattr(value, "save"), type(value)
        model = NNsight(seeded(Toy))
        with model.trace(rows()):
            assert nnsight.save([1]) == [1]
            with pytest.raises(AttributeError):
                [1].save()  # type: ignore[attr-defined]
        CONFIG.APP.PYMOUNT = True
        assert all(hasattr(value, "save") for value in VALUES)
        CONFIG.APP.PYMOUNT = True
        assert [].save.__name__ == "save"  # type: ignore[attr-defined]
    finally:
        CONFIG.APP.PYMOUNT = was


def test_mounting_twice_is_mounting_once() -> None:
    patches.mount_save()
    patches.unmount_save()
    try:
        assert not hasattr([], "save")
    finally:
        patches.mount_save()
    assert hasattr([], "save")


def test_mounting_changes_no_other_attribute() -> None:
    types = [list, dict, tuple, int, str, bool, torch.Tensor]
    mounted = [set(dir(cls)) for cls in types]
    patches.unmount_save()
    try:
        assert [names - set(dir(cls)) for cls, names in zip(types, mounted)] == [{"save"}] * len(types)
        assert [set(dir(cls)) - names for cls, names in zip(types, mounted)] == [set()] * len(types)
    finally:
        patches.mount_save()


def test_the_environment_can_say_no(tmp_path: Any) -> None:
    code = "import nnsight; assert not hasattr([], 'save'); nnsight.CONFIG.APP.PYMOUNT = True; assert [].save"
    done = in_fresh_python(code, NNSIGHT_APP_PYMOUNT="0", NNSIGHT_CONFIG_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_function_called_from_a_block_may_save(model: Any) -> None:
    def read() -> torch.Tensor:
        return model.layers[0].output.save()

    with model.trace(rows()):
        h = read()
    assert h.shape == (2, 8)
    with pytest.raises(SaveOutsideTraceError):
        h.save()
