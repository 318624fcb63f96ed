"""Who takes part in one forward of an engine, and where the rows of each lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnsight.plugin import PlainLayout, Rows, ServedRun


class Batch:
    """The runs that take part in a forward.

    Args:
        runs: those of all requests that have one, by what the engine calls the requests.
        changes: what `Forwards.changes` is.
        requests: the requests in the forward, in the order of their rows.
        counts: how many tokens each has; None if each has one.
        layout: how rows lie in the values of its layers.

    Attributes:
        changes, requests, counts, layout: as they were given. Another forward with the same, and as many rows, is alike.
        names: the runs by what the engine calls their requests.
        rows: where those of each lie.
        even: whether each request has one row in all values of the forward.
    """

    def __init__(
        self,
        runs: Mapping[str, ServedRun],
        changes: int,
        requests: Sequence[str],
        counts: Sequence[int] | None,
        layout: PlainLayout,
    ) -> None:
        self.changes, self.requests, self.counts = changes, list(requests), counts if counts is None else list(counts)
        self.layout = layout
        self.names: dict[str, ServedRun] = {}
        self.rows: dict[ServedRun, Rows] = {}
        self.even = len(requests) == layout.total
        self._positions: dict[ServedRun, Rows] = {}
        self._later: PlainLayout | None = None
        at = 0
        for position, (request, count) in enumerate(zip(requests, counts or [1] * len(requests))):
            run = runs.get(request)
            if run is not None and not run.idle:
                self.names[request] = run
                self.rows[run] = (at, count)
                self._positions[run] = (position, 1)
            at += count

    def after_layers(self, count: int) -> tuple[dict[ServedRun, Rows], PlainLayout]:
        """Return where rows lie in values that have one for each of `count` requests, and how."""
        if self._later is None or self._later.total != count:
            self._later = PlainLayout(count)
        return self._positions, self._later
