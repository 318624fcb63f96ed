"""Modules whose weights accelerate keeps elsewhere, and brings in for the time of each call.

It does so in a `forward` on the instance, over which a run lays its own; nothing needs to be done for that. Left to do is
to read a parameter while it is away, to know where inputs go, and to keep accelerate out of scans, which need no numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def stored(module: torch.nn.Module, name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a module from where it is kept, if the module itself has only its shape at the moment."""
    if value.device.type != "meta":
        return value
    # relies on: AlignDevicesHook.weights_map, accelerate 1.15
    hook: Any = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        kept = getattr(each, "weights_map", None)
        if kept is not None:
            found: torch.Tensor = kept[name]
            return found
    return value


def device_of(module: torch.nn.Module) -> torch.device | None:
    """Return where a module runs, if that is not where its first parameter lies."""
    # relies on: AlignDevicesHook.execution_device, accelerate 1.15
    device: Any = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is None:
        return None
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


@contextlib.contextmanager
def aside(module: torch.nn.Module) -> Iterator[None]:
    """Let modules run without accelerate for the time of a block."""
    # relies on: a forward of accelerate's asking the module for its `_hf_hook`, accelerate 1.15. The forwards themselves
    # stay: a run may have laid its own over them.
    hooked = [(part.__dict__, part.__dict__["_hf_hook"]) for part in module.modules() if "_hf_hook" in part.__dict__]
    if hooked:
        from accelerate.hooks import ModelHook

        for own, _ in hooked:
            own["_hf_hook"] = ModelHook()
    try:
        yield
    finally:
        for own, hook in hooked:
            own["_hf_hook"] = hook
