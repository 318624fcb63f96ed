"""What the oracle says, as a table: for a terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from nnsight_hf.oracle.checks import CHECKS
from nnsight_hf.oracle.exceptions import FAILS, UNBUILT
from nnsight_hf.oracle.run import Answer

#: How a verdict is shown.
MARKS = {"holds": "✓", "fails": "✗", "refused": "alone"}


def terminal(answers: Iterable[Answer], checks: Sequence[str] = tuple(CHECKS)) -> Table:
    """Return a table for a terminal."""
    colours = {"holds": "green", "fails": "red", "refused": "yellow"}
    table = Table("architecture", *checks)
    for answer in answers:
        if answer.unbuilt is not None:
            table.add_row(answer.architecture, "[dim]cannot be built[/]")
        else:
            kinds = [answer.verdicts[name].kind for name in checks]
            table.add_row(answer.architecture, *(f"[{colours[kind]}]{MARKS[kind]}[/]" for kind in kinds))
    return table


def summary(answers: Sequence[Answer]) -> str:
    """Return how many there are and how many pass, in one line."""
    built = [answer for answer in answers if answer.unbuilt is None]
    passing = sum(answer.passes for answer in built)
    share = f" ({passing / len(built):.1%})" if built else ""
    return f"{len(answers)} architectures, {len(built)} can be built, {passing} pass every check{share}."


def page(answers: Sequence[Answer]) -> str:
    """Return the table in Markdown, with the causes of what does not hold."""
    lines = [
        f"{summary(answers)}",
        "",
        "| architecture | " + " | ".join(CHECKS) + " |",
        "|---" * (len(CHECKS) + 1) + "|",
    ]
    for answer in answers:
        if answer.unbuilt is None:
            marks = [MARKS[answer.verdicts[name].kind] for name in CHECKS]
            lines.append(f"| `{answer.architecture}` | " + " | ".join(marks) + " |")
    lines += ["", "## What does not hold", ""]
    lines += [f"- `{name}`: {check}: {why}." for name, fails in sorted(FAILS.items()) for check, why in fails.items()]
    lines += ["", "## What cannot be built", ""]
    lines += [f"- `{name}`: {why}." for name, why in sorted(UNBUILT.items())]
    return "\n".join(lines) + "\n"
