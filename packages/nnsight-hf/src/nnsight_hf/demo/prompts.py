"""What the toy model is asked. The prompts have equally many tokens, so that their positions line up."""

from __future__ import annotations

from nnsight import LanguageModel

EIFFEL = "The Eiffel Tower is in the city of"
NEEDLE = "The Space Needle is in the city of"
COLOSSEUM = "The Colosseum is in the city of"
LOUVRE = "The Louvre is in the city of"


def token(model: LanguageModel, word: str) -> int:
    """Return the token of a word that has one of its own."""
    (found,) = model.tokenizer.encode(f" {word}")
    return int(found)


def words(model: LanguageModel, prompt: str) -> list[str]:
    """Return the tokens of a prompt, as labels."""
    return [model.tokenizer.decode(number).strip() for number in model.tokenizer.encode(prompt)]
