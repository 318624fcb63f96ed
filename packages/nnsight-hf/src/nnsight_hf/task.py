"""`TransformersModel`: a model for any task that is not writing text, such as encoders, classifiers, vision and speech.

Which Auto class serves a task is `fitting.py`, what makes tensors of an input is `processors.py`. Here rows are prepared
one at a time and padded on the right, where absolute positions, masks and the last token of a causal classifier are what
they are alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from transformers import PretrainedConfig

from nnsight import RowsError
from nnsight.plugin import Layout, Prepared, Rows, end_steps, is_with_head, open_trace
from nnsight_hf import fitting, loading, text
from nnsight_hf.padding import pad, takes
from nnsight_hf.pretrained import PretrainedModel
from nnsight_hf.processors import AUTO, Processors
from nnsight_hf.rows import Facts, ProbedLayout, compare
from nnsight_hf.tokens import Tokens, describe

#: Arguments that say where there is padding.
_MASKS = ("attention_mask", "pixel_mask")


class TransformersModel(PretrainedModel):
    """A model of transformers for one task, with the processors that the task needs.

    An input is what the task reads: a string (a list for several rows, two for a pair), an image (PIL, path, array), a
    waveform [samples] or `{"array": waveform, "sampling_rate": rate}`, `{"question": ..., "context": ...}`, a text or an
    image with labels to guess (`{"text": ..., "candidate_labels": [...]}`), or tensors by the names that the model's
    forward has (those that come from tables and documents, as their processors make them).

    Args:
        model: a hub id, a local folder, a configuration (for new weights), or a loaded module.
        task: the task, as transformers' pipelines name it; if not given, the one that the checkpoint was saved for.
        tokenizer, image_processor, feature_extractor, processor: if not the model's own.
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
            "feature_extractor": feature_extractor,
            "processor": processor,
        }
        self.__dict__["task"] = chosen[0] or (fitting.task_of(origin.config) if origin.config is not None else None)
        self.__dict__["_processors"] = Processors(origin.where, given, options)

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
    def _reads(self) -> str:
        """The name of the argument that holds the input: `input_ids`, `pixel_values`, `input_values`, ..."""
        return str(getattr(self._module, "main_input_name", "input_ids"))

    def _has_input(self, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        return bool(given) or any(kwargs.get(name) is not None for name in (self._reads, "inputs_embeds"))

    def _prepare_input(self, *given: Any, **kwargs: Any) -> Prepared:
        options = text.take_options(kwargs)
        rows = self._rows(given, options) if given else []
        data = {**(self._joined(rows) if rows else {}), **kwargs}
        name = self._reads if self._reads in data else "inputs_embeds"
        if name not in data:
            raise ValueError(f"this model reads `{self._reads}`, and the input holds {sorted(data)} only")
        if not isinstance(data[name], torch.Tensor):
            data[name] = torch.as_tensor(data[name])
        if name == "input_ids" and data[name].dim() == 1:
            data[name] = data[name][None]
        if name in ("input_ids", "inputs_embeds") and "attention_mask" not in data:
            data["attention_mask"] = torch.ones(data[name].shape[:2], dtype=torch.long)
        return (), data, data[name].shape[0]

    def _rows(self, given: tuple[Any, ...], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the arguments that an input makes: of each row if they are made here, or as they were given."""
        processors: Processors = self.__dict__["_processors"]
        first = given[0]
        if len(given) > 2 or (len(given) == 2 and self._reads != "input_ids"):
            raise TypeError("a model takes one input (a list for several rows), or two texts that make a pair")
        if isinstance(first, Mapping):
            if any(takes(self._module, name) for name in first):
                return [dict(first)]
            return self._named(first, options)
        if self._reads == "pixel_values":
            ready = isinstance(first, torch.Tensor) and first.dim() == 4 and first.is_floating_point()
            return [{"pixel_values": first}] if ready else processors.pictures(first)
        if self._reads in ("input_values", "input_features"):
            ready = isinstance(first, torch.Tensor) and first.dim() > 1
            return [{self._reads: first}] if ready else processors.sound(first, None)
        texts = [first] if isinstance(first, str) else first
        if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
            made = processors.text(first, given[1] if len(given) == 2 else None, options)
            return [{name: row[name] for name in row if takes(self._module, name)} for row in made]
        if isinstance(texts, (list, tuple)) and texts and all(numpy.ndim(row) == 1 for row in texts):
            ids = [torch.as_tensor(row)[None] for row in texts]
            return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
        return [{"input_ids": torch.as_tensor(first)}]

    def _named(self, given: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        names = frozenset(given)
        processors: Processors = self.__dict__["_processors"]
        if names <= {"array", "raw", "sampling_rate"}:
            return processors.sound(given.get("array", given.get("raw")), given.get("sampling_rate"))
        if names == {"question", "context"}:
            return self._rows((given["question"], given["context"]), options)
        if names <= {"text", "text_pair"} and "text" in names:
            both = (given["text"], given["text_pair"]) if given.get("text_pair") is not None else (given["text"],)
            return self._rows(both, options)
        if "candidate_labels" in names and names <= {"text", "image", "candidate_labels", "hypothesis_template"}:
            return self._guesses(given, options)
        if names == {"text", "images"}:
            return [dict(processors.need("processor")(**given, return_tensors="pt", padding=True))]
        raise TypeError(f"an input with {sorted(names)} is not known: give tensors by the names that the forward has")

    def _guesses(self, given: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the arguments for labels that a model was not trained on: each makes a sentence that may be true."""
        labels = given["candidate_labels"]
        if isinstance(labels, str) or not labels or ("text" in given) == ("image" in given):
            raise ValueError('labels are guessed for one text or one image: {"text": ..., "candidate_labels": [...]}')
        usual = "This is a photo of {}." if "image" in given else "This example is {}."
        template = given.get("hypothesis_template", usual)
        if "{}" not in template:
            raise ValueError(f"the `hypothesis_template` {template!r} has no {{}} where the label goes")
        sentences = [template.format(label) for label in labels]
        if "text" in given:
            return self._rows(([given["text"]] * len(sentences), sentences), options)
        processors: Processors = self.__dict__["_processors"]
        rows = processors.text(sentences, None, options)
        return [{**self._joined(rows), **processors.pictures(given["image"])[0]}]

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(prepared) == 1:
            return (), self._placed(prepared[0][1])
        for _, data, rows in prepared:
            self._refuse_compared(data, rows)
        return (), self._placed(self._joined([data for _, data, _ in prepared]))

    def _refuse_compared(self, data: Mapping[str, Any], rows: int) -> None:
        """Raise for inputs of which each would be compared with those of the other invokes."""
        both = "input_ids" in data and any(
            name in data for name in ("pixel_values", "input_features", "input_values") if name != "input_ids"
        )
        if both and (hasattr(self._module, "get_text_features") or data["input_ids"].shape[0] != rows):
            raise RowsError(
                f"{type(self._module).__name__} compares each text with every other input of a batch, so the inputs of "
                "several invokes cannot share one forward. Trace them separately."
            )

    def _joined(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put several inputs into one batch, padded on the right to the longest.

        Raises:
            RowsError: they have other arguments, or sizes that this model cannot tell from padding.
        """
        if len(rows) == 1:
            return dict(rows[0])
        names = list(rows[0])
        if any(set(row) != set(names) for row in rows):
            raise RowsError(
                f"The inputs have other arguments ({' and '.join(str(sorted(row)) for row in rows)}), so they cannot "
                "share one forward: give the same to each, or trace them separately."
            )
        return {name: self._column(name, [row[name] for row in rows], rows[0]) for name in names}

    def _column(self, name: str, values: Sequence[Any], row: Mapping[str, Any]) -> Any:
        if not all(isinstance(value, torch.Tensor) and value.dim() for value in values):
            if any(value is not values[0] and value != values[0] for value in values):
                raise RowsError(
                    f"The inputs differ in `{name}` ({list(values)}), and one forward can take one value only."
                )
            return values[0]
        sizes = [max(value.shape[dim] for value in values) for dim in range(1, values[0].dim())]
        if any(list(value.shape[1:]) != sizes for value in values):
            # The normalisation goes over all samples of a row, padding too, and no mask can help.
            over_time = name == "input_values" and getattr(self.config, "feat_extract_norm", None) == "group"
            if over_time or not any(mask in row for mask in _MASKS):
                raise RowsError(
                    f"The inputs have `{name}` of the shapes {[tuple(value.shape) for value in values]}, and "
                    f"{type(self._module).__name__} cannot tell padding from input: in one batch they would not get "
                    "what they get alone. Trace each in a run of its own, or give inputs of one size."
                )
            fill = self._fill(name)
            for dim, size in enumerate(sizes, 1):
                values = [pad(value, size, fill, "right", dim) for value in values]
        return torch.cat(list(values))

    def _fill(self, name: str) -> float:
        if name == "labels":
            return -100
        if name == "input_ids":
            own = getattr(self.config, "pad_token_id", None)
            token = own if isinstance(own, int) else getattr(self.tokenizer, "pad_token_id", None)
            return token if isinstance(token, int) else 0
        if name in ("input_values", "input_features"):
            return float(getattr(self.feature_extractor, "padding_value", 0))
        return 0

    # -- rows --------------------------------------------------------------------------------------------------------

    def _layout(self, total: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str | None) -> Layout:
        multiples: tuple[int, ...] = (1,)
        if method == "generate":
            from nnsight_hf import generation

            multiples = generation.multiples(self._module, kwargs)
        return ProbedLayout(total, multiples, self._facts(total, kwargs), ("result",))

    def _tokens(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Rows | None, method: str | None
    ) -> Tokens:
        return describe(kwargs, self.tokenizer, rows)

    def _facts(self, total: int, kwargs: Mapping[str, Any]) -> Facts:
        """How rows lie in the values of this module, found out with the first row of the first batch of several inputs."""

        def find() -> Facts:
            tensors = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor) and value.dim()}
            one = {name: value[:1] for name, value in tensors.items() if value.shape[0] == total}
            few, many = self._joined([one] * 3), self._joined([one] * 5)
            return compare(self, [few, many, self._longer(few)])

        return self._found("rows", find)

    def _longer(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same batch with room for one token more, where there are tokens."""
        if "input_ids" not in batch or "attention_mask" not in batch:
            return dict(batch)
        length = batch["input_ids"].shape[1]
        return {
            name: pad(value, length + 1, self._fill(name), "right") if value.shape[1:2] == (length,) else value
            for name, value in batch.items()
        }

    # -- running -----------------------------------------------------------------------------------------------------

    def _target(self, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
        if method is None:
            return self._forward
        return self._generate if method == "generate" else super()._target(method)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        begun = any(kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds", "labels"))
        start = getattr(self.config, "decoder_start_token_id", None)
        if not begun and start is not None and self._reads != "input_ids" and takes(self._module, "decoder_input_ids"):
            heard = kwargs[self._reads]
            kwargs["decoder_input_ids"] = torch.full((heard.shape[0], 1), start, device=heard.device)
        return self._module(*args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        generate: Any = self._module.generate
        tokens = generate(*args, **kwargs)
        end_steps()
        return tokens

    def generate(self, *given: Any, backend: Any = None, remote: Any = None, **kwargs: Any) -> Any:
        """Generate, for a model that writes about what it hears or sees (Whisper, Donut); as for `LanguageModel`.

        Args:
            given: the input, as for `trace`; without one, the block opens invokes.
            kwargs: options of transformers' `generate`.

        Returns:
            The tokens [rows, positions], or a `Tracer` at the head of a `with`.

        Raises:
            TypeError: this model does not generate.
        """
        can: Any = getattr(self._module, "can_generate", None)
        if can is None or not can():
            raise TypeError(f"{type(self._module).__name__} does not generate: use `trace`")
        if backend is None and remote in (None, False) and not is_with_head(sys._getframe(1)):
            return self._run_now("generate", given, kwargs)
        return open_trace(self, given, kwargs, method="generate", backend=backend, remote=remote)
