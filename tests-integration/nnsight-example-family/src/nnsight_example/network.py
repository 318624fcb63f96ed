"""A small recurrent network over characters. Plain PyTorch: it knows nothing of nnsight."""

import torch


class CharacterNetwork(torch.nn.Module):
    """Predicts the next character; time comes first, as recurrent layers have it: [positions, rows]."""

    alphabet = " abcdefghijklmnopqrstuvwxyz"

    def __init__(self, size: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.embed = torch.nn.Embedding(len(self.alphabet), size)
        self.cell = torch.nn.GRU(size, size)
        self.mix = torch.nn.Linear(size, size)
        self.head = torch.nn.Linear(size, len(self.alphabet))

    def forward(self, characters, lengths, state=None):
        """Take characters [positions, rows] and how many of them each row has; give its next one's logits, and a state."""
        hidden, _ = self.cell(self.embed(characters), state)
        last = hidden[lengths - 1, torch.arange(len(lengths))]
        return self.head(torch.tanh(self.mix(last))), last[None]

    def write(self, characters, lengths, count=5):
        """Append `count` characters to each row, and return those: [rows, count]."""
        written, state = [], None
        for _ in range(count):
            logits, state = self(characters, lengths, state)
            written.append(logits.argmax(-1))
            characters, lengths = written[-1][None], torch.ones_like(lengths)
        return torch.stack(written, dim=1)
