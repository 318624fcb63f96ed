"""A library on top: one vocabulary for models whose modules are called differently, in the manner of nnterp.

A subclass renames modules, and a small view reads and writes what passes the layers, whether a layer gives a tensor or a
tuple. What is written once then runs on a GPT-2, a Llama and a BLOOM.

What one sees: the norm of the stream, layer by layer, in the embedded model and in two random ones of other architectures, by
one line of code. Control: a layer's output that is set to its input is a layer that was left out, in each of the three.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from nnsight import LanguageModel
from nnsight_hf import figures

# Many names to one: keys that a model does not have lead nowhere.
NAMES = {
    "transformer": "model",
    "h": "layers",
    "model.layers": "layers",
    "attn": "self_attn",
    "self_attention": "self_attn",
    "wte": "embed_tokens",
    "word_embeddings": "embed_tokens",
    "ln_f": "ln_final",
    "norm": "ln_final",
}


class LayersOutput:
    """`model.layers_output[i]`: the stream after layer `i`, a tensor in any model."""

    def __init__(self, model: StandardModel) -> None:
        self.model = model

    def __getitem__(self, layer: int) -> Any:
        value = self.model.layers[layer].output
        return value[0] if isinstance(value, tuple) else value

    def __setitem__(self, layer: int, value: torch.Tensor) -> None:
        envoy = self.model.layers[layer]
        old = envoy.output
        envoy.output = (value, *old[1:]) if isinstance(old, tuple) else value


class StandardModel(LanguageModel):
    """A language model whose parts are called alike in any architecture."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rename=NAMES, **kwargs)
        self.layers_output = LayersOutput(self)

    def stream(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what each layer leaves: [layer, position, width]."""
        with torch.no_grad(), self.trace(ids):
            found = [self.layers_output[number] for number in range(len(self.layers))]
        return torch.cat(found)

    def skip(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the logits with a layer left out."""
        with torch.no_grad(), self.trace(ids):
            self.layers_output[layer] = self.layers_output[layer - 1]
            logits = self.lm_head.output
        return logits


def models() -> dict[str, StandardModel]:
    """Return the embedded GPT-2, and two models with random weights."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, pad_token_id=0
    )
    bloom = BloomConfig(vocab_size=64, hidden_size=64, n_layer=6, n_head=4)
    random = [StandardModel(AutoModelForCausalLM.from_config(config)) for config in (llama, bloom)]
    return {"GPT-2": StandardModel("nnsight/toy-landmarks"), "Llama (random)": random[0], "BLOOM (random)": random[1]}


def main(out: Path) -> None:
    ids = torch.tensor([[5, 9, 21, 33, 17, 8]])
    norms, differences = {}, {}
    for name, model in models().items():
        stream = model.stream(ids)
        norms[name] = stream.norm(dim=-1)
        with torch.no_grad(), model.trace(ids):
            model.layers[3].skip(model.layers[2].output)
            skipped = model.lm_head.output
        differences[name] = float((model.skip(ids, 3) - skipped).abs().max())

    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    figures.layer_norms(norms, label="norm of the stream", ax=figure.subplots())
    figure.savefig(out / "standard_names.png", dpi=90)

    print(f"The stream of GPT-2 grows from {norms['GPT-2'][0].median():.0f} to {norms['GPT-2'][-1].median():.0f}.")
    print(f"Control, a layer left out in two ways: the logits differ by at most {max(differences.values()):.1e}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the figure")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    main(out)
