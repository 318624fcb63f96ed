"""What a function's source looks like with its operations beside it."""

from __future__ import annotations

import source_examples

from nnsight._core.source.printing import around, listing
from nnsight._core.source.rewrite import rewrite


class Attention:
    def forward(self, x):
        """Attend.

        Less indented than the rest.
        """
        q, k = self.c_attn(x).split(self.width, dim=2)
        x = self.c_proj(q @ k); x = self.drop(x)  # noqa: E702  # fmt: skip
        return self.attend(
            x,
            *[self.norm(x)],
        ).view(-1)


def test_every_operation_stands_before_its_line():
    rewritten = rewrite(Attention.forward)
    head, empty, *rows = listing(rewritten).splitlines()
    assert "Attention.forward" in head and __file__ in head and str(rewritten.first_line) in head and not empty
    named = {row.split()[0]: row for row in rows if "->" in row}
    assert list(named) == [
        *("self_c_attn_0", "split_0", "self_c_proj_0", "self_drop_0", "self_attend_0", "self_norm_0", "view_0"),
    ]
    for name, code in (
        ("self_c_attn_0", "q, k = self.c_attn(x).split(self.width, dim=2)"),
        ("split_0", ".split(self.width, dim=2)"),
        ("self_c_proj_0", "x = self.c_proj(q @ k); x = self.drop(x)"),
        ("self_drop_0", "self.drop(x)"),
        ("self_attend_0", "return self.attend("),
        ("self_norm_0", "*[self.norm(x)],"),
        ("view_0", ").view(-1)"),
    ):
        name_, arrow, number, rest = named[name].split(maxsplit=3)
        assert arrow == "->" and rest.startswith(code)
        assert number in ("+", str(rewritten.by_name[name].lineno))


def test_the_code_is_shown_whole_and_in_its_columns():
    rewritten = rewrite(source_examples.failing)
    rows = [row for row in listing(rewritten).splitlines()[2:] if " + " not in row]
    margin = rows[0].index("def failing")
    assert [row[margin:] for row in rows] == [line.rstrip() for line in rewritten.lines]
    assert [int(row[:margin].split()[-1]) for row in rows] == list(
        range(rewritten.first_line, rewritten.first_line + len(rewritten.lines))
    )


def test_a_long_name_stands_above_its_line_and_does_not_widen_the_margin():
    def function(self, x):
        y = self.projection_of_the_attention_of_the_encoder(x)
        return y.sum()

    rows = listing(rewrite(function)).splitlines()[2:]
    assert rows[1] == " self_projection_of_the_attention_of_the_encoder_0"
    assert rows[2].split("->")[0].strip() == "" and rows[2].endswith("encoder(x)")
    assert rows[3].startswith(" y_sum_0 -> ") and rows[2].index("->") == rows[3].index("->")


def test_around_one_operation():
    rewritten = rewrite(Attention.forward)
    text = around(rewritten, rewritten.by_name["self_attend_0"])
    assert text.startswith("self_attend_0 in Attention.forward") or "self_attend_0" in text.splitlines()[0]
    rows = text.splitlines()
    first = next(at for at, row in enumerate(rows) if row.startswith("-->"))
    assert rows[first].endswith("return self.attend(")
    assert rows[first + 3] == "        ).view(-1) <--" and text.count("<--") == text.count("-->") == 1
    one_line = around(rewritten, rewritten.by_name["self_drop_0"])
    assert next(row for row in one_line.splitlines() if "-->" in row).startswith("-->     x = self.c_proj(q @ k);")


def test_a_function_without_operations():
    def function(x):
        return x

    assert listing(rewrite(function)).splitlines()[-1].endswith("return x")
