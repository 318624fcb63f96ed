"""`python -m nnsight_hf.oracle`: ask about every architecture of the installed transformers, and show the table."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path

import transformers
from rich.console import Console
from rich.progress import track

from nnsight_hf.oracle import table, zoo
from nnsight_hf.oracle.checks import CHECKS
from nnsight_hf.oracle.run import ask


def main() -> int:
    """Ask, print, and return the exit status: 1 if something differs from what is known."""
    parser = argparse.ArgumentParser(prog="python -m nnsight_hf.oracle", description=__doc__)
    parser.add_argument("--only", metavar="REGEX", default="", help="architectures whose model type matches")
    parser.add_argument("--check", action="append", choices=CHECKS, help="this check alone; may be repeated")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table of the documentation here")
    given = parser.parse_args()
    if given.page is not None and (given.only or given.check):
        parser.error("--page needs all architectures and all checks")

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    console = Console()
    chosen = [name for name in zoo.architectures() if re.search(given.only, name)]
    checks = tuple(given.check or CHECKS)
    answers = [ask(name, checks) for name in track(chosen, "asking", console=console, transient=True)]
    console.print(table.terminal(answers, checks))
    for answer in answers:
        for verdict in answer.verdicts.items():
            if verdict[1].kind != "holds":
                console.print(f"{answer.architecture}: {verdict[0]} {verdict[1].kind}: {verdict[1].why}", markup=False)
    console.print(table.summary(answers))
    news = [f"{answer.architecture}: {line}" for answer in answers for line in answer.news()]
    for line in news:
        console.print(f"not as known: {line}", markup=False)
    if given.page is not None:
        given.page.write_text(table.page(answers), encoding="utf-8")
    return 1 if news else 0


if __name__ == "__main__":
    raise SystemExit(main())
