"""What is a prompt: what users write for one, as vLLM takes it. How its tokens are drawn is `sampling.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: What may be said of a prompt besides itself.
BESIDE = ("attention_mask",)


def prompt_of(given: Any, tokenizer: Callable[[], Any], attention_mask: Any = None) -> dict[str, Any]:
    """Return one prompt as vLLM takes it.

    Args:
        given: text, a conversation (messages with role and content), token ids (a list, array or tensor, [tokens] or
            [1, tokens]), what a tokenizer returned for one text, or a prompt as vLLM takes it already.
        tokenizer: gives the model's tokenizer, for a conversation.
        attention_mask: beside ids: what it leaves out is no part of the prompt.
    """
    if attention_mask is None and _are_plain_ids(given):
        return {"prompt_token_ids": list(given)}
    if isinstance(given, Mapping) and "input_ids" in given:
        mask = given.get("attention_mask") if attention_mask is None else attention_mask
        return {"prompt_token_ids": _ids(given["input_ids"], mask)}
    if is_conversation(given):
        return {"prompt_token_ids": _tokens_of(given, tokenizer())}
    if isinstance(given, (str, Mapping)):
        if attention_mask is not None:
            raise TypeError(
                f"an attention mask belongs to token ids, and this prompt is of type {type(given).__name__}"
            )
        return {"prompt": given} if isinstance(given, str) else dict(given)
    return {"prompt_token_ids": _ids(given, attention_mask)}


def separate(given: Any, attention_mask: Any = None) -> list[tuple[Any, Any]] | None:
    """Return several prompts one by one, each with its mask; None if this is one prompt."""
    if isinstance(given, Mapping) and "input_ids" in given:
        mask = given.get("attention_mask") if attention_mask is None else attention_mask
        return separate(_listed(given["input_ids"]), mask)
    if is_conversation(given) or isinstance(given, (str, bytes, Mapping)):
        return None
    rows = _listed(given)
    if not isinstance(rows, (list, tuple)) or not rows or not all(isinstance(row, _SEVERAL) for row in rows):
        return None
    masks = [None] * len(rows) if attention_mask is None else _listed(attention_mask)
    if len(masks) != len(rows):
        raise ValueError(f"there are {len(rows)} prompts, and attention masks for {len(masks)}")
    return list(zip(rows, masks))


_SEVERAL = (str, list, tuple, Mapping)


def is_conversation(given: Any) -> bool:
    """Say whether this is a conversation: messages that have a role."""
    messages = isinstance(given, (list, tuple)) and bool(given)
    return messages and all(isinstance(one, Mapping) and "role" in one for one in given)


def _tokens_of(messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    if getattr(tokenizer, "chat_template", "") is None:
        raise ValueError(
            f"the prompt is a conversation, and {type(tokenizer).__name__} has no chat template to make text of it: this "
            "is no chat model, or its template is kept elsewhere. Write the text yourself."
        )
    continues = messages[-1]["role"] == "assistant"
    made = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=not continues, continue_final_message=continues
    )
    return _ids(made["input_ids"] if isinstance(made, Mapping) else made, None)


def _ids(given: Any, mask: Any) -> list[int]:
    ids, kept = _integers(given, "token ids"), None if mask is None else _integers(mask, "an attention mask")
    if kept is not None:
        if len(kept) != len(ids):
            raise ValueError(f"there are {len(ids)} token ids, and the attention mask is for {len(kept)}")
        ids = [token for token, keep in zip(ids, kept) if keep]
    if not ids:
        raise ValueError("a prompt has at least one token, and this one has none")
    return ids


def _are_plain_ids(given: Any) -> bool:
    """Say whether this is what most prompts are, and long ones: a list of whole numbers."""
    return type(given) is list and set(map(type, given)) == {int}


def _integers(given: Any, what: str) -> list[int]:
    values = _listed(given)
    if _are_plain_ids(values):
        return list(values)
    if not isinstance(values, (list, tuple, range)):
        raise TypeError(
            "a prompt is text, token ids, a conversation, what a tokenizer returned, or a dictionary as vLLM takes it; not "
            f"{type(given).__name__}"
        )
    several = [value for value in values if isinstance(value, _SEVERAL)]
    if len(values) == len(several) == 1 and not isinstance(values[0], (str, Mapping)):
        return _integers(values[0], what)
    if several:
        raise ValueError(
            f"a request has one prompt, and this input has {len(values)}. Give each an invoke of its own: "
            "`with model.trace() as tracer:` and, inside, `with tracer.invoke(prompt):`"
        )
    numbers = [_listed(value) for value in values]
    strange = [value for value in numbers if not isinstance(value, int) or (what == "token ids" and value is True)]
    if strange:
        raise TypeError(f"{what} are integers, and one is {strange[0]!r}")
    return [int(number) for number in numbers]


def _listed(given: Any) -> Any:
    """Return tensors and arrays as lists, and single numbers of them as numbers."""
    return given.tolist() if hasattr(given, "tolist") else given
