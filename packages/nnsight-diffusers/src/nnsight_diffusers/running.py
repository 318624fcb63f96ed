"""One run of a pipeline: what stands around it while it is called, and is gone afterwards.

A pipeline keeps the state of a call in itself and in its scheduler. So a run has the pipeline for itself, and one that
begins while another is under way, in a block inside it or in another thread, calls a copy with a scheduler of its own.
What stands around the modules is `watching.py`, around the scheduler `scheduling.py`, and the bar is `progress.py`.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import RowsError
from nnsight.plugin import end_steps
from nnsight_diffusers import live, progress, scheduling
from nnsight_diffusers.batch import Batch
from nnsight_diffusers.source import guidance_of, plain_call
from nnsight_diffusers.watching import Watch

#: The pipelines that a run has for itself.
_taken: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()


@dataclass(frozen=True)
class Ways:
    """How a run is made.

    Attributes:
        gradients: keep the graph, where the pipeline would not.
        bar: show a bar over the steps; see `progress.options_of`.
        fake: compute nothing: it is a scan.
        lone: one step is made because nobody asked for more.
    """

    gradients: bool = False
    bar: bool | None = None
    fake: bool = False
    lone: bool = False


class Run:
    """One call of a pipeline, traced.

    Args:
        model: the `DiffusionModel`.
        batch: the invokes that share the call; None for one input.
        images: how many images are made.
        ways: how the run is made.

    Attributes:
        parts: of how many parts the batch of the latest call of the denoiser was; 0 before the first.
        half: for which half that call was, if the pipeline calls it once for each.
        pipeline: the pipeline that is called: the model's, or a copy.
        step: what a step of the scheduler was before this run.
    """

    pipeline: Any
    step: Callable[..., Any]

    def __init__(self, model: Any, batch: Batch | None, images: int, ways: Ways) -> None:
        self.batch = batch
        self.images = images
        self.fake = ways.fake
        self.parts = 0
        self.half: str | None = None
        self.guidance = guidance_of(model._kind)
        self._model = model
        self._ways = ways

    @property
    def belongs_to(self) -> torch.nn.Module:
        """The module that runs."""
        module: torch.nn.Module = self._model._module
        return module

    # -- around the call ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Let the modules be watched, and the pipeline be this run's, for the time of a block."""
        with contextlib.ExitStack() as stack:
            self.pipeline = stack.enter_context(_for_itself(self._model.pipeline))
            stack.enter_context(self._scheduled())
            stack.enter_context(self._counted())
            stack.enter_context(self._exchanged())
            for handle in Watch(self, self._model).hook():
                stack.callback(handle.remove)
            token = live.here.set(self)
            live.begin(self)
            stack.callback(live.end, self)
            stack.callback(live.here.reset, token)
            yield

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline."""
        if not self._ways.gradients:
            return self.pipeline(*args, **kwargs)
        with torch.enable_grad():
            return plain_call(type(self.pipeline))(self.pipeline, *args, **kwargs)

    @contextlib.contextmanager
    def _scheduled(self) -> Iterator[None]:
        """Let the scheduler's steps pass through their place in the tree."""
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None or not hasattr(scheduler, "step"):
            yield
            return
        place = self._model.__dict__["_extras"]["scheduler"]
        with scheduling.watched(
            scheduler, lambda *args, **kwargs: self._enough(place(*args, **kwargs)), self.fake
        ) as step:
            self.step = step
            yield

    def _enough(self, made: Any) -> Any:
        """Return a step's latents twice to a pipeline that wants another estimate after a single step, which few can give."""
        lone = self._ways.lone and self.guidance.wants_estimate
        return made * 2 if lone and isinstance(made, tuple) and len(made) == 1 else made

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Let the bar over the steps be as it was asked for, and say when the last step is over."""
        own = vars(self.pipeline)
        before = {name: own[name] for name in ("_progress_bar_config", "progress_bar") if name in own}
        own["_progress_bar_config"] = progress.options_of(self.pipeline, self._ways.bar)
        own["progress_bar"] = progress.reporting(self.pipeline.progress_bar, self._steps_ended)
        try:
            yield
        finally:
            for name in ("_progress_bar_config", "progress_bar"):
                own.pop(name, None)
            own.update(before)

    def _steps_ended(self) -> None:
        if self.parts and live.here.get() is self:
            end_steps()

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Give modules their processors of attention again where the pipeline, left in the middle, has not."""
        if not self.guidance.exchanges:
            yield
            return
        modules = [module for _, module in self.belongs_to.named_children() if hasattr(module, "attn_processors")]
        before = [module.attn_processors for module in modules]
        try:
            yield
        except BaseException:
            for module, processors in zip(modules, before):
                module.set_attn_processor(processors)  # type: ignore[operator]  # whatever has the one has the other
            raise

    # -- halves ------------------------------------------------------------------------------------------------------

    def part(self, value: torch.Tensor, at: int) -> torch.Tensor:
        """Return one part of a value of the denoiser, as a view.

        Args:
            value: what a body got: an invoke's rows, or the whole batch's.
            at: which part, counted from 0 in the order in which the pipeline has them.

        Raises:
            RowsError: the value has no such parts, or no view shows them.
        """
        rows = value.shape[0] if value.dim() else 0
        if not rows or rows % self.parts:
            raise RowsError(
                f"a value of shape {tuple(value.shape)} does not consist of {self.parts} parts along dimension 0"
            )
        if self.batch is None or rows < self.parts * self.batch.made:
            size = rows // self.parts
            return value[at * size : (at + 1) * size]
        # The whole batch: the parts of each invoke follow one another.
        runs = {count * self.batch.images for count in self.batch.counts}
        if runs != {1} or rows != self.parts * self.batch.made:
            raise RowsError(
                "in a prompt-less invoke the parts of several invokes lie among one another, and no view shows one of them: "
                "ask in each invoke"
            )
        return value[at :: self.parts]


@contextlib.contextmanager
def _for_itself(pipeline: Any) -> Iterator[Any]:
    """Give a pipeline that no other run calls: the one there is, or a copy with a scheduler of its own."""
    with _lock:
        free = pipeline not in _taken
        if free:
            _taken.add(pipeline)
    if free:
        try:
            yield pipeline
        finally:
            with _lock:
                _taken.discard(pipeline)
        return
    other = copy.copy(pipeline)
    for name in ("_progress_bar_config", "progress_bar"):
        vars(other).pop(name, None)  # of the other run
    if getattr(pipeline, "scheduler", None) is not None:
        other.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    yield other
