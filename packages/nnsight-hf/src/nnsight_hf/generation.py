"""What a generation adds to a forward: its options, its rows, and the places that the model's own modules do not have.

Those places are its result, and the tokens of each step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from nnsight_hf.rows import NUMBERS

#: The modules each call of which is a step, of classes whose `generate` never calls the model itself.
STEPS = {
    "Blip2ForConditionalGeneration": "language_model",
    "BlipForConditionalGeneration": "text_decoder",
    "BlipForQuestionAnswering": "text_decoder",
    "InstructBlipForConditionalGeneration": "language_model",
    "SpeechT5ForSpeechToSpeech": "speecht5.decoder.wrapped_decoder",
    "SpeechT5ForTextToSpeech": "speecht5.decoder.wrapped_decoder",
}


class Passing(torch.nn.Module):
    """Returns what it is given, so that the value has a site."""

    def forward(self, value: Any) -> Any:
        """Return `value`."""
        return value


class Generator(Passing):
    """The result of a generation: `model.generator.output`, and each step's tokens: `model.generator.streamer.output`."""

    def __init__(self) -> None:
        super().__init__()
        self.streamer = Passing()


class Stream:
    """A streamer, as `generate` takes one, that passes each step's tokens [rows] through the generator's place.

    Args:
        place: where they pass.
        then: a streamer of the user's, which gets them too.
    """

    def __init__(self, place: Passing, then: Any = None) -> None:
        self._place = place
        self._then = then
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which is no step's, and then the tokens of each step."""
        if not self._prompt:
            before = value.clone()
            if not torch.equal(self._place(value), before):
                raise AttributeError(
                    "`model.generator.streamer.output` can be read only: it is a copy of the tokens that were chosen. To "
                    "change what is chosen, change the logits (`model.output.logits`) or pass `logits_processor=`."
                )
        self._prompt = False
        if self._then is not None:
            self._then.put(value)

    def end(self) -> None:
        """Tell the user's streamer."""
        if self._then is not None:
            self._then.end()


def _stated(module: torch.nn.Module, options: Mapping[str, Any], name: str) -> int:
    value = options.get(name)
    if value is None:
        config = options.get("generation_config") or getattr(module, "generation_config", None)
        value = getattr(config, name, None)
    return int(value or 1)


def multiples(module: torch.nn.Module, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how many times in a row a prompt may lie in the values of a generation: beams, returned sequences."""
    return tuple(sorted({1, *(_stated(module, options, name) for name in ("num_beams", "num_return_sequences"))}))


def samples(module: torch.nn.Module, options: Mapping[str, Any]) -> bool:
    """Say whether a generation draws its tokens at random."""
    config = options.get("generation_config") or getattr(module, "generation_config", None)
    stated = options.get("do_sample")
    return bool(getattr(config, "do_sample", False) if stated is None else stated)


def mark_beams(module: torch.nn.Module, options: Mapping[str, Any], result: Any) -> None:
    """Note on what a generation returns which numbers in it count the beams of the whole batch."""
    beams = getattr(result, "beam_indices", None)
    if isinstance(beams, torch.Tensor):
        setattr(beams, NUMBERS, _stated(module, options, "num_beams"))


def streams(module: torch.nn.Module, options: Mapping[str, Any]) -> bool:
    """Say whether a streamer may be passed: transformers refuses one with beams."""
    return _stated(module, options, "num_beams") == 1


@functools.cache
def _options() -> frozenset[str]:
    given = {name for name in inspect.signature(GenerationMixin.generate).parameters if name not in ("self", "kwargs")}
    # A forward heeds these too, whether it names them or takes them among its keyword arguments.
    return frozenset({*GenerationConfig().to_dict(), *given, "progress"}) - {
        "use_cache",
        "output_attentions",
        "output_hidden_states",
    }


def refuse_in_forward(module: torch.nn.Module, options: Mapping[str, Any]) -> None:
    """Raise if options of a generation are given to a forward, which would ignore them."""
    wrong = [name for name in options if name in _options()]
    if wrong:
        taken = inspect.signature(type(module).forward).parameters
        wrong = [name for name in wrong if name not in taken]
    if wrong:
        one = wrong[0]
        raise TypeError(
            f"{', '.join(f'`{name}`' for name in wrong)} belongs to a generation, and a trace runs one forward, which would "
            f"ignore it. Write `with model.generate(..., {one}={options[one]!r}):`, or leave it out."
        )
