"""`CharacterModel`: the family. It says how text becomes a batch and how rows lie in the values of a run."""

import sys

import torch

from nnsight.plugin import Envoy, NNsight, PlainLayout, eproperty, is_with_head, join_inputs
from nnsight_example.network import CharacterNetwork


class TimeFirst(PlainLayout):
    """Rows lie along dimension 1 of what has positions or layers before them, and along dimension 0 of the rest."""

    def take(self, value, rows, path):
        if value.dim() == 3 or path.endswith("embed"):
            turned = super().take(value.transpose(0, 1), rows, path)
            return None if turned is None else turned.transpose(0, 1)
        return super().take(value, rows, path)

    def join(self, value, pieces, path):
        if value.dim() == 3 or path.endswith("embed"):
            turned = {rows: piece.transpose(0, 1) for rows, piece in pieces.items()}
            return super().join(value.transpose(0, 1), turned, path).transpose(0, 1)
        return super().join(value, pieces, path)


class Mix(Envoy):
    """The envoy of the mixing layer, with a value of its own."""

    @eproperty(description="[rows, heads, size of a head]")
    def heads(self, output):
        return output.unflatten(-1, (self.parent.heads, -1))

    @heads.setter
    def heads(self, output, value):
        return value.flatten(-2)


class CharacterModel(NNsight):
    """A character network that takes text: `with model.trace("hello"):`, `model.write("hello", count=3)`."""

    def __init__(self, network=None, **kwargs):
        super().__init__(network or CharacterNetwork(), envoys={"mix": Mix}, **kwargs)

    def write(self, *texts, **options):
        """Write on: a plain call returns the characters, and `with model.write(...) as tracer:` looks inside."""
        return self.trace(*texts, fn="write", trace=is_with_head(sys._getframe(1)), **options)

    def _has_input(self, inputs, kwargs):
        return bool(inputs)  # keyword arguments are options (`count=`) and no text

    def _prepare_input(self, *inputs, **options):
        texts = [inputs[0]] if isinstance(inputs[0], str) else list(inputs[0])
        if not all(texts):
            raise ValueError("a text is empty: there is nothing to predict its next character from")
        rows = [torch.tensor([self.alphabet.index(letter) for letter in text]) for text in texts]
        return (rows,), options, len(rows)

    def _batch(self, prepared):
        rows = [row for (rows,), _, _ in prepared for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        _, options = join_inputs([((), options, count) for _, options, count in prepared])  # must be the same in all
        return (torch.nn.utils.rnn.pad_sequence(rows), lengths), options

    def _layout(self, total, args, kwargs, method):
        return TimeFirst(total)
