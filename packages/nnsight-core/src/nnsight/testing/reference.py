"""What PyTorch's own hooks see and change in a module: the other way to compute what a trace gives.

Nothing here uses nnsight, so that agreement means something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.testing import assert_close

#: What an output becomes: `edit(output, visit)`, where None leaves it.
Edit = Callable[[Any, int], Any]


class Hooked:
    """One call of a module, watched and changed by plain forward hooks.

    Args:
        module: the module whose submodules are watched.
        call: makes the call; it is run once, at once.
        edits: by path of a submodule, what its output becomes.
        grad: keep the graph, and let outputs keep their gradients.

    Attributes:
        result: what the call returned.
        outputs, inputs: by path, one entry for each visit; inputs are pairs of positional and keyword arguments.
        order: the paths in the order in which they were left, each once.

    Example::

        plain = Hooked(module, lambda: module(x), edits={"layers.0": lambda output, visit: output * 2})
        plain["layers.1"]                  # the output of a module that was visited once
    """

    def __init__(
        self,
        module: torch.nn.Module,
        call: Callable[[], Any],
        edits: Mapping[str, Edit] | None = None,
        grad: bool = False,
    ) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.inputs: dict[str, list[Any]] = {}
        self._grad = grad
        changes = dict(edits or {})
        handles = [
            part.register_forward_hook(self._hook(path, changes.get(path)), with_kwargs=True)
            for path, part in module.named_modules()
        ]
        try:
            with torch.set_grad_enabled(grad):
                self.result = call()
        finally:
            for handle in handles:
                handle.remove()
        missed = [path for path in changes if path not in self.outputs]
        assert not missed, f"edits of modules that the call never visits: {', '.join(missed)}"

    def _hook(self, path: str, edit: Edit | None) -> Callable[..., Any]:
        def hook(_: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            outputs = self.outputs.setdefault(path, [])
            changed = None if edit is None else edit(output, len(outputs))
            output = output if changed is None else changed
            if self._grad and isinstance(output, torch.Tensor) and output.requires_grad:
                output.retain_grad()
            self.inputs.setdefault(path, []).append((args, kwargs))
            outputs.append(output)
            return output

        return hook

    @property
    def order(self) -> list[str]:
        """The paths in the order in which they were left."""
        return list(self.outputs)

    def __getitem__(self, path: str) -> Any:
        """Return the output of a module that was visited once."""
        (output,) = self.outputs[path]
        return output


def assert_alike(got: Any, want: Any, rounding: float = 0.0) -> None:
    """Assert that two structures hold equal tensors at the same places.

    Args:
        got, want: tensors, or tuples, lists, dicts and dataclasses of them.
        rounding: the difference, relative and absolute, that tensors may have.
    """
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), f"a {type(got).__name__} and no tensor: {got!r}"
        assert_close(got, want, rtol=rounding, atol=rounding, equal_nan=True)
    elif isinstance(want, Mapping):
        assert list(got) == list(want)
        for key in want:
            assert_alike(got[key], want[key], rounding)
    elif isinstance(want, (tuple, list)):
        assert len(got) == len(want)
        for one, other in zip(got, want):
            assert_alike(one, other, rounding)
    elif hasattr(want, "__dataclass_fields__"):
        assert_alike(vars(got), vars(want), rounding)
    elif any("__eq__" in vars(cls) for cls in type(want).__mro__[:-1]):
        assert got == want


def state_of(module: torch.nn.Module) -> dict[str, Any]:
    """Return what lies on a module and all below it: attributes, hooks, versions of the weights.

    Two states of one module are equal if nothing was put on it, taken off it or written into it in between.
    """
    state: dict[str, Any] = {}
    for path, part in module.named_modules():
        own = dict(vars(part))
        state[path] = {name: len(own.pop(name)) for name in list(own) if name.endswith("_hooks")}
        state[path]["names"] = sorted(own)
        state[path]["forward"] = id(own.get("forward"))
        state[path]["tensors"] = {
            name: (id(tensor), tensor._version)
            for name, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None and not tensor.is_inference()
        }
    return state
