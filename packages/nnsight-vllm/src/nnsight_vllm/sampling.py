"""How the tokens of a request are drawn: what users write, as vLLM's `SamplingParams`."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Mapping
from typing import Any

from vllm import SamplingParams

from .errors import refused

#: What may be said of a request besides how its tokens are drawn.
OF_REQUESTS = ("lora_request", "priority")
#: What other models call it.
_ALSO = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
_ELSEWHERE = {
    "api_key": "a server's address and key are said by `remote=` and the configuration",
    "do_sample": "`temperature=0` takes the likeliest token, and any other draws",
    "edits": "edits that stay on an engine are named by `standing=`",
    "logits_processor": "change `model.logits.output` in the block",
    "logits_processors": "change `model.logits.output` in the block",
    "num_beams": "an engine searches no beams; `n=` draws several continuations",
    "output_kind": "a trace gives the whole result when the request is over",
    "prompt": "a prompt has no name: `model.trace(prompt)`",
    "fn": "an engine calls its model's forward, and nothing else",
    "scan": "a model in an engine cannot be scanned; trace a short prompt with `max_tokens=1`",
    "serve": "`remote=` is where to run: the address of a server",
    "stopping_criteria": "`stop=` and `stop_token_ids=` end a text, and so does `tracer.stop()` in the block",
    "trace": "`model.generate(prompt)` runs without a block",
    "validate": "a model in an engine cannot be scanned; trace a short prompt with `max_tokens=1`",
}


def check(options: Mapping[str, Any]) -> None:
    """Raise TypeError if something is said of a request that means nothing to vLLM."""
    names = _names()
    for name in options:
        if name in _ELSEWHERE:
            raise TypeError(f"a request of vLLM has no option {name!r}: {_ELSEWHERE[name]}")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise TypeError(
                f"a request of vLLM has no option {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" It takes what `vllm.SamplingParams` takes, and {', '.join(OF_REQUESTS)}."
            )


def sampling(options: Mapping[str, Any]) -> SamplingParams:
    """Return how tokens are drawn, as these options say.

    Raises:
        TypeError, ValueError: they mean nothing to vLLM, or it refuses them.
    """
    if all(type(value) in _PLAIN for value in options.values()):
        # The requests of a trace are mostly drawn in one way: it is made out once.
        return copied(_plainly(tuple(options), *options.values()))
    return _made(options)


#: Of such values nothing is shared that could be changed.
_PLAIN = (bool, int, float, str, type(None))


@functools.lru_cache(maxsize=64, typed=True)
def _plainly(names: tuple[str, ...], *values: Any) -> SamplingParams:
    made = _made(dict(zip(names, values)))
    # Its copies are one request's each, so vLLM need not copy them once more, with all that is in them.
    made.skip_clone = True
    return made


def copied(params: SamplingParams) -> SamplingParams:
    """Return a copy for one request.

    relies on: vLLM adds to `_all_stop_token_ids` of a request's own, and to nothing else in it, vLLM 0.30 to 0.33.
    """
    made = copy.copy(params)
    made._all_stop_token_ids = set(params._all_stop_token_ids)
    return made


def _made(options: Mapping[str, Any]) -> SamplingParams:
    check(options)
    chosen = named(options)
    try:
        return SamplingParams(**chosen)
    except TypeError as error:
        raise TypeError(f"vLLM does not take {_said(chosen)}: {error}") from error
    except Exception as error:
        raise refused(error, _said(chosen)) from error


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under the names that vLLM has for them. What stands in `sampling_params=` is said first of all."""
    chosen = dict(options)
    for also, name in _ALSO.items():
        if also in chosen:
            if name in chosen:
                raise TypeError(f"{also!r} is another name for {name!r}, and both were given")
            chosen[name] = chosen.pop(also)
    params = chosen.pop("sampling_params", None)
    if params is None:
        return chosen
    if not isinstance(params, SamplingParams):
        raise TypeError(f"`sampling_params=` takes vllm.SamplingParams, not {type(params).__name__}")
    said = {name: getattr(params, name) for name in _fields() if name not in _ELSEWHERE}
    return {**said, **chosen}


def samples(params: SamplingParams) -> list[SamplingParams]:
    """Return what is drawn for a prompt one by one, each as a request of its own.

    relies on: the seed of one of `n` is that of all and its number, in vLLM's own `ParentRequest`, vLLM 0.28 to 0.33.
    """
    made = []
    for number in range(params.n):
        one = copied(params)
        one.n = 1
        if params.seed is not None:
            one.seed = params.seed + number
        made.append(one)
    return made


@functools.cache
def _names() -> dict[str, None]:
    """The names that an option can have, in order."""
    return dict.fromkeys((*_fields(), *OF_REQUESTS, *_ALSO, "sampling_params", "standing"))


@functools.cache
def _fields() -> tuple[str, ...]:
    return tuple(name for name in SamplingParams.__struct_fields__ if not name.startswith("_"))


def _said(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
