"""`FamilySuite`: what must hold for every family of models.

An author says how to make a model and what it takes; which modules there are, and what they give, is found by calling the
model with plain hooks (`reference.py`), and everything a trace gives is compared with that. Where blocks run is a backend's
matter: given one, the same checks say whether the family can be served. What concerns generation is `generating.py`.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
from typing import Any, cast

import pytest
import torch

import nnsight
from nnsight.plugin import Layout, NNsight, Rows
from nnsight.testing.reference import Edit, Hooked, assert_alike, state_of
from nnsight.testing.somewhere import Somewhere, Where
from nnsight.testing.subjects import (
    change,
    is_changeable_tuple,
    is_floating,
    loss_of,
    own_property,
    own_values,
    serves_output,
    some,
    unpadded,
)


class FamilySuite(Somewhere):
    """Subclass it, and define `make_model` and `inputs`; the rest has defaults that may fit.

    With `make_backend` (or a fixture `backend`) the blocks are sent there, and must give what they give here.
    """

    #: On which side of dimension 1 a shorter input is padded in a batch: "left", "right", or None if it never is.
    padding: str | None = None
    #: How far an input in a batch may differ from the same input alone, relative and absolute.
    rounding: float = 1e-5
    #: False for a family whose forward cannot run on fake tensors.
    scans: bool = True
    #: False for a family through which no gradient flows.
    differentiable: bool = True

    def make_model(self) -> NNsight:
        """Make a small model with fixed weights."""
        raise NotImplementedError("a FamilySuite defines make_model()")

    def inputs(self) -> list[Any]:
        """Return two or more inputs, each as `model.trace` takes it; of different lengths, where the family takes such."""
        raise NotImplementedError("a FamilySuite defines inputs()")

    def call(self, model: Any, given: Any, method: str | None = None, **options: Any) -> Any:
        """Run the model on one input without a trace; the default prepares it as the family does."""
        args, kwargs = model._batch([model._prepare_input(given, **options)])
        return model._target(method)(*args, **kwargs)

    def part(self, value: Any, alone: Any) -> Any:
        """Return that part of an invoke's value in a batch which is not padding; `alone` is what it is without a batch."""
        return value if self.padding is None else unpadded(value, alone, self.padding)

    # -- what the checks start from ----------------------------------------------------------------------------------

    @pytest.fixture
    def model(self) -> Any:
        """The model, made anew for each check, and ready to run."""
        model = self.make_model()
        model._ready()
        return model

    @pytest.fixture
    def given(self) -> list[Any]:
        """The inputs."""
        given = self.inputs()
        assert len(given) >= 2, "inputs() gives two or more, so that a batch can be made of them"
        return given

    @pytest.fixture
    def plain(self, model: Any, given: list[Any]) -> Hooked:
        """What hooks see of a call with the first input."""
        return self.hooked(model, given[0])

    @pytest.fixture
    def sites(self, model: Any, plain: Hooked) -> list[str]:
        """The modules that are visited once and give a tensor that can be computed with, in the order of their outputs."""
        return self.found_sites(model, plain)

    def found_sites(self, model: Any, plain: Hooked) -> list[str]:
        """Return the sites that a call with plain hooks shows."""
        found = [path for path in plain.order if path and len(plain.outputs[path]) == 1 and is_floating(plain[path])]
        found = [path for path in found if serves_output(model, path)]
        assert found, "the model has no submodule that gives a tensor"
        return found

    def hooked(
        self, model: Any, given: Any, edits: dict[str, Edit] | None = None, grad: bool = False, **options: Any
    ) -> Hooked:
        """Call the model with plain hooks."""
        return Hooked(model._module, lambda: self.call(model, given, **options), edits, grad)

    def changed(self, model: Any, given: Any, path: str) -> Any:
        """Return the result of a call in which a hook changes the output of one module."""
        return self.hooked(model, given, {path: lambda output, visit: change(output)}).result

    # -- reading and writing -----------------------------------------------------------------------------------------

    def test_outputs_are_those_that_hooks_see(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        with model.trace(given[0], **where) as tracer:
            seen = nnsight.save({path: model.get(path).output for path in sites})
            result = nnsight.save(tracer.result)
        assert_alike(seen, {path: plain[path] for path in sites}, self.rounding)
        assert_alike(result, plain.result, self.rounding)

    def test_inputs_are_those_that_hooks_see(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        for path in some(sites):
            with model.trace(given[0], **where):
                inputs = nnsight.save(model.get(path).inputs)
            assert_alike(inputs, plain.inputs[path][0], self.rounding)

    @pytest.mark.usefixtures("here")
    def test_a_run_without_a_block(self, model: Any, given: list[Any], plain: Hooked) -> None:
        assert_alike(model.trace(given[0], trace=False), plain.result, self.rounding)

    def test_a_replaced_output_changes_the_run(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        for path in some(sites):
            with model.trace(given[0], **where) as tracer:
                model.get(path).output = change(model.get(path).output)
                result = nnsight.save(tracer.result)
            assert_alike(result, self.changed(model, given[0], path), self.rounding)

    def test_an_output_edited_in_place_changes_the_run(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        for path in some(sites):
            with model.trace(given[0], **where) as tracer:
                model.get(path).output.mul_(1.5).add_(0.25)
                result = nnsight.save(tracer.result)
            assert_alike(result, self.changed(model, given[0], path), self.rounding)

    def test_a_part_of_a_tuple_is_changed(self, model: Any, given: list[Any], plain: Hooked, where: Where) -> None:
        tuples = [path for path in plain.order if path and is_changeable_tuple(plain.outputs[path])]
        tuples = [path for path in tuples if serves_output(model, path)]
        if not tuples:
            pytest.skip("no module of this model gives a tuple that begins with a tensor")
        for path in some(tuples):
            want = self.hooked(model, given[0], {path: lambda output, visit: (change(output[0]), *output[1:])}).result
            with model.trace(given[0], **where) as tracer:
                output = model.get(path).output
                model.get(path).output = (change(output[0]), *output[1:])
                result = nnsight.save(tracer.result)
            assert_alike(result, want, self.rounding)

    def test_a_skipped_module_gives_what_it_was_given(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        for path in some(sites):
            instead = change(plain[path])
            with model.trace(given[0], **where) as tracer:
                model.get(path).skip(instead)
                result = nnsight.save(tracer.result)
            assert_alike(result, self.changed(model, given[0], path), self.rounding)

    def test_values_of_the_familys_own_are_read_and_written_back(
        self, model: Any, given: list[Any], plain: Hooked, where: Where
    ) -> None:
        for path, name in own_values(model, plain):
            written = own_property(model.get(path), name).write is not None
            with model.trace(given[0], **where) as tracer:
                envoy = model.get(path)
                value = nnsight.save(getattr(envoy, name))
                if written:
                    setattr(envoy, name, copy.deepcopy(value))
                result = nnsight.save(tracer.result)
            assert value is not None
            assert_alike(result, plain.result, self.rounding)

    # -- several inputs ----------------------------------------------------------------------------------------------

    def test_each_input_of_a_batch_gets_what_it_gets_alone(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        alone = [self.hooked(model, one) for one in given]
        with model.trace(**where) as tracer:
            got = nnsight.save([])
            for one in given:
                with tracer.invoke(one):
                    got.append(({path: model.get(path).output for path in sites}, tracer.result))
        for plain, (seen, result) in zip(alone, got):
            # What the family says has no rows is the whole batch's, so it has another size than alone.
            for path in self.with_rows(model, given, sites):
                assert_alike(self.part(seen[path], plain[path]), plain[path], self.rounding)
            assert_alike(self.part(result, plain.result), plain.result, self.rounding)

    def test_an_edit_in_one_invoke_leaves_the_others_alone(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        for path in some(self.with_rows(model, given, sites)):
            want = self.changed(model, given[0], path)
            other = self.hooked(model, given[1]).result
            for in_place in (False, True):
                with model.trace(**where) as tracer:
                    with tracer.invoke(given[0]):
                        if in_place:
                            model.get(path).output.mul_(1.5).add_(0.25)
                        else:
                            model.get(path).output = change(model.get(path).output)
                        mine = nnsight.save(tracer.result)
                    with tracer.invoke(given[1]):
                        others = nnsight.save(tracer.result)
                assert_alike(self.part(mine, want), want, self.rounding)
                assert_alike(self.part(others, other), other, self.rounding)

    def test_an_invoke_without_input_sees_the_whole_batch(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        (path, *_) = self.with_rows(model, given, sites)
        with model.trace(**where) as tracer:
            seen = nnsight.save([])
            for one in given:
                with tracer.invoke(one):
                    seen.append(model.get(path).output.clone())
            with tracer.invoke():
                whole = nnsight.save(model.get(path).output.clone())
        layout, rows = self.stated(model, given)
        assert_alike(seen, [layout.take(whole, mine, model.get(path).path) for mine in rows])

    def test_a_write_of_other_rows_is_refused(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        (path, *_) = self.with_rows(model, given, sites)
        with pytest.raises(nnsight.RowsError):
            with model.trace(**where) as tracer:
                with tracer.invoke(given[0]):
                    model.get(path).output = torch.cat([model.get(path).output] * 2)
                with tracer.invoke(given[1]):
                    pass

    def with_rows(self, model: Any, given: list[Any], sites: list[str]) -> list[str]:
        """Return the sites whose values in a batch carry rows, as the family states."""
        seen: dict[str, Any] = {}
        with model.trace() as tracer:
            for one in given:
                with tracer.invoke(one):
                    pass
            with tracer.invoke():
                seen.update((path, model.get(path).output) for path in sites)
        layout, rows = self.stated(model, given)
        found = [path for path in sites if layout.take(seen[path], rows[0], model.get(path).path) is not None]
        assert found, "by the family's layout no value carries rows"
        return found

    def stated(self, model: Any, given: list[Any]) -> tuple[Layout, list[Rows]]:
        """Return how the family says that the rows of a batch lie, and which rows are whose."""
        prepared = [model._prepare_input(one) for one in given]
        ends = list(itertools.accumulate(count for _, _, count in prepared))
        rows = [(end - count, count) for end, (_, _, count) in zip(ends, prepared)]
        return model._layout(ends[-1], *model._batch(prepared), None), rows

    # -- other contexts ----------------------------------------------------------------------------------------------

    @pytest.mark.usefixtures("here")
    def test_a_scan_knows_the_shapes(self, model: Any, given: list[Any], plain: Hooked, sites: list[str]) -> None:
        if not self.scans:
            pytest.skip("this family says that it cannot be scanned")
        with model.scan(given[0]):
            shapes = {path: (model.get(path).output.shape, model.get(path).output.dtype) for path in sites}
        assert shapes == {path: (plain[path].shape, plain[path].dtype) for path in sites}

    def test_a_cache_keeps_every_output(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        with model.trace(given[0], **where) as tracer:
            cache = tracer.cache()
        kept = {}
        for path in sites:
            with contextlib.suppress(nnsight.ChangedValueError):  # rather than what hooks keep, which is no better
                kept[path] = cache[model.get(path).path].output
        assert kept
        assert_alike(kept, {path: plain[path] for path in kept}, self.rounding)

    def test_an_edit_holds_in_its_model_and_in_no_other(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        (path, *_) = sites
        want = self.changed(model, given[0], path)
        with model.edit() as edited:
            model.get(path).output = change(model.get(path).output)
        for reference, result in ((edited, want), (model, plain.result)):
            with reference.trace(given[0], **where) as tracer:
                got = nnsight.save(tracer.result)
            assert_alike(got, result, self.rounding)
        with model.edit(inplace=True):
            model.get(path).output = change(model.get(path).output)
        assert_alike(model.trace(given[0], trace=False), want, self.rounding)
        model.clear_edits()
        assert_alike(model.trace(given[0], trace=False), plain.result, self.rounding)

    def test_gradients_are_those_of_a_plain_backward(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        if not self.differentiable:
            pytest.skip("this family says that no gradient flows through it")
        with torch.enable_grad():
            want = self.hooked(model, given[0], grad=True)
            backward: Any = loss_of(want.result).backward  # torch does not type it
            backward()
            path = next(path for path in sites if want[path].grad is not None)
            with model.trace(given[0], **where) as tracer:
                output = model.get(path).output
                loss = loss_of(tracer.result)
                with cast(Any, loss).backward():
                    grad = nnsight.save(output.grad)
        assert_alike(grad, want[path].grad, self.rounding)

    @pytest.mark.usefixtures("here")
    def test_a_copy_is_a_model_of_its_own(self, model: Any, given: list[Any], plain: Hooked, sites: list[str]) -> None:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other._module is not model._module
            with other.trace(given[0]) as tracer:
                seen = {path: other.get(path).output for path in sites}
                result = tracer.result
            assert_alike(seen, {path: plain[path] for path in sites}, self.rounding)
            assert_alike(result, plain.result, self.rounding)

    # -- errors ------------------------------------------------------------------------------------------------------

    def test_a_site_that_was_passed_is_an_error_at_once(
        self, model: Any, given: list[Any], sites: list[str], where: Where
    ) -> None:
        if len(sites) < 2:
            pytest.skip("the model has one site only")
        with pytest.raises(nnsight.OutOfOrderError, match=sites[0]):
            with model.trace(given[0], **where):
                model.get(sites[-1]).output
                model.get(sites[0]).output
                raise AssertionError("the line after was reached")

    def test_an_error_of_the_users_keeps_its_identity(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        mine = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            with model.trace(given[0], **where):
                model.get(sites[0]).output
                raise mine
        assert caught.value is mine or where and caught.value.args == mine.args
        with pytest.raises(LookupError) as caught:
            with model.trace(**where) as tracer:
                with tracer.invoke(given[0]):
                    model.get(sites[0]).output
                with tracer.invoke(given[1]):
                    model.get(sites[0]).output
                    raise mine
        assert caught.value is mine or where and caught.value.args == mine.args
        assert_alike(model.trace(given[0], trace=False), plain.result, self.rounding)

    @pytest.mark.usefixtures("here")
    def test_a_trace_without_input_is_refused(self, model: Any, sites: list[str]) -> None:
        with pytest.raises(nnsight.NoInputError):
            with model.trace():
                model.get(sites[0]).output

    def test_a_stop_leaves_the_block(
        self, model: Any, given: list[Any], plain: Hooked, sites: list[str], where: Where
    ) -> None:
        with model.trace(given[0], **where) as tracer:
            reached = nnsight.save([])
            seen = nnsight.save(model.get(sites[0]).output)
            tracer.stop()
            reached.append("after")
        assert not reached
        assert_alike(seen, plain[sites[0]], self.rounding)

    @pytest.mark.usefixtures("here")
    def test_the_module_is_left_as_it_was(self, model: Any, given: list[Any], sites: list[str]) -> None:
        want = self.call(model, given[0])
        before = state_of(model._module)
        with model.trace(given[0]) as tracer:
            tracer.cache()
            model.get(sites[0]).output = change(model.get(sites[0]).output)
        with model.trace() as tracer:
            for one in given:
                with tracer.invoke(one):
                    model.get(sites[-1]).output
        with pytest.raises(LookupError):
            with model.trace(given[0]):
                model.get(sites[0]).output
                raise LookupError
        assert state_of(model._module) == before
        assert_alike(self.call(model, given[0]), want)
