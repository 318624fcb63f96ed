"""What the workers of one engine answer, put together.

One idea: a block runs to its end on the last stage of a pipeline, so what it saved is there, and all ranks of that stage say
the same. An error is told by the first that had it, with its line; a cache holds what each stage passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnsight.plugin import decode_message, decode_results, encode_results, inspect_bytes, join_caches


def that_counts(answers: Sequence[Any]) -> Any:
    """Return the answer that counts among those of all workers.

    Args:
        answers: of each: what bodies saved or raised and the text that they printed; or what one saved or raised; or
            what is known on one stage only, and empty elsewhere (what traces printed, what they have saved so far).
    """
    if len(answers) == 1:
        return answers[0]
    one = answers[0]
    if isinstance(one, (tuple, list)) and one and isinstance(one[0], (tuple, list)):  # a tuple is a list after its way
        bodies = zip(*(told for told, _ in answers))
        return [_of_body(told) for told in bodies], _first([printed for _, printed in answers])
    if isinstance(one, list):
        return [_first(one) for one in zip(*answers)]
    return _of_body(answers) if isinstance(one, bytes) else _first(answers)


def _first(answers: Sequence[Any]) -> Any:
    return next(filter(None, answers), answers[0])


def _of_body(told: Sequence[bytes]) -> bytes:
    told = [one for one in told if one]
    if not told:
        return b""
    kinds = [inspect_bytes(one)["kind"] for one in told]
    if "error" in kinds:
        return told[kinds.index("error")]
    whole = told[kinds.index("results")]
    parts = [decode_message(one)[1] for one, kind in zip(told, kinds) if kind == "message"]
    if not any(parts):
        return whole
    saved = decode_results(whole)
    for part in reversed(parts):
        for name, cache in part.items():
            saved[name] = join_caches([cache, saved[name]]) if name in saved else cache
    return encode_results(saved)
