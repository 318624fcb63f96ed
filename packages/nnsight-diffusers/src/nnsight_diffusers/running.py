"""One run of a pipeline: what stands around its modules while it is called, and is gone afterwards.

A pipeline keeps the state of a call in itself and in its scheduler. So a run has the pipeline for itself, and one that
begins while another is under way, in a block inside it or in another thread, calls a copy with a scheduler of its own.
Around the modules stand PyTorch's hooks, outside of the places where a body looks: they begin the steps, put the rows
of several invokes in order (`batch.py`), and state how these lie (`layout.py`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from nnsight import RowsError
from nnsight.plugin import end_steps, leaves, tree_map
from nnsight_diffusers import live, progress
from nnsight_diffusers.batch import Batch, inverse, reordered
from nnsight_diffusers.layout import PipelineLayout, Statement
from nnsight_diffusers.source import CONDITIONAL, guidance_of, plain_call

#: What denoisers call the time at which they are.
_TIMES = ("timestep", "timesteps", "t", "timestep_ratio", "r")

#: Arguments whose first dimension counts positions, whatever its size.
_POSITIONS = ("rotary", "rope", "freqs", "_ids", "position", "indices", "shapes", "sizes")

#: The pipelines that a run has for itself.
_taken: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()


def may_have_rows(name: str) -> bool:
    """Say whether an argument of a module may have rows, by its name."""
    return not any(word in name for word in _POSITIONS)


class Run:
    """One call of a pipeline, traced.

    Args:
        model: the `DiffusionModel`.
        batch: the invokes that share the call; None for one input.
        layout: how their rows lie.
        gradients: keep the graph, where the pipeline would not.
        bar: show a bar over the steps; see `progress.options_of`.
        fake: compute nothing: the scheduler's numbers stay out of it.
        lone: one step is made because nobody asked for more.

    Attributes:
        parts: of how many parts the batch of the latest call of the denoiser was; 0 before the first.
        half: for which half that call was, if the pipeline calls it once for each.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch | None,
        layout: PipelineLayout | None,
        gradients: bool,
        bar: bool | None,
        fake: bool,
        lone: bool,
    ) -> None:
        self.batch = batch
        self.layout = layout
        self.parts = 0
        self.half: str | None = None
        self.images = 1
        self._model = model
        self._gradients = gradients
        self._bar = bar
        self._fake = fake
        self._lone = lone
        self._depth = 0
        self._guidance = guidance_of(model._kind)
        self._undo: list[list[int] | None] = []

    # -- around the call ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Let the modules be watched, and the pipeline be this run's, for the time of a block."""
        with contextlib.ExitStack() as stack:
            self.pipeline = stack.enter_context(_for_itself(self._model.pipeline))
            stack.enter_context(self._scheduled())
            stack.enter_context(self._counted())
            stack.enter_context(self._exchanged())
            for handle in self._hooked():
                stack.callback(handle.remove)
            token = live.here.set(self)
            live.begin(self)
            stack.callback(live.end, self)
            stack.callback(live.here.reset, token)
            yield

    @property
    def belongs_to(self) -> torch.nn.Module:
        """The module that runs."""
        module: torch.nn.Module = self._model._module
        return module

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

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline."""
        if not self._gradients:
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
        before = dict(vars(scheduler))
        self.step = scheduler.step
        # Pipelines look at what a step takes.
        scheduler.step = functools.wraps(self.step)(lambda *args, **kwargs: self._enough(place(*args, **kwargs)))
        if self._fake:
            self.step = _unscaled_step
            for name in ("set_timesteps", "scale_model_input", "add_noise", "scale_noise"):
                if hasattr(scheduler, name):
                    setattr(scheduler, name, _aside(getattr(scheduler, name)))
        try:
            yield
        finally:
            own = vars(scheduler)
            if self._fake:
                own.clear()
                own.update(before)
            else:
                own.pop("step", None)
                if "step" in before:
                    own["step"] = before["step"]

    def _enough(self, made: Any) -> Any:
        """Return a step's latents twice to a pipeline that wants another estimate after a single step, which few can give."""
        if self._lone and self._guidance.wants_estimate and isinstance(made, tuple) and len(made) == 1:
            return made * 2
        return made

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Give modules their processors of attention again where the pipeline, left in the middle, has not."""
        if not self._guidance.exchanges:
            yield
            return
        modules = [module for _, module in self._model._module.named_children() if hasattr(module, "attn_processors")]
        before = [module.attn_processors for module in modules]
        try:
            yield
        except BaseException:
            for module, processors in zip(modules, before):
                module.set_attn_processor(processors)
            raise

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Let the bar over the steps be as it was asked for, and say when the last step is over."""
        own = vars(self.pipeline)
        before = {name: own[name] for name in ("_progress_bar_config", "progress_bar") if name in own}
        own["_progress_bar_config"] = progress.options_of(self.pipeline, self._bar)
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

    # -- around the modules ------------------------------------------------------------------------------------------

    def _hooked(self) -> Iterator[Any]:
        """Put hooks on the modules that the pipeline calls; on all of them where several invokes share the call."""
        module = self._model._module
        denoisers = module.denoisers()
        for name, part in module.named_children():
            denoises = name in denoisers
            if denoises:
                yield part.register_forward_pre_hook(self._begin(name, part), with_kwargs=True)
            if self.batch is None:
                continue
            # An autoencoder is called by its parts.
            inside = {} if denoises else {f"{name}.{below}": inner for below, inner in part.named_children()}
            for path, one in {name: part, **inside}.items():
                several = denoises or name.startswith("controlnet")
                yield one.register_forward_pre_hook(self._enter(path, several), with_kwargs=True)
                yield one.register_forward_hook(self._leave(path), always_call=True)

    def _begin(self, name: str, module: torch.nn.Module) -> Callable[..., Any]:
        """Return the hook that begins a step: each call of a denoiser is one."""
        takes = list(inspect.signature(module.forward).parameters)
        key = next((name for name in _TIMES if name in takes), None)
        at = takes.index(key) if key is not None else -1
        place = self._model.__dict__["_extras"]["timestep"]

        def begin(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if live.here.get() is not self:
                return None
            size = _size(args, kwargs)
            images = self.images if self.batch is None else self.batch.made
            self.parts = size // images if images and size % images == 0 else 1
            self.half = None if self.parts > 1 else self._half(name)
            if key is None:
                place(None)
            elif key in kwargs:
                kwargs = {**kwargs, key: place(kwargs[key])}
            elif at < len(args):
                args = (*args[:at], place(args[at]), *args[at + 1 :])
            else:
                place(None)
            return args, kwargs

        return begin

    def _half(self, name: str) -> str:
        """Return for which half the pipeline calls a denoiser now, by the line at which it stands."""
        code = self._guidance.code
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back  # type: ignore[assignment]  # the outermost has none
        found = None if frame is None else self._guidance.half_at(frame.f_lineno, name)
        return found or CONDITIONAL

    def _enter(self, path: str, several: bool) -> Callable[..., Any]:
        """Return the hook that puts rows in order on their way into a module.

        Args:
            path: the module.
            several: whether it is called with rows for each image, and each part.
        """
        whole = f"{self._model._path}.{path}"

        def enter(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if live.here.get() is not self:
                return None
            self._depth += 1
            if self._depth > 1:
                return None
            batch, layout = self.batch, self.layout
            assert batch is not None and layout is not None
            size = _size(args, kwargs)
            parts, each = self._lying(size, several)
            order = batch.order(parts) if parts > 1 else None
            self._undo.append(order)
            if several and batch.scales is not None:
                kwargs = self._embedded(kwargs, size)
            given = args, kwargs
            if order is not None:
                args = reordered(args, order)
                kwargs = {
                    name: reordered(value, order) if may_have_rows(name) else value for name, value in kwargs.items()
                }
                if self._guidance.exchanges:
                    raise RowsError(
                        f"{type(self.pipeline).__name__} looks at the batch of its denoiser part by part, so invokes cannot "
                        "share a call of it. Run separate traces."
                    )
            with live.nobody():  # what the module does meanwhile is no part of this run
                if order is not None and not self._fake:
                    self._model._check_rows(path, given, (args, kwargs), order)
                facts = self._model._facts(path, args, kwargs, size) if each else {}
            layout.state(whole, Statement(size, each, facts))
            return args, kwargs

        return enter

    def _lying(self, size: int, several: bool) -> tuple[int, int]:
        """Return of how many parts a call's rows are, and how many belong to a row of an invoke (0: unknown)."""
        assert self.batch is not None
        total, made, images = self.batch.total, self.batch.made, self.batch.images
        if several and size and size % made == 0:
            return size // made, size // total
        if size in (total, made):
            return 1, 1 if size == total else images
        return 1, 0

    def _leave(self, path: str) -> Callable[..., Any]:
        """Return the hook that gives rows the pipeline's order again on their way out."""
        name = path.split(".")[0]
        denoises = name in self._model._module.denoisers()

        def leave(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if live.here.get() is not self:
                return None
            self._depth -= 1
            if self._depth:
                return None
            order = self._undo.pop()
            if order is not None:
                output = reordered(output, inverse(order))
            if denoises and self.batch is not None and self.batch.scales is not None:
                output = self._guided(output)
            return output

        return leave

    # -- guidance of each invoke -------------------------------------------------------------------------------------

    def _guided(self, output: Any) -> Any:
        """Return a prediction from which the pipeline, with one scale for all, makes what each invoke's own would.

        With `c' = u + s/S (c - u)` in the place of `c`, `u + S (c' - u)` is `u + s (c - u)`.
        """
        batch = self.batch
        assert batch is not None and batch.scales is not None
        order = self._guidance.orders.get(self.parts)
        if self.parts != 2 or order is None:
            return output
        most = max(batch.scales)
        scales = [scale / most for scale in batch.scale_of_images()]
        conditional = order.index(CONDITIONAL)

        def put(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.dim() or tensor.shape[0] != 2 * batch.made:
                return tensor
            halves = list(tensor.chunk(2))
            c, u = halves[conditional], halves[1 - conditional]
            scale = tensor.new_tensor(scales).view(-1, *[1] * (tensor.dim() - 1))
            # Those with the scale that the pipeline has stay as they are, to the last bit.
            halves[conditional] = torch.where(scale == 1, c, u + scale * (c - u))
            return torch.cat(halves)

        return tree_map(put, output)

    def _embedded(self, kwargs: dict[str, Any], size: int) -> dict[str, Any]:
        """Return arguments in which guidance that the denoiser is told is each invoke's own."""
        batch = self.batch
        told = kwargs.get("guidance")
        if batch is None or batch.scales is None or not isinstance(told, torch.Tensor) or told.shape[:1] != (size,):
            return kwargs
        most = max(batch.scales)
        own = told.new_tensor([scale / most for scale in batch.scale_of_images()]).repeat(size // batch.made)
        return {**kwargs, "guidance": told * own.view(-1, *[1] * (told.dim() - 1))}


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return how many rows a module is called with: those of its first tensor that has any."""
    for name in ("hidden_states", "sample"):
        if isinstance(kwargs.get(name), torch.Tensor):
            return int(kwargs[name].shape[0])
    return next((int(leaf.shape[0]) for leaf in leaves((args, dict(kwargs))) if leaf.dim()), 0)


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


def _aside(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a scheduler that computes with real numbers, whatever the mode."""

    @functools.wraps(method)
    def aside(*args: Any, **kwargs: Any) -> Any:
        # relies on: torch.utils._python_dispatch._disable_current_modes, torch 2.4 to 2.13
        from torch.utils._python_dispatch import _disable_current_modes

        if method.__name__ != "set_timesteps":
            return args[0] if args else next(iter(kwargs.values()))
        with _disable_current_modes():
            return method(*args, **kwargs)

    return aside


def _unscaled_step(
    prediction: Any, timestep: Any, sample: Any, *args: Any, return_dict: bool = True, **kwargs: Any
) -> Any:
    """Stand in for a step of a scheduler where nothing is computed: what it makes has the shape of what it is given."""
    if not return_dict:
        return (sample,)
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    return SchedulerOutput(prev_sample=sample)
