"""How far whole numbers may go that bodies change: token ids, positions, numbers of experts.

One idea: kernels read memory by them, and one that is out of range ends the engine's process, or reads what is another's. So
what is written is looked at before the model gets it. Tokens go up to the vocabulary; elsewhere no number may be greater than
those that the engine has there.
"""

from __future__ import annotations

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from nnsight import NNsightError
from nnsight.plugin import Place


class BoundsError(NNsightError, IndexError):
    """A body wrote numbers by which kernels would read where they may not."""


class Bounds:
    """Says which numbers may be written where.

    Args:
        module: the model.
        path: what bodies call it.
    """

    def __init__(self, module: torch.nn.Module, path: str) -> None:
        #: How many different numbers there are, by the path of the module that takes or gives them.
        self.sizes: dict[str, int] = {}
        tokens = 0
        for name, part in module.named_modules():
            if isinstance(part, VocabParallelEmbedding):
                # relies on: `org_vocab_size` is that of the whole model, without padding, vLLM 0.30 to 0.33
                self.sizes[f"{path}.{name}"] = part.org_vocab_size
                tokens = max(tokens, part.org_vocab_size)
            elif isinstance(part, torch.nn.Embedding):
                self.sizes[f"{path}.{name}"] = part.num_embeddings
        if tokens:
            self.sizes[f"{path}.samples"] = tokens

    def check(self, place: Place, old: torch.Tensor, new: torch.Tensor) -> None:
        """Look at numbers before the model gets them.

        Raises:
            BoundsError: some are out of range.
        """
        new = new.to(old.device)
        changed = new[new != old]
        if not changed.numel():
            return
        size = self.sizes.get(place.path, int(old.max()) + 1)
        if new.is_floating_point() or int(changed.min()) < 0 or int(changed.max()) >= size:
            raise BoundsError(
                f"`{place.path}` holds whole numbers from 0 to {size - 1} by which memory is read, and was given others "
                f"({changed[0].item()} among them)."
            )
