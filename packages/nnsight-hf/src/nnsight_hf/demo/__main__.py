"""Run the demo: `python -m nnsight_hf.demo`. What it shows is in the files beside this one."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from nnsight import LanguageModel

PARTS = ("lens", "patching", "steering", "gradients", "timing")


def main(arguments: list[str] | None = None) -> None:
    """Show the parts in the terminal, and write their figures."""
    begin = time.perf_counter()
    options = _options(arguments)
    _check()
    from rich.console import Console

    from .terminal import show

    console = Console()
    # In a model this small, more threads than one only wait for each other; `timing.py` relies on there being one.
    torch.set_num_threads(1)
    model = LanguageModel("nnsight/toy-landmarks", dispatch=True)
    console.print(
        f"A toy GPT-2 of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters and "
        f"{len(model.transformer.h)} blocks, trained on made-up sentences about landmarks and cities. It comes with "
        "the package; nothing is downloaded. What is seen in it need not hold in a real language model.\n",
        highlight=False,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(options.parts or PARTS, start=1):
        part = import_module(f"nnsight_hf.demo.{name}").part(model)
        show(part, number, console)
        part.figure.savefig(options.out / f"{name}.png", dpi=130)
    console.rule(characters="-")
    console.print(
        f"Figures of the same numbers: {options.out}/. Each part is a short file in {Path(__file__).parent}. "
        f"({time.perf_counter() - begin:.0f} s)",
        highlight=False,
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nnsight_hf.demo", description="Look inside a small language model, offline."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"show only these: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("nnsight-demo"), help="where the figures go (./nnsight-demo)")
    options = parser.parse_args(arguments)
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    return options


def _check() -> None:
    missing = [name for name in ("matplotlib", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(f'The demo draws with {" and ".join(missing)}, not installed here: pip install "nnsight-hf[demo]"')


if __name__ == "__main__":
    main()
