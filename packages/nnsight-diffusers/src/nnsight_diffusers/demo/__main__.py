"""Run the demo: `python -m nnsight_diffusers.demo`. What it shows is in the files beside this one."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from nnsight import DiffusionModel

PARTS = ("trajectory", "blocks", "words")


def main(arguments: list[str] | None = None) -> None:
    """Show the parts in the terminal, and write their figures."""
    begin = time.perf_counter()
    options = _options(arguments)
    _check()
    from rich.console import Console

    from .terminal import show

    console = Console()
    model = DiffusionModel("nnsight/toy-shapes", dispatch=True)
    console.print(
        f"A toy Stable Diffusion of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, trained on "
        "images of one coloured shape. It comes with the package; nothing is downloaded. What is seen in it need not hold "
        "in a real diffusion model.\n",
        highlight=False,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(options.parts or PARTS, start=1):
        part = import_module(f"nnsight_diffusers.demo.{name}").part(model)
        show(part, number, console)
        part.figure.savefig(options.out / f"{name}.png", dpi=130)
    console.rule(characters="-")
    console.print(
        f"The figures: {options.out}/. Each part is a short file in {Path(__file__).parent}. "
        f"({time.perf_counter() - begin:.0f} s)",
        highlight=False,
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nnsight_diffusers.demo", description="Look at how a small diffusion model draws, offline."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"show only these: {', '.join(PARTS)}")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nnsight-demo-diffusion"),
        help="where the figures go (./nnsight-demo-diffusion)",
    )
    options = parser.parse_args(arguments)
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; there are {', '.join(PARTS)}")
    return options


def _check() -> None:
    missing = [name for name in ("matplotlib", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(
            f'The demo draws with {" and ".join(missing)}, not installed here: pip install "nnsight-diffusers[demo]"'
        )


if __name__ == "__main__":
    main()
