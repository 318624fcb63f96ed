"""What a user writes, turned into token ids: prompts, conversations, and the tokenizer's options for them.

Rows are left as long as they are: padding is `inputs.py`. Conversations become text by the tokenizer's own template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Options of a tokenizer that are taken with an input.
_TOKENIZER = ("add_special_tokens", "truncation", "is_split_into_words", "text_pair", "split_special_tokens")

#: Options of padding that are taken with an input; rows are padded to the longest in any case.
_PADDING = ("padding", "pad_to_multiple_of")

#: Options of a conversation's template, and variables for it.
_CHAT = (
    "add_generation_prompt",
    "continue_final_message",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
)

#: Options of a tokenizer that ask for something that is no input of a model, or that the model decides.
_REFUSED = (
    "padding_side",
    "stride",
    "return_tensors",
    "return_token_type_ids",
    "return_attention_mask",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
)

OPTIONS = frozenset({*_TOKENIZER, *_PADDING, *_CHAT, *_REFUSED})


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of an input's options those that are the tokenizer's.

    `max_length` is the tokenizer's beside `truncation=` or `padding="max_length"`, and the generation's elsewhere.
    """
    names = [*OPTIONS]
    if options.get("truncation") or options.get("padding") == "max_length":
        names.append("max_length")
    taken = {name: options.pop(name) for name in names if name in options}
    refused = [name for name in taken if name in _REFUSED]
    if refused == ["return_tensors"] and taken["return_tensors"] == "pt":
        del taken["return_tensors"]  # as it is in any case
    elif refused:
        raise TypeError(
            f"{', '.join(f'`{name}=`' for name in refused)} cannot be given with an input: rows are padded on the side that "
            "the model needs, and what else a tokenizer returns is no input of a model. Call the tokenizer by hand and "
            "pass what it gives: `model.trace(model.tokenizer(...))`."
        )
    return taken


def is_chat(value: Any) -> bool:
    """Say whether a value is a conversation (a list of messages with role and content) or a list of them."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if all(isinstance(message, Mapping) for message in value):
        return all("role" in message for message in value)
    return all(isinstance(one, (list, tuple)) and is_chat(one) and isinstance(one[0], Mapping) for one in value)


def render(tokenizer: Any, value: Sequence[Any], options: dict[str, Any]) -> list[str]:
    """Turn conversations into text by the tokenizer's template, and take the template's options out of `options`.

    A conversation that ends with the assistant's words is continued; else the template asks for the assistant's turn.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    own = {name: options.pop(name) for name in _CHAT if name in options}
    own.update(own.pop("chat_template_kwargs", {}))
    if getattr(tokenizer, "chat_template", None) is None and own.get("chat_template") is None:
        raise ValueError(
            f"the input is a conversation, and {type(tokenizer).__name__} has no chat template to make text of it: this "
            "is no chat model, or its template is kept elsewhere. Pass `chat_template=`, or write the text yourself."
        )
    texts: list[str] = []
    for messages in [value] if isinstance(value[0], Mapping) else value:
        continues = own.get("continue_final_message", messages[-1]["role"] == "assistant")
        asks = own.get("add_generation_prompt", not continues)
        chosen = {**own, "continue_final_message": continues and not asks, "add_generation_prompt": asks}
        texts.append(tokenizer.apply_chat_template(list(messages), tokenize=False, **chosen))
    return texts


def encode(tokenizer: Any, value: Any, options: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Turn one input into keyword arguments of the model, and say how long its rows must be at least.

    Args:
        tokenizer: the tokenizer; None is allowed where the input holds token ids already.
        value: a string, a list of strings, a conversation or a list of them, token ids (list, ragged lists, tensor, array),
            or a tokenizer's output.
        options: options for the tokenizer.
        names: under which arguments an input can be.

    Raises:
        TypeError: options for the tokenizer were given with an input that is tokens already.
        ValueError: it is empty, or the tokenizer cannot make tokens of it.
    """
    options = dict(options)
    chat = is_chat(value)
    words = bool(options.get("is_split_into_words"))
    texts = [value] if isinstance(value, str) or (words and all(isinstance(word, str) for word in value)) else value
    if (
        not chat
        and not words
        and not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts))
    ):
        if options:
            raise TypeError(
                f"{', '.join(f'`{name}=`' for name in options)} belongs to the tokenizer, and this input is tokens already"
            )
        if isinstance(value, Mapping):
            if not any(name in value for name in names):
                raise ValueError(
                    f"an input given as a dict holds `input_ids` or `inputs_embeds`; this one holds {list(value)}"
                )
            return dict(value), 0
        return {"input_ids": value}, 0
    if not texts:
        raise ValueError("the list of prompts is empty")
    if tokenizer is None:
        raise ValueError(
            "this model has no tokenizer, so it takes token ids and no text: pass `tokenizer=` with the model"
        )
    if chat:
        texts = render(tokenizer, value, options)
        options.setdefault("add_special_tokens", False)  # the template writes them itself
    stray = [name for name in _CHAT if name in options]
    if stray:
        raise TypeError(f"`{stray[0]}=` belongs to a conversation, and this input is text")
    padding, multiple = options.pop("padding", True), options.pop("pad_to_multiple_of", None) or 1
    if isinstance(options.get("text_pair"), str):
        options["text_pair"] = [options["text_pair"]] * len(texts)
    rows = tokenizer(list(texts), **options)["input_ids"]
    for text, row in zip(texts, rows):
        if not len(row):
            raise ValueError(
                f"the prompt {text!r} is empty: it has no token, so there is nothing for the model to read"
            )
    longest = options.get("max_length", 0) if padding == "max_length" else max(map(len, rows))
    return {"input_ids": rows}, -(-longest // multiple) * multiple
