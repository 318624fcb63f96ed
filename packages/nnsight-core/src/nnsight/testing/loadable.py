"""`LoadableSuite`: what must hold for a family whose weights are loaded when they are needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight.plugin import LazyModel, Loadable
from nnsight.testing.reference import Hooked, assert_alike


class LoadableSuite:
    """Subclass it, and define `make_source`, `make_model` and `inputs`."""

    #: False for a family whose forward cannot run on fake tensors.
    scans: bool = True

    def make_source(self) -> Loadable:
        """Make what builds and loads the modules."""
        raise NotImplementedError("a LoadableSuite defines make_source()")

    def make_model(self) -> LazyModel:
        """Make a model that is not loaded yet; by default of the plain class."""
        return LazyModel(self.make_source())

    def inputs(self) -> list[Any]:
        """Return one input or more, as `model.trace` takes them."""
        raise NotImplementedError("a LoadableSuite defines inputs()")

    @pytest.fixture
    def lazy(self) -> Any:
        """A model that is not loaded."""
        return self.make_model()

    def leaf(self, model: Any) -> str:
        """Return the path of a module that a run visits."""
        loaded = self.make_model().dispatch()
        plain = self.plain(loaded)
        return next(p for p in plain.order if p and len(plain.outputs[p]) == 1 and isinstance(plain[p], torch.Tensor))

    def plain(self, loaded: Any) -> Hooked:
        """Call a loaded model with plain hooks."""
        args, kwargs = loaded._batch([loaded._prepare_input(self.inputs()[0])])
        with torch.no_grad():
            return Hooked(loaded._module, lambda: loaded._target(None)(*args, **kwargs))

    def test_built_without_weights_it_is_named_as_with_them(self) -> None:
        source = self.make_source()
        built, loaded = source.build(), source.load()
        assert [path for path, _ in built.named_modules()] == [path for path, _ in loaded.named_modules()]

        def described(module: torch.nn.Module) -> list[Any]:
            return [(name, p.shape, p.dtype) for name, p in module.named_parameters()]

        assert described(built) == described(loaded)

    def test_built_without_weights_it_takes_no_memory(self, lazy: Any) -> None:
        assert not lazy.dispatched
        assert {parameter.device.type for parameter in lazy._module.parameters()} == {"meta"}
        assert repr(lazy)

    def test_loaded_it_has_every_weight(self) -> None:
        loaded = self.make_source().load()
        assert "meta" not in {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())}
        assert not loaded.training

    def test_the_first_run_loads_and_envoys_stay_valid(self, lazy: Any) -> None:
        path = self.leaf(lazy)
        held = lazy.get(path)
        with torch.no_grad(), lazy.trace(self.inputs()[0]) as tracer:
            seen = held.output
            result = tracer.result
        assert lazy.dispatched
        plain = self.plain(lazy)
        assert_alike(seen, plain[path])
        assert_alike(result, plain.result)

    def test_a_scan_loads_nothing(self, lazy: Any) -> None:
        if not self.scans:
            pytest.skip("this family says that it cannot be scanned")
        path = self.leaf(lazy)
        with lazy.scan(self.inputs()[0]):
            shape = lazy.get(path).output.shape
        assert not lazy.dispatched
        assert shape == self.plain(lazy.dispatch())[path].shape

    def test_what_is_edited_before_shares_the_weights_and_keeps_its_edit(self, lazy: Any) -> None:
        path = self.leaf(lazy)
        with lazy.edit() as edited:
            lazy.get(path).output = lazy.get(path).output * 0 + 1
        with torch.no_grad(), edited.trace(self.inputs()[0]):
            changed = edited.get(path).output
        assert lazy.dispatched and edited.dispatched and lazy._module is edited._module
        assert torch.equal(changed, torch.ones_like(changed))
        with torch.no_grad(), lazy.trace(self.inputs()[0]):
            seen = lazy.get(path).output
        assert_alike(seen, self.plain(lazy)[path])

    def test_moving_it_loads_it(self, lazy: Any) -> None:
        assert lazy.to("cpu") is lazy
        assert lazy.dispatched
        assert {parameter.device.type for parameter in lazy._module.parameters()} == {"cpu"}

    def test_a_load_that_fails_changes_nothing_and_can_be_tried_again(
        self, lazy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = lazy.__dict__["_weights"].source
        with monkeypatch.context() as patched:
            patched.setattr(type(source), "load", _fail)
            with pytest.raises(ConnectionResetError, match="half way"):
                with lazy.trace(self.inputs()[0]) as tracer:
                    tracer.result
        assert not lazy.dispatched and repr(lazy)
        with torch.no_grad(), lazy.trace(self.inputs()[0]) as tracer:
            result = tracer.result
        assert_alike(result, self.plain(lazy).result)


def _fail(source: Any) -> torch.nn.Module:
    raise ConnectionResetError("half way")
