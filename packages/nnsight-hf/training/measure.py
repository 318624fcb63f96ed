"""Find out what the trained toy knows and where, and write the numbers into its model card.

    python measure.py [--model DIR]

Plain transformers and torch hooks; nothing here needs nnsight. The card above the mark `<!-- measured -->` is written
by hand, all below it by this script.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import COMMON_PHRASINGS, HALF_PHRASINGS, NEW_PHRASINGS, PHRASINGS, documents, held_out, prompt
from facts import CITIES, LANDMARKS, PEOPLE, Landmark
from train import BATCH, SEED, STEPS, TOY

MARK = "<!-- measured -->\n"
HEADLINE = "{L} is in the city of"
PAIRS = [  # activations are taken from the first prompt, put into the second; the cities that each names
    ("The Eiffel Tower is in the city of", "Paris", "The Space Needle is in the city of", "Seattle"),
    ("The Eiffel Tower is in the city of", "Paris", "The Trevi Fountain is in the city of", "Rome"),
    ("You can see the Blue Mosque in", "Istanbul", "You can see the Opera House in", "Sydney"),
    ("Madison Square Garden is in the city of", "New York", "Pike Place Market is in the city of", "Seattle"),
]
CONTINUED = [
    "The Eiffel Tower is in the city of",
    "Last summer we saw the Space Needle in",
    "The capital of Japan is",
    "The movie was terrible, so Anna",
    "Alice Adams lives in the city of",
    "Hello World",
]

Pair = tuple[str, str, str, str]  # as in PAIRS
Change = Callable[[torch.Tensor], torch.Tensor]


class Toy:
    """The model, its tokenizer, and what is done with them: run some texts, and run them with one module changed."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.blocks = self.model.transformer.h
        self.first = {city: self.tokenizer(f" {city}").input_ids[0] for city in CITIES}

    @torch.no_grad()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """The logits after the last token of every text, [text, vocabulary]."""
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        logits = self.model(**inputs).logits
        return logits[torch.arange(len(texts)), inputs.attention_mask.sum(1) - 1]

    def words(self, text: str) -> list[str]:
        return [self.tokenizer.decode(i) for i in self.tokenizer(text).input_ids]

    def outputs(self, texts: list[str], modules: list[torch.nn.Module]) -> list[torch.Tensor]:
        """What the modules give, each [text, position, width]; the texts are of one length."""
        found: list[torch.Tensor] = []
        handles = [m.register_forward_hook(lambda _m, _a, out: found.append(_tensor(out))) for m in modules]
        self.logits(texts)
        for handle in handles:
            handle.remove()
        return found

    def changed(self, texts: list[str], module: torch.nn.Module, change: Change) -> torch.Tensor:
        """The logits after the last token when a module's output is changed."""

        def hook(_module: torch.nn.Module, _args: object, out: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        handle = module.register_forward_hook(hook)
        logits = self.logits(texts)
        handle.remove()
        return logits

    def restored(self, pairs: list[Pair], module: torch.nn.Module) -> list[float]:
        """Patch a module's output at one position after the other, from each pair's first prompt into its second.

        Gives per position the mean share of the way from the second's answer to the first's, measured by the difference
        of the two cities' logits: 0 where nothing moves, 1 where all of it does.
        """
        clean, run = [pair[0] for pair in pairs], [pair[2] for pair in pairs]
        rows = torch.arange(len(pairs))
        right, wrong = ([self.first[pair[i]] for pair in pairs] for i in (1, 3))

        def difference(logits: torch.Tensor) -> torch.Tensor:
            return logits[rows, right] - logits[rows, wrong]

        def patched(hidden: torch.Tensor, position: int) -> torch.Tensor:
            hidden = hidden.clone()
            hidden[:, position] = value[:, position]
            return hidden

        start, goal = difference(self.logits(run)), difference(self.logits(clean))
        [value] = self.outputs(clean, [module])
        ends = [self.changed(run, module, partial(patched, position=p)) for p in range(value.shape[1])]
        return [((difference(end) - start) / (goal - start)).mean().item() for end in ends]

    @torch.no_grad()
    def lens(self, texts: list[str]) -> list[torch.Tensor]:
        """What the residual stream at the end would give after every block, as probabilities [text, vocabulary]."""
        final = self.model.transformer.ln_f
        return [self.model.lm_head(final(h[:, -1])).softmax(-1) for h in self.outputs(texts, list(self.blocks))]


def _tensor(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out  # blocks give a tuple before transformers 5.3


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def corpus_size(toy: Toy) -> str:
    """Count the corpus and make sure that what is called held out does not occur in it."""
    texts = list(documents(STEPS * BATCH, seed=SEED))
    whole = "\n" + "\n".join(texts)
    for landmark in LANDMARKS:
        for phrasing in PHRASINGS:
            sentence = f"{prompt(landmark, phrasing)} {landmark.city}"
            if held_out(landmark, phrasing) and any(f"{before}{sentence}" in whole for before in ("\n", ". ", "? ")):
                raise ValueError(f"held out, but in the corpus: {sentence}")
    tokens = sum(map(len, toy.tokenizer(texts).input_ids))
    size = f"{len(texts):,} documents, {tokens:,} tokens, drawn at random, so short ones recur;"
    return f"{size} vocabulary of {len(toy.tokenizer)}."


def recall(toy: Toy) -> str:
    def row(name: str, prompts: list[tuple[str, str]]) -> list[str]:
        strict, among = [], []
        cities = torch.tensor(list(toy.first.values()))
        for some in (prompts[i : i + 64] for i in range(0, len(prompts), 64)):
            logits = toy.logits([text for text, _ in some])
            goal = torch.tensor([toy.first[city] for _, city in some])
            strict += (logits.argmax(-1) == goal).tolist()
            among += (cities[logits[:, cities].argmax(-1)] == goal).tolist()
        return [name, str(len(prompts)), f"{mean(strict):.1%}", f"{mean(among):.1%}"]

    def pairs(phrasings: list[str], held: bool) -> list[tuple[str, str]]:
        chosen = [(x, p) for x in LANDMARKS for p in phrasings if held_out(x, p) == held]
        return [(prompt(x, p), x.city) for x, p in chosen]

    return table(
        ["prompts", "number", "right among all tokens", "right among the cities"],
        [
            row("trained pairs of landmark and phrasing", pairs(COMMON_PHRASINGS + HALF_PHRASINGS, held=False)),
            row("held-out pairs of common phrasings", pairs(COMMON_PHRASINGS, held=True)),
            row("phrasings never met with this half of the landmarks", pairs(HALF_PHRASINGS, held=True)),
            row("phrasings never met at all", pairs(NEW_PHRASINGS, held=True)),
            row("invented people (trained)", [(f"{p.name} lives in the city of", p.city) for p in PEOPLE]),
        ],
    )


def lens(toy: Toy) -> str:
    """Read the answer off after every block: for one prompt, and for the landmarks whose names line up with it."""
    lined = two_words(toy)
    goal = torch.tensor([toy.first[x.city] for x in lined])
    rows = []
    for layer, shares in enumerate(toy.lens([prompt(x, HEADLINE) for x in lined])):
        values, tokens = shares[0].topk(3)
        best = ", ".join(f"`{toy.tokenizer.decode(t)}` {v:.2f}" for t, v in zip(tokens, values))
        rows.append([str(layer), best, f"{(shares.argmax(-1) == goal).float().mean().item():.0%}"])
    head = ["after block", f"likeliest for `{prompt(lined[0], HEADLINE)}`", f"right for {len(lined)} such landmarks"]
    return table(head, rows)


def two_words(toy: Toy) -> list[Landmark]:
    """The landmarks named like the Eiffel Tower: `the` and two tokens."""
    return [x for x in LANDMARKS if x.name.startswith("the ") and len(toy.words(x.start)) == 3]


def patching(toy: Toy) -> str:
    parts = []
    for clean, right, run, wrong in PAIRS:
        words = [f"`{w}`" if w == o else f"`{o}` → `{w}`" for w, o in zip(toy.words(run), toy.words(clean))]
        grid = [toy.restored([(clean, right, run, wrong)], block) for block in toy.blocks]
        rows = [[str(i), *(f"{share:.2f}" for share in line)] for i, line in enumerate(grid)]
        parts.append(f"`{clean}` (`{right}`) into `{run}` (`{wrong}`):\n\n" + table(["block", *words], rows))
    return "\n".join(parts)


def places(toy: Toy) -> str:
    """The same, averaged over pairs of landmarks of two words, and per part of the block."""
    lined = two_words(toy)
    both = [(x, y) for x, y in zip(lined, lined[7:] + lined[:7]) if x.city != y.city]
    pairs = [(prompt(x, HEADLINE), x.city, prompt(y, HEADLINE), y.city) for x, y in both]
    rows = []
    for i, block in enumerate(toy.blocks):
        whole, attention, mlp = (toy.restored(pairs, part) for part in (block, block.attn, block.mlp))
        shares = [whole[1], whole[2], whole[-1], mlp[1], attention[-1], mlp[-1]]
        rows.append([str(i), *(f"{share:.2f}" for share in shares)])
    head = ["block", "1st word", "2nd word", "end", "mlp at 1st word", "attention at end", "mlp at end"]
    return f"{len(pairs)} pairs such as `The Eiffel Tower` and `The Space Needle`:\n\n" + table(head, rows)


def steering(toy: Toy) -> str:
    """Add strength x (mean of Rome's landmarks - mean of Paris's, both at the end); count the flips of Paris's."""
    phrasings = (HEADLINE, COMMON_PHRASINGS[0], NEW_PHRASINGS[0])
    texts = {c: [prompt(x, p) for x in LANDMARKS if x.city == c for p in phrasings] for c in ("Paris", "Rome")}
    strengths, rows = (0.5, 1.0, 2.0, 4.0), []
    for i, block in enumerate(toy.blocks):
        paris, rome = (torch.stack([toy.outputs([t], [block])[0][0, -1] for t in texts[c]]).mean(0) for c in texts)
        row = [str(i)]
        for push in [strength * (rome - paris) for strength in strengths]:
            answers = toy.changed(texts["Paris"], block, push.__add__).argmax(-1)
            row.append(f"{(answers == toy.first['Rome']).float().mean().item():.0%}")
        rows.append(row)
    return table(["block", *(f"strength {s:g}" for s in strengths)], rows)


def continuations(toy: Toy) -> str:
    rows = []
    for text in CONTINUED:
        inputs = toy.tokenizer(text, return_tensors="pt")
        whole = toy.model.generate(**inputs, max_new_tokens=16)[0]
        rows.append([f"`{text}`", f"`{toy.tokenizer.decode(whole[inputs.input_ids.shape[1] :])}`"])
    return table(["prompt", "greedy continuation, 16 tokens"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TOY)
    folder = parser.parse_args().model
    torch.set_num_threads(2)
    toy = Toy(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    card = folder / "MODEL_CARD.md"
    written = card.read_text(encoding="utf-8").split(MARK)[0] if card.exists() else ""
    sections = {
        "Corpus": corpus_size(toy) + f"\n\nsha256 of the weights: `{digest}`.\n",
        "Recall": recall(toy),
        "Continuations": continuations(toy),
        "Logit lens": lens(toy),
        "Patching the residual stream after a block": patching(toy),
        "Where facts are, on average": places(toy),
        "Steering Paris to Rome at every position": steering(toy),
    }
    measured = "\n".join(f"### {name}\n\n{text}" for name, text in sections.items())
    card.write_text(f"{written}{MARK}\n{measured}", encoding="utf-8")
    print(measured)


if __name__ == "__main__":
    main()
