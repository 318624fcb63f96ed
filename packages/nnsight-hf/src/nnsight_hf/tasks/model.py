"""`TransformersModel`: a model for any task that is not writing text, such as encoders, classifiers, vision and speech.

Which Auto class serves a task is `fitting.py`, what an input of it is and which processor reads it is `reading.py`, and how
several are put into one batch is `columns.py`. Here they are one family.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PretrainedConfig

from nnsight.plugin import Layout, Prepared
from nnsight_hf import fitting, generation, loading, padding, text
from nnsight_hf.generating import GeneratingModel
from nnsight_hf.rows import Facts, ProbedLayout, compare
from nnsight_hf.tasks import columns
from nnsight_hf.tasks.processors import AUTO, Processors
from nnsight_hf.tasks.reading import Reader

#: Arguments that hold an input, beside the one that the forward is made for.
_HELD = ("inputs_embeds", "inputs", "input_ids", *columns.SIGHTS, *columns.SOUNDS)

#: Arguments by which a decoder knows what it has written.
_BEGUN = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_input_values", "input_ids", "inputs_embeds", "labels")


class TransformersModel(GeneratingModel):
    """A model of transformers for one task, with the processors that the task needs.

    An input is what the task reads, as transformers' pipelines take it: a string (a list for several rows, two for a pair),
    an image (PIL, path, array), a sound (a waveform [samples], a path, `{"array": waveform, "sampling_rate": rate}`), the
    frames of a video, a dict for what needs several things (`{"question": ..., "context": ...}`,
    `{"image": ..., "candidate_labels": [...]}`, `{"table": ..., "query": ...}`, ...), or tensors by the names that the
    model's forward has. An input of another kind is an error that says what this task reads.

    A model that writes about what it hears or sees (Whisper, Donut) has `generate`, and `generator` in its tree.

    Args:
        model: a hub id, a local folder, a configuration (for new weights), or a loaded module.
        task: the task, as transformers' pipelines name it; if not given, the one that the checkpoint was saved for.
        tokenizer, image_processor, video_processor, feature_extractor, processor: if not the model's own.
        config: a configuration, if not the model's own.
        dispatch: load the weights now.
        automodel: the Auto class to load with, itself or by name, if not the one that the task asks for.
        tokenizer_kwargs, processor_kwargs: options for loading the tokenizer, and the other processors.
        rename: other names for submodules; see `NNsight`.
        envoys: classes for envoys; see `NNsight`.
        kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: there is no such task, or this kind of model has no head for it.
        TypeError: another class serves the checkpoint or the task; the message names it.

    Example::

        model = TransformersModel("google-bert/bert-base-uncased", task="fill-mask")
        with model.trace("Paris is the [MASK] of France."):
            hidden = model.bert.encoder.layer[5].nns_output
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedConfig | torch.nn.Module,
        task: str | None = None,
        *,
        tokenizer: Any = None,
        image_processor: Any = None,
        video_processor: Any = None,
        feature_extractor: Any = None,
        processor: Any = None,
        config: PretrainedConfig | None = None,
        dispatch: bool = False,
        automodel: Any = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        rename: Mapping[str | type, str | Sequence[str]] | None = None,
        envoys: Any = None,
        **kwargs: Any,
    ) -> None:
        chosen: list[str | None] = [task]

        def choose(config: PretrainedConfig) -> Any:
            chosen[0], auto = fitting.auto_of(config, task)
            import transformers

            return getattr(transformers, auto)

        origin = loading.find(model, config, automodel, choose, kwargs)
        super().__init__(origin, dispatch=dispatch, rename=rename, envoys=envoys)
        hub = loading.hub_options(kwargs)
        others = {**hub, **(processor_kwargs or {})}
        options = dict.fromkeys(AUTO, others) | {"tokenizer": {**hub, **(tokenizer_kwargs or {})}}
        given = {
            "tokenizer": tokenizer,
            "image_processor": image_processor,
            "video_processor": video_processor,
            "feature_extractor": feature_extractor,
            "processor": processor,
        }
        self.__dict__["task"] = chosen[0] or (fitting.task_of(origin.config) if origin.config is not None else None)
        self.__dict__["_processors"] = Processors(origin.where, given, options)
        if self._generates:
            self._add_generator()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for; None for a module that came without one."""
        return self.__dict__["_processors"].get("tokenizer")

    @property
    def image_processor(self) -> Any:
        """The image processor, as `tokenizer`."""
        return self.__dict__["_processors"].get("image_processor")

    @property
    def feature_extractor(self) -> Any:
        """What makes features of sound, as `tokenizer`."""
        return self.__dict__["_processors"].get("feature_extractor")

    # -- inputs ------------------------------------------------------------------------------------------------------

    @property
    def _reader(self) -> Reader:
        """What reads the inputs of the module as it is now."""
        return Reader(self._module, self.__dict__["task"], self.__dict__["_processors"])

    def _has_input(self, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(given) or any(kwargs.get(name) is not None for name in (self._reader.reads, *_HELD))

    def _prepare_input(self, *given: Any, **kwargs: Any) -> Prepared:
        reader = self._reader
        options = text.take_options(kwargs)
        if options and not given:
            raise TypeError(f"`{next(iter(options))}=` belongs to the tokenizer, and this input has no text")
        data = {**(reader.joined(reader.read(given, options)) if given else {}), **kwargs}
        held = (reader.reads, *_HELD)
        name = next((name for name in held if name in data), None)
        if name is None:
            raise ValueError(f"this model reads `{reader.reads}`, and the input holds {sorted(data)} only")
        if not isinstance(data[name], torch.Tensor):
            data[name] = torch.as_tensor(data[name])
        if name == "input_ids" and data[name].dim() == 1:
            data[name] = data[name][None]
        if name in ("input_ids", "inputs_embeds"):
            if "attention_mask" not in data and reader.takes("attention_mask"):
                data["attention_mask"] = torch.ones(data[name].shape[:2], dtype=torch.long)
            if "attention_mask" in data:
                padding.refuse_beyond(self._module, data)
        return (), data, data[name].shape[0]

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(prepared) == 1:
            return (), self._placed(prepared[0][1])
        for _, data, _ in prepared:
            columns.refuse_together(data, self._module)
        return (), self._placed(self._reader.joined([data for _, data, _ in prepared]))

    # -- rows --------------------------------------------------------------------------------------------------------

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        return ProbedLayout(total, self._multiples(kwargs, method), self._facts(total, kwargs), self._beyond)

    def _facts(self, total: int, kwargs: Mapping[str, Any]) -> Facts:
        """How rows lie in the values of this module, found out with the first row of a batch of several inputs.

        Anew for sizes that no mask lets vary, such as those of images: shapes that were not seen tell nothing.
        """
        reader = self._reader
        mine = {
            name: value
            for name, value in kwargs.items()
            if reader.takes(name) and (not isinstance(value, torch.Tensor) or value.shape[:1] == (total,))
        }

        def find() -> Facts:
            one = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in mine.items()}
            few, many = reader.joined([one] * 3), reader.joined([one] * 5)
            return compare(self, [few, many, columns.longer(few, reader.reads, reader.fills(few))])

        return self._found(f"rows of {columns.shapes(mine)}", find)

    # -- running -----------------------------------------------------------------------------------------------------

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        return self._forward if method is None else super()._target(method)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        generation.refuse_in_forward(self._module, kwargs)
        reads = self._reader.reads
        heard = kwargs.get(reads)
        if heard is not None and not any(kwargs.get(name) is not None for name in _BEGUN if name != reads):
            kwargs |= self._beginning(heard)
        return self._module(*args, **kwargs)

    def _beginning(self, heard: torch.Tensor) -> dict[str, Any]:
        """Return what a model that writes about what it hears or sees begins with."""
        if self._generates and self._reader.takes("decoder_input_values"):
            return {"decoder_input_values": heard.new_zeros(heard.shape[0], 1, self.config.num_mel_bins).float()}
        if not self._generates or heard.dtype == torch.long:
            return {}
        texts = self.config.get_text_config(decoder=True)
        for name, stated in (("decoder_input_ids", "decoder_start_token_id"), ("input_ids", "bos_token_id")):
            token = next(
                (found for one in (self.config, texts) if (found := getattr(one, stated, None)) is not None), None
            )
            if token is not None and self._reader.takes(name):
                return {name: torch.full((heard.shape[0], 1), token, device=heard.device)}
        return {}

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        padding.refuse_starts(kwargs.get("decoder_attention_mask"))
        mask: Any = kwargs.get("attention_mask")
        if "input_ids" in kwargs and isinstance(mask, torch.Tensor) and not isinstance(mask, FakeTensor):
            padding.refuse_together(self._module, mask, generates=True)
        return super()._generate(*args, **kwargs)
