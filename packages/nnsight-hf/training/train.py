"""Train the toy model and write the files that the package ships.

    python train.py [--out DIR] [--steps N]

Everything is drawn from fixed seeds on two threads, so a second run on the same machine and torch gives the same
weights; it takes a few minutes on two cores. What the model learned is then found out by `measure.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

# Read when torch is loaded. Threads that spin while they wait make this ten times slower on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from corpus import documents

TOY = Path(__file__).parent.parent / "src" / "nnsight_hf" / "toy"
END, PAD = "<|endoftext|>", "<|pad|>"
# At this width GPT-2's own initializer range, 0.02, makes the facts come several times later.
SHAPE = {"n_layer": 6, "n_embd": 128, "n_head": 4, "n_positions": 256, "initializer_range": 0.05}
STEPS, BATCH, CHUNK, RATE = 1400, 32, 64, 3e-3
SEED, THREADS = 2024, 2


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Learn a byte-level BPE; the corpus has so few words that nearly each becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def batches(tokenizer: Tokenizer, steps: int) -> Iterator[torch.Tensor]:
    """Give right-padded [rows, length] batches; rows of one batch are of similar length, to waste little on padding."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    rng = random.Random(SEED)
    texts = documents(steps * BATCH, seed=SEED)
    for start in range(0, steps, CHUNK):
        count = min(CHUNK, steps - start)
        rows = [[*e.ids, end] for e in tokenizer.encode_batch([next(texts) for _ in range(count * BATCH)])]
        rows = [[end, *row] if rng.random() < 0.1 else row for row in rows]  # some callers put a first token in front
        rows.sort(key=len)
        order = list(range(count))
        rng.shuffle(order)
        for index in order:
            chosen = rows[index * BATCH : (index + 1) * BATCH]
            width = max(map(len, chosen))
            yield torch.tensor([row + [pad] * (width - len(row)) for row in chosen])


def train(tokenizer: Tokenizer, steps: int) -> GPT2LMHeadModel:
    """Train the model for `steps` batches with AdamW, a warm-up and a cosine decay."""
    torch.manual_seed(SEED)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), **SHAPE,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=end, eos_token_id=end, pad_token_id=None, loss_type="ForCausalLM",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    rng = random.Random(SEED + 1)
    began = time.perf_counter()
    for step, ids in enumerate(batches(tokenizer, steps)):
        # A part of the batches stands later in the text, so that every position embedding is trained.
        offset = rng.randrange(config.n_positions - ids.shape[1]) if rng.random() < 0.2 else 0
        positions = torch.arange(offset, offset + ids.shape[1])[None]
        labels = ids.masked_fill(ids == pad, -100)
        loss = model(input_ids=ids, position_ids=positions, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - began:6.1f} s", flush=True)
    return model.eval()


def write(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> str:
    """Write the folder that `from_pretrained` reads and return the sha256 of the weights.

    The JSON files are written here and not by `save_pretrained`, whose newest form older transformers cannot read.
    """
    out.mkdir(parents=True, exist_ok=True)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float32",
        "vocab_size": tokenizer.get_vocab_size(), **SHAPE, "n_inner": None, "activation_function": "gelu_new",
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "use_cache": True, **ends,
    }  # fmt: skip
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": SHAPE["n_positions"], "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": False,
        "bos_token": END, "eos_token": END, "unk_token": END, "pad_token": PAD,
    }  # fmt: skip
    tokenizer.save(str(out / "tokenizer.json"))
    for name, value in [
        ("config.json", config),
        ("tokenizer_config.json", names),
        ("special_tokens_map.json", {k: v for k, v in names.items() if k.endswith("_token")}),
        ("generation_config.json", {**ends, "do_sample": False}),
    ]:
        (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    tied = {"lm_head.weight"}  # the same tensor as transformer.wte.weight
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k not in tied}
    content = save(weights, metadata={"format": "pt"})
    (out / "model.safetensors").write_bytes(content)  # `save_file` would let its owner alone read it
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TOY)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    began, worked = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer(documents(20_000, seed=SEED))
    model = train(tokenizer, options.steps)
    digest = write(model, tokenizer, options.out)
    wall, cpu = time.perf_counter() - began, time.process_time() - worked
    print(f"{model.num_parameters()} parameters, {wall:.0f} s ({cpu:.0f} s of processor), sha256 {digest}")


if __name__ == "__main__":
    main()
