"""`BackendSuite`: what must hold for every place to run a block."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import nnsight
from nnsight.plugin import Backend, NNsight
from nnsight.testing.models import MLP, Generating, seeded
from nnsight.testing.reference import Hooked, assert_alike


class BackendSuite:
    """Subclass it, and define `make_backend`; `make_model` and `input` have defaults, for a backend that takes any model.

    The model has the modules of `MLP`.
    """

    #: How far a value may differ from the same computed here, relative and absolute.
    rounding: float = 1e-5
    #: False for a backend that does not take sessions.
    sessions: bool = True

    def make_backend(self) -> Backend:
        """Make the backend, or return the name under which it is offered."""
        raise NotImplementedError("a BackendSuite defines make_backend()")

    def make_model(self) -> NNsight:
        """Make the model whose blocks are run."""
        return NNsight(seeded(MLP))

    def input(self) -> torch.Tensor:
        """Return an input of the model, [rows, 4]."""
        return torch.linspace(-1, 1, 12).reshape(3, 4)

    @pytest.fixture
    def model(self) -> Any:
        """The model."""
        return self.make_model()

    @pytest.fixture
    def backend(self) -> Any:
        """The backend."""
        return self.make_backend()

    @pytest.fixture
    def plain(self, model: Any) -> Hooked:
        """What hooks see of a call here."""
        return Hooked(model._module, lambda: model._module(self.input()))

    def test_it_is_a_backend(self, backend: Any) -> None:
        assert isinstance(backend, (Backend, str))

    def test_values_are_those_that_are_computed_here(self, model: Any, backend: Any, plain: Hooked) -> None:
        with model.trace(self.input(), backend=backend) as tracer:
            hidden = model.layers[1].output.save()
            inputs = model.head.input.save()
            result = tracer.result.save()
        assert_alike(hidden, plain["layers.1"], self.rounding)
        assert_alike(inputs, plain.inputs["head"][0][0][0], self.rounding)
        assert_alike(result, plain.result, self.rounding)

    def test_only_what_was_saved_comes_back(self, model: Any, backend: Any, plain: Hooked) -> None:
        before = saved = "as it was"
        with model.trace(self.input(), backend=backend):
            before = model.embed.output
            saved = nnsight.save(model.layers[0].output)
            unsaved = before * 2
        assert before == "as it was"
        assert_alike(saved, plain["layers.0"], self.rounding)
        with pytest.raises(NameError):
            unsaved  # noqa: B018

    def test_containers_and_plain_values_are_saved_too(self, model: Any, backend: Any, plain: Hooked) -> None:
        with model.trace(self.input(), backend=backend):
            outputs = nnsight.save([])
            found = nnsight.save({"rows": model.embed.output.shape[0]})
            for layer in model.layers:
                outputs.append(layer.output)
        assert found == {"rows": 3}
        assert_alike(outputs, [plain[f"layers.{n}"] for n in range(3)], self.rounding)

    def test_values_of_the_caller_are_taken_along(self, model: Any, backend: Any) -> None:
        factor, where = torch.tensor(-2.0), {"layer": 1}

        def scaled(value: torch.Tensor) -> torch.Tensor:
            return value * factor

        with model.trace(self.input(), backend=backend) as tracer:
            layer = model.layers[where["layer"]]
            layer.output = scaled(layer.output)
            result = tracer.result.save()
        want = Hooked(
            model._module, lambda: model._module(self.input()), {"layers.1": lambda output, visit: output * -2}
        )
        assert_alike(result, want.result, self.rounding)

    def test_classes_and_functions_of_the_caller_are_taken_along(self, model: Any, backend: Any, plain: Hooked) -> None:
        count = 0

        class Base:
            scale = 2.0

            def of(self, value: torch.Tensor) -> torch.Tensor:
                return value * self.scale

        class Shifted(Base):
            def __init__(self, shift: float) -> None:
                self.shift = shift

            def of(self, value: torch.Tensor) -> torch.Tensor:
                nonlocal count
                count += 1
                return super().of(value) + self.shift

        shifted, tail = Shifted(1.0), [lambda value: value - 1.0, lambda value: value - 2.0]
        with model.trace(self.input(), backend=backend):
            found = tail[1](shifted.of(model.layers[0].output)).save()
        assert_alike(found, plain["layers.0"] * 2.0 + 1.0 - 2.0, self.rounding)

    def test_invokes(self, model: Any, backend: Any) -> None:
        with model.trace(backend=backend) as tracer:
            with tracer.invoke(self.input()):
                model.layers[0].output[:] = 0
                first = model.output.save()
            with tracer.invoke(self.input() * 2):
                second = model.output.save()
        want = Hooked(
            model._module, lambda: model._module(self.input()), {"layers.0": lambda output, visit: output * 0}
        )
        assert_alike(first, want.result, self.rounding)
        assert_alike(second, Hooked(model._module, lambda: model._module(self.input() * 2)).result, self.rounding)

    def test_gradients(self, model: Any, backend: Any) -> None:
        with model.trace(self.input(), backend=backend):
            hidden = model.layers[0].output
            loss = model.output.square().sum()
            with loss.backward():
                grad = hidden.grad.save()
        plain = Hooked(model._module, lambda: model._module(self.input()), grad=True)
        plain.result.square().sum().backward()
        assert_alike(grad, plain["layers.0"].grad, self.rounding)

    def test_an_error_of_the_block_keeps_its_type(self, model: Any, backend: Any) -> None:
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            with model.trace(self.input(), backend=backend):
                model.layers[0].output
                1 / 0  # noqa: B018
        with pytest.raises(RuntimeError, match="99"):
            with model.trace(self.input(), backend=backend):
                model.layers[0].output = torch.zeros(3, 99)
                model.output.save()

    def test_an_error_of_ours_keeps_its_type(self, model: Any, backend: Any) -> None:
        with pytest.raises(nnsight.OutOfOrderError, match=r"layers\.0"):
            with model.trace(self.input(), backend=backend):
                model.layers[1].output
                late = model.layers[0].output.save()

    def test_nothing_is_bound_by_a_block_that_failed(self, model: Any, backend: Any) -> None:
        value = "as it was"
        with pytest.raises(ZeroDivisionError):
            with model.trace(self.input(), backend=backend):
                value = model.layers[0].output.save()
                1 / 0  # noqa: B018
        assert value == "as it was"

    def test_a_block_that_saves_nothing(self, model: Any, backend: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with model.trace(self.input(), backend=backend):
                model.layers[0].output[:] = 0

    def test_a_session_is_one_block(self, model: Any, backend: Any, plain: Hooked) -> None:
        if not self.sessions:
            pytest.skip("this backend says that it takes no sessions")
        given = self.input()
        with model.session(backend=backend):
            with model.trace(given):
                hidden = model.layers[0].output.save()
            with model.trace(given) as tracer:
                model.layers[0].output = hidden * 2
                result = tracer.result.save()
        want = Hooked(model._module, lambda: model._module(given), {"layers.0": lambda output, visit: output * 2})
        assert_alike(hidden, plain["layers.0"], self.rounding)
        assert_alike(result, want.result, self.rounding)

    def test_steps(self, backend: Any) -> None:
        model = self.make_generating_model()
        with model.trace(self.input(), fn="generate", backend=backend) as tracer:
            seen = nnsight.save([])
            for _ in tracer.iter[:]:
                seen.append(model.first.output)
            result = tracer.result.save()
        plain = Hooked(model._module, lambda: model._module.generate(self.input()))
        assert_alike(seen, plain.outputs["first"], self.rounding)
        assert_alike(result, plain.result, self.rounding)

    def make_generating_model(self) -> Any:
        """Make a model with the modules and the method of `Generating`."""
        return NNsight(seeded(Generating))
