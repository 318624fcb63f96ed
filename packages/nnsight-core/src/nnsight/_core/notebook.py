"""How a wrapped model shows itself in a notebook: a tree that opens and closes, of plain HTML without a script.

What is drawn, and what is drawn once for many, is `printing.py`'s decision. Added are how many parameters a module has,
and in a tip under the pointer where it is, as one would write it. Everything stands open down to the first row of modules
that are alike: what is in one of them is a click away.

Colours are those of the notebook, only paler, so the tree can be read on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from torch.nn import Module
from torch.nn.parameter import is_lazy

from .printing import Drawing, Run, runs

_STYLE = """<style>
.nnsight-tree{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:12px;line-height:1.6;color:inherit}
.nnsight-tree summary{cursor:pointer}
.nnsight-tree summary:hover,.nnsight-tree .leaf:hover{background:rgba(127,127,127,.14)}
.nnsight-tree .in{margin-left:.45em;padding-left:1.1em;border-left:1px solid rgba(127,127,127,.3)}
.nnsight-tree .leaf{padding-left:1.05em}
.nnsight-tree .kind{font-weight:600}
.nnsight-tree .size,.nnsight-tree .more{opacity:.65}
.nnsight-tree .shape{margin-left:1em;padding:0 .4em;border-radius:3px;background:rgba(127,127,127,.14);white-space:nowrap}
.nnsight-tree pre{margin:0;background:none;color:inherit;font:inherit;white-space:pre-wrap}
</style>"""


def render_html(drawing: Drawing, path: str) -> str:
    """Write a drawing as HTML.

    Args:
        drawing: the outermost module, drawn.
        path: where it is in the model, dotted.
    """
    rows = "\n".join(_module(drawing, "", path, is_open=True))
    return f'{_STYLE}\n<div class="nnsight-tree">\n{rows}\n</div>'


def _run(run: Run, path: str, is_open: bool) -> Iterator[str]:
    names = run.name if run.times > 1 else run.first.name
    here = f"{path}[{names}]" if run.first.name.isdigit() else f"{path}.{names}"
    times = f"{run.times} × " if run.times > 1 else ""
    label = f"{escape(run.name)}: {times}"
    if run.drawing is None:
        yield f'<div class="leaf" title="{escape(here)}">{label}None</div>'
    else:
        yield from _module(run.drawing, label, here, is_open and run.times == 1)


def _module(drawing: Drawing, label: str, path: str, is_open: bool) -> Iterator[str]:
    head, *rest = drawing.head.split("\n") if drawing.closed else (drawing.head,)
    below = [*rest, *drawing.lines, *drawing.more]
    kind, bracket, rest_of_head = head.partition("(")
    row = f'{label}<span class="kind">{escape(kind)}</span>'
    if bracket:
        row += f'<span class="more">{escape(bracket + rest_of_head)}</span>'
    if len(below) == 1 and not drawing.children and not rest:
        row += f'<span class="more">({escape(below.pop())})</span>'
    row += (
        f' <span class="more">{escape(drawing.note.strip())}</span>' if drawing.note else _size(drawing.module, label)
    )
    if drawing.shapes:
        row += f' <span class="shape">{escape(drawing.shapes)}</span>'
    title = f'title="{escape(path)}"'
    if not below and not drawing.children:
        yield f'<div class="leaf" {title}>{row}</div>'
        return
    yield f'<details{" open" if is_open else ""}><summary {title}>{row}</summary><div class="in">'
    if below:
        text = "\n".join(below)
        yield f'<pre class="more">{escape(text)}</pre>'
    for run in runs(drawing.children):
        yield from _run(run, path, is_open)
    yield "</div></details>"


def _size(module: Module, label: str) -> str:
    """Write how many parameters a module has, with those below it, shared ones once; nothing where it has none."""
    parameters = list(module.parameters())
    if not parameters or any(is_lazy(parameter) for parameter in parameters):
        return ""
    number = sum(parameter.numel() for parameter in parameters)
    unit = "" if label else " parameters"  # said once, at the top
    return f' <span class="size" title="{number:,} parameters">{_short(number)}{unit}</span>'


def _short(number: int) -> str:
    """Write a number with three digits and a letter: 7.09M."""
    if number < 1000:
        return str(number)
    size, letters = number / 1000, iter("kMBT")
    letter = next(letters)
    while round(size, 1) >= 1000:
        size, letter = size / 1000, next(letters)
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{letter}"
