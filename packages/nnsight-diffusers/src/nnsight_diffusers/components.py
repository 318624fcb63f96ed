"""The modules of a pipeline as one module, so that they have a tree, and the places that a pipeline adds to it.

A pipeline of diffusers is no module; its components are. What passes between them has places of its own: the timestep
of each call of the denoiser, and what the scheduler makes of a prediction.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight_diffusers import live

#: What a pipeline may call the module that takes the noise away, the likelier first.
_DENOISERS = ("unet", "transformer", "prior", "decoder", "dit", "model")

#: What may take turns with it: for more noise and for less, or for the prompt and without one.
_SECOND = ("unet_2", "transformer_2", "unconditional_transformer")


class Components(torch.nn.Module):
    """The modules of a pipeline, by the names that it has for them; called, it calls the pipeline.

    Args:
        pipeline: a `diffusers.DiffusionPipeline`.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        # Past torch: a pipeline is no module.
        self.__dict__["pipeline"] = pipeline
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                self.add_module(name, part)
        self.eval()

    def follow(self) -> bool:
        """Take over the modules that the pipeline has exchanged for others since, and say whether there are any."""
        parts = self.__dict__["pipeline"].components
        new = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
        if all(new.get(name) is part for name, part in self._modules.items()) and len(new) == len(self._modules):
            return False
        self._modules.clear()
        for name, part in new.items():
            self.add_module(name, part)
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a module that is put in the place of another be the pipeline's too."""
        if isinstance(value, torch.nn.Module) and name in self._modules:
            setattr(self.__dict__["pipeline"], name, value)
        super().__setattr__(name, value)

    @property
    def config(self) -> Any:
        """The pipeline's configuration."""
        return self.__dict__["pipeline"].config

    def denoisers(self) -> list[str]:
        """Return the names of the components that take the noise away, the one that most would mean first."""
        first = next((name for name in _DENOISERS if name in self._modules), None)
        return [] if first is None else [first, *(name for name in _SECOND if name in self._modules)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline."""
        run = live.here.get()
        return self.__dict__["pipeline"](*args, **kwargs) if run is None else run.call(*args, **kwargs)


class Passing(torch.nn.Module):
    """Returns what it is given, so that the value has a site."""

    def forward(self, value: Any) -> Any:
        """Return `value`."""
        return value


class Scheduler(torch.nn.Module):
    """A scheduler in the tree: `.input` is the prediction after guidance, `.output` what the scheduler makes of it.

    Anything else that is asked of it is the scheduler's own: `model.scheduler.timesteps`.

    Args:
        pipeline: whose scheduler it is, also if that is exchanged for another.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.__dict__["pipeline"] = pipeline

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step, as the scheduler does."""
        run = live.here.get()
        step = self.__dict__["pipeline"].scheduler.step if run is None else run.step
        return step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self.__dict__["pipeline"].scheduler, name)
