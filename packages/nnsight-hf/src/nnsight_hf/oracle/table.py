"""What the oracle says, as a table: for a terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import transformers
from rich.table import Table

from nnsight_hf.oracle.checks import CHECKS
from nnsight_hf.oracle.exceptions import FAILS, PADDED, UNBUILT
from nnsight_hf.oracle.run import Answer

#: How a verdict is shown.
MARKS = {"holds": "✓", "fails": "✗", "refused": "alone", "lacks": "some"}


def terminal(answers: Iterable[Answer], checks: Sequence[str] = tuple(CHECKS)) -> Table:
    """Return a table for a terminal."""
    colours = {"holds": "green", "fails": "red", "refused": "yellow", "lacks": "yellow"}
    table = Table("architecture", *checks)
    for answer in answers:
        if answer.unbuilt is not None:
            table.add_row(answer.architecture, "[dim]cannot be built[/]")
        else:
            kinds = [answer.verdicts[name].kind for name in checks]
            table.add_row(answer.architecture, *(f"[{colours[kind]}]{MARKS[kind]}[/]" for kind in kinds))
    return table


def summary(answers: Sequence[Answer]) -> str:
    """Return how many there are, how many fail nothing, and how many of those were refused nothing and lack no name."""
    built = [answer for answer in answers if answer.unbuilt is None]
    passing = [answer for answer in built if answer.passes]
    whole = sum(all(verdict.kind == "holds" for verdict in answer.verdicts.values()) for answer in passing)
    share = f" ({len(passing) / len(built):.1%})" if built else ""
    return (
        f"{len(answers)} architectures, {len(built)} can be built, {len(passing)} fail no check{share}; "
        f"of these, {whole} are refused nothing and lack no name."
    )


HEAD = """# Architectures

What the oracle found for every architecture of causal language models that transformers {version} knows: a tiny model of
each, with random weights, is run through nnsight and through plain hooks, and the two are compared.

| column | what holds |
|---|---|
| `trace` | the inputs and outputs of every module are what hooks see |
| `batched` | prompts of different lengths share one forward, and each gets at every module what it gets alone |
| `generate` | a generation gives the tokens that transformers gives |
| `together` | prompts of different lengths are continued in one batch as they are alone |
| `edit` | an edit does what a hook does, and in an invoke leaves the others alone |
| `scan` | a scan gives the shapes of a run |
| `names` | the sums that the [standard names](../how-to/standard-names.md) stand for come out, down to the logits |

✓ holds. ✗ does not; the cause is below. *alone*: the model cannot take such prompts in one batch, and nnsight raises an error
that says so. *some*: not every standard name can be given truthfully; `print(model.standard)` says which are absent, and why.
A name for a part that a layer has not got (attention, in a state-space layer) is not counted as lacking where the sums come
out without it.

Made by `python -m nnsight_hf.oracle --page docs/reference/architectures.md`; the tests ask the same of every architecture.
"""


def page(answers: Sequence[Answer]) -> str:
    """Return the page of the documentation: the table, and the causes of what does not hold."""
    lines = [
        HEAD.format(version=transformers.__version__),
        summary(answers),
        "",
        "| architecture | " + " | ".join(f"`{name}`" for name in CHECKS) + " |",
        "|---" * (len(CHECKS) + 1) + "|",
    ]
    for answer in answers:
        if answer.unbuilt is None:
            marks = [MARKS[answer.verdicts[name].kind] for name in CHECKS]
            lines.append(f"| `{answer.architecture}` | " + " | ".join(marks) + " |")
    lines += ["", "## What does not hold", ""]
    lines += [f"- `{name}`: {check}: {why}." for name, fails in sorted(FAILS.items()) for check, why in fails.items()]
    lines += ["", "In a batch with padding these values are not what they are alone, though the logits are:", ""]
    lines += [f"- `{name}`: `{what}`: {why}." for name, parts in sorted(PADDED.items()) for what, why in parts.items()]
    lines += ["", "## What cannot be built", ""]
    lines += [f"- `{name}`: {why}." for name, why in sorted(UNBUILT.items())]
    return "\n".join(lines) + "\n"
