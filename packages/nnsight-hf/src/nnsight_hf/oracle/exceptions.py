"""What is known not to hold, and why. The oracle also fails on what is listed here and holds after all."""

from __future__ import annotations

#: Architectures of which no tiny model can be made or run, and what is in the way.
UNBUILT: dict[str, str] = {
    "blt": "transformers asks its configuration for `num_hidden_layers`, which it does not have",
    "gemma3n": "its vision tower needs the package timm",
    "gemma4_assistant": "it drafts for another model, whose states it is given",
    "gemma4_unified_assistant": "it drafts for another model, whose states it is given",
    "musicgen": "it is made of a text encoder, an audio encoder and a decoder; the Auto class cannot make it",
    "musicgen_melody": "it is made of a text encoder, an audio encoder and a decoder; the Auto class cannot make it",
}

_EXPERTS = "a scan has no numbers, and which tokens an expert gets is a number of them (`nonzero`)"

#: Checks that fail, by architecture.
FAILS: dict[str, dict[str, str]] = {
    "dbrx": {"scan": _EXPERTS},
    "jetmoe": {"scan": "a scan has no numbers, and how many tokens each expert gets is a list of them"},
    "longcat_flash": {"scan": _EXPERTS},
    "qwen4_exp": {"scan": _EXPERTS},
    "qwen4_exp_text": {"scan": _EXPERTS},
    "reformer": {"scan": "a scan has no numbers, and its forward decides by one (`item`)"},
    "xlm": {"scan": "a scan has no numbers, and its forward decides by one (`item`)"},
    "xmod": {"scan": "a scan has no numbers, and rows are sorted by their language (`nonzero`)"},
}

_STATES = "the states after the last position have gone through the padding behind a shorter row"

#: Values that a row with padding does not have as it has them alone, by patterns of their sites, and why. No logits are among
#: them; the oracle compares everything else that passes in or out of a module.
PADDED: dict[str, dict[str, str]] = {
    "big_bird": {r"bert\.(pooler|activation)\b|pooler_output": "it reads the first position, which may be padding"},
    "rwkv": {r"output\[1\]|state": _STATES},
    "xlstm": {r"output\[1\]|state": _STATES},
}
