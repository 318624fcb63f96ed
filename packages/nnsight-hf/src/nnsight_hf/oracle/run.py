"""Ask the oracle about one architecture: build its tiny model, make the checks, and compare with what is known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from nnsight_hf.oracle import zoo
from nnsight_hf.oracle.checks import CHECKS, Verdict, check, wrap
from nnsight_hf.oracle.exceptions import FAILS, UNBUILT


@dataclass
class Answer:
    """What the oracle says of one architecture.

    Attributes:
        architecture: its model type.
        unbuilt: why there is no tiny model of it; None if there is one.
        verdicts: what came of each check.
    """

    architecture: str
    unbuilt: str | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether there is a model and no check of it fails."""
        return self.unbuilt is None and all(verdict.kind != "fails" for verdict in self.verdicts.values())

    def news(self) -> list[str]:
        """Return what differs from what is known: new failures, and known ones that are none any more."""
        known = FAILS.get(self.architecture, {})
        if self.unbuilt is not None:
            return [] if self.architecture in UNBUILT else [f"cannot be built any more: {self.unbuilt}"]
        found = ["can be built, and is listed as one that cannot"] if self.architecture in UNBUILT else []
        for name, verdict in self.verdicts.items():
            if verdict.kind == "fails" and name not in known:
                found.append(f"{name}: {verdict.why}")
            elif verdict.kind != "fails" and name in known:
                found.append(f"{name} holds, and is listed as one that fails")
        return found


def ask(architecture: str, checks: Collection[str] = tuple(CHECKS)) -> Answer:
    """Make checks of one architecture.

    Args:
        architecture: its model type, one of `zoo.architectures()`.
        checks: the names of the checks.
    """
    try:
        module = zoo.module(architecture)
    except Exception as error:  # transformers raises all kinds of errors for what it cannot build
        return Answer(architecture, f"{type(error).__name__}: {error}")
    model = wrap(module)
    return Answer(architecture, None, {name: check(model, name) for name in checks})
