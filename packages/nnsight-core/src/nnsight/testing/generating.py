"""`GeneratingSuite`: what must hold besides for a family that generates, in a run of several steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nnsight
from nnsight.testing.family import FamilySuite
from nnsight.testing.reference import Edit, Hooked, assert_alike
from nnsight.testing.somewhere import Where
from nnsight.testing.subjects import is_floating


def change(output: torch.Tensor) -> torch.Tensor:
    """Return something else of the same shape."""
    return output * -2.0 + 0.25


class GeneratingSuite(FamilySuite):
    """A `FamilySuite` for a family that generates; define `options` too, if the method needs any."""

    #: The method that generates.
    generates: str = "generate"
    #: What it is called with, beside an input: options that give at least two steps.
    options: dict[str, Any] = {}
    #: The module each visit of which is a step; the model itself, if not said otherwise.
    step_path: str = ""

    def generated(self, model: Any, given: Any, edits: dict[str, Edit] | None = None) -> Hooked:
        """Generate with plain hooks."""
        return self.hooked(model, given, edits, method=self.generates, **self.options)

    @pytest.fixture
    def steps(self, model: Any, given: list[Any]) -> Hooked:
        """What hooks see of a generation from the first input."""
        steps = self.generated(model, given[0])
        assert len(steps.outputs[self.step_path]) > 1, "the options of the suite give one step only"
        return steps

    @pytest.fixture
    def stepped(self, steps: Hooked) -> list[str]:
        """The modules that are visited once in each step and give a tensor that can be computed with."""
        count = len(steps.outputs[self.step_path])
        return [
            path
            for path in steps.order
            if path and len(steps.outputs[path]) == count and all(map(is_floating, steps.outputs[path]))
        ]

    def test_a_generation_gives_what_it_gives_without_a_trace(
        self, model: Any, given: list[Any], steps: Hooked, where: Where
    ) -> None:
        with getattr(model, self.generates)(given[0], **self.options, **where) as tracer:
            result = nnsight.save(tracer.result)
        assert_alike(result, steps.result, self.rounding)

    def test_every_step_gives_what_hooks_see(
        self, model: Any, given: list[Any], steps: Hooked, stepped: list[str], where: Where
    ) -> None:
        with getattr(model, self.generates)(given[0], **self.options, **where) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                seen.append({path: model.get(path).output for path in stepped})
            after = nnsight.save("reached")
        count = len(steps.outputs[self.step_path])
        want = [{path: steps.outputs[path][step] for path in stepped} for step in range(count)]
        assert_alike(seen, want, self.rounding)
        assert after == "reached"

    def test_chosen_steps(self, model: Any, given: list[Any], steps: Hooked, stepped: list[str], where: Where) -> None:
        (path, *_) = stepped
        for selection in (1, slice(0, 2), [0, 1]):
            with getattr(model, self.generates)(given[0], **self.options, **where) as tracer:
                seen = nnsight.save([])
                for step in tracer.iter[selection]:
                    seen.append((step, model.get(path).output))
                result = nnsight.save(tracer.result)
            assert [step for step, _ in seen] == ([1] if selection == 1 else [0, 1])
            assert_alike([value for _, value in seen], [steps.outputs[path][step] for step, _ in seen], self.rounding)
            assert_alike(result, steps.result, self.rounding)

    def test_an_edit_in_one_step(self, model: Any, given: list[Any], stepped: list[str], where: Where) -> None:
        (path, *_) = stepped
        want = self.generated(model, given[0], {path: lambda output, visit: change(output) if visit == 1 else None})
        with getattr(model, self.generates)(given[0], **self.options, **where) as tracer:
            for _ in tracer.iter[1]:
                model.get(path).output = change(model.get(path).output)
            result = nnsight.save(tracer.result)
        assert_alike(result, want.result, self.rounding)

    def test_a_stored_edit_is_replayed_in_each_step(
        self, model: Any, given: list[Any], stepped: list[str], where: Where
    ) -> None:
        (path, *_) = stepped
        want = self.generated(model, given[0], {path: lambda output, visit: change(output)})
        with model.edit() as edited:
            model.get(path).output = change(model.get(path).output)
        with getattr(edited, self.generates)(given[0], **self.options, **where) as tracer:
            result = nnsight.save(tracer.result)
        assert_alike(result, want.result, self.rounding)

    def test_each_input_generates_what_it_generates_alone(
        self, model: Any, given: list[Any], steps: Hooked, stepped: list[str], where: Where
    ) -> None:
        alone = [self.generated(model, one).result for one in given]
        with getattr(model, self.generates)(**self.options, **where) as tracer:
            got = nnsight.save([])
            for one in given:
                with tracer.invoke(one):
                    got.append(tracer.result)
        for mine, want in zip(got, alone):
            assert_alike(self.part(mine, want), want, self.rounding)

    def test_an_edit_in_a_step_of_one_invoke_leaves_the_others_alone(
        self, model: Any, given: list[Any], steps: Hooked, stepped: list[str], where: Where
    ) -> None:
        (path, *_) = stepped
        edits: dict[str, Edit] = {path: lambda output, visit: change(output) if visit == 1 else None}
        want, other = self.generated(model, given[0], edits).result, self.generated(model, given[1]).result
        with getattr(model, self.generates)(**self.options, **where) as tracer:
            with tracer.invoke(given[0]):
                for _ in tracer.iter[1]:
                    model.get(path).output = change(model.get(path).output)
                mine = nnsight.save(tracer.result)
            with tracer.invoke(given[1]):
                others = nnsight.save(tracer.result)
        assert_alike(self.part(mine, want), want, self.rounding)
        assert_alike(self.part(others, other), other, self.rounding)

    @pytest.mark.usefixtures("here")  # warnings stay where they are given
    def test_a_loop_that_outruns_the_generation_says_so(
        self, model: Any, given: list[Any], steps: Hooked, stepped: list[str]
    ) -> None:
        count = len(steps.outputs[self.step_path])
        with pytest.warns(nnsight.UnmetSiteWarning, match=f"{count} steps"):
            with getattr(model, self.generates)(given[0], **self.options) as tracer:
                seen = [step for step in tracer.iter[: count + 3] if model.get(stepped[0]).output is not None]
                result = nnsight.save(tracer.result)
        assert seen == list(range(count))
        assert_alike(result, steps.result, self.rounding)
