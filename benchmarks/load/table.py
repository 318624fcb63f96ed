"""The figures of a load run, as a table and as JSON, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alone import Alone
from crowd import Crowd
from rich.console import Console
from rich.table import Table
from turns import Turns

#: MiB by which a process may grow during a thousand jobs, once the first tenth of the jobs is over.
GROWTH_MIB = 4.0
#: Fewer jobs than this say nothing about growth: an allocator takes its steps by the MiB.
_ENOUGH = 200


@dataclass(frozen=True)
class Load:
    """All three parts of a run."""

    alone: Alone
    crowd: Crowd
    turns: Turns

    @property
    def wrong(self) -> list[str]:
        """What must not have happened, in words."""
        found = [*self.crowd.wrong, *self.turns.wrong]
        for what in ("server", "host"):
            early, late, between = self._growth(what)
            if between >= _ENOUGH and late - early > GROWTH_MIB * between / 1000:
                found.append(f"the {what}'s memory grew from {early:.1f} to {late:.1f} MiB over {between} jobs")
        return found

    def _growth(self, what: str) -> tuple[float, float, int]:
        return self.crowd.watch.growth(what, self.crowd.jobs // 10)

    def figures(self) -> dict[str, Any]:
        """All numbers, by name; times in milliseconds, memory in MiB."""
        crowd, turns, alone = self.crowd, self.turns, self.alone
        return {
            "clients": crowd.clients,
            "jobs": crowd.jobs,
            "wrong": self.wrong,
            "seconds": crowd.seconds,
            "jobs per second": crowd.jobs / crowd.seconds,
            "latency": {f"{100 * part:g}%": 1e3 * crowd.percentile(part) for part in (0.5, 0.9, 0.99, 1.0)},
            "memory of the server": dict(zip(("early", "late", "jobs between"), self._growth("server"))),
            "memory of the model's process": dict(zip(("early", "late", "jobs between"), self._growth("host"))),
            "most open files": crowd.watch.most("files"),
            "most threads": crowd.watch.most("threads"),
            "turns": {
                "greedy": turns.greedy,
                "alone": 1e3 * turns.alone,
                "beside": 1e3 * turns.beside,
                "most jobs between": turns.most_between,
            },
            "alone": {"here": alone.here, "there": alone.there, "shares": alone.shares},
        }


def show(load: Load) -> None:
    """Print the table."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    crowd, turns, alone = load.crowd, load.turns, load.alone
    wrong = load.wrong
    table = Table(title=f"{crowd.clients} clients, {crowd.jobs} jobs", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("of which")
    table.add_row("answers that are lost, or another's", str(len(crowd.wrong)), _mark(not crowd.wrong))
    table.add_row("jobs per second", f"{crowd.jobs / crowd.seconds:.1f}", f"{crowd.seconds:.1f} s altogether")
    percentiles = ", ".join(f"{100 * part:g}%: {crowd.percentile(part):.2f} s" for part in (0.9, 0.99, 1.0))
    table.add_row("latency, median", f"{crowd.percentile(0.5):.2f} s", percentiles)
    for what, name in (("server", "memory of the server"), ("host", "memory of the model's process")):
        early, late, between = load._growth(what)
        flat = not any(f"the {what}'s memory" in one for one in wrong)
        table.add_row(name, f"{late:.1f} MiB", f"{late - early:+.1f} MiB over {between} jobs {_mark(flat)}")
    table.add_row(
        "open files, threads of the server, at most", f"{crowd.watch.most('files')}, {crowd.watch.most('threads')}"
    )
    said = f"{1e3 * turns.alone:.0f} ms without; {turns.most_between} of those jobs went first at most"
    fair = turns.most_between <= 1
    table.add_row(
        f"latency beside a user with {turns.greedy} jobs", f"{1e3 * turns.beside:.0f} ms", f"{said} {_mark(fair)}"
    )
    table.add_row("a block here, median", f"{alone.here:.2f} ms")
    over = alone.there - alone.here
    shares = "\n".join(
        f"{name}: {spent:.1f} ms, {100 * spent / alone.there:.0f} %" for name, spent in alone.shares.items()
    )
    table.add_row("the same on the idle server, over that", f"{over:.2f} ms", shares)
    console.print(table)
    for one in wrong:
        console.print(f"[red]{one}[/]", markup=True)


def _mark(right: bool) -> str:
    return "[green]as it must be[/]" if right else "[red]wrong[/]"
