"""Notes: what the values of a family keep for one body between one site and the next.

A value may be more than what lies at its own site: a sum with a term that passed before, a shape that only an earlier site
shows. What is needed of there is noted when that site is passed, and is there for as long as the body stays in its step.
"""

from __future__ import annotations

from typing import Any

from .active import mediator_for
from .tree import Node


def notes(envoy: Node) -> dict[Any, Any]:
    """Return the notes of the body at work, which are empty when it comes to another step.

    Every body (each invoke, each edit) has notes of its own, and they end with its run.

    Args:
        envoy: an envoy of the model that is being traced.

    Raises:
        NoTraceError: no trace of that model is open.
    """
    mediator = mediator_for(envoy._place())
    if mediator.noted is None or mediator.noted[0] != mediator.step:
        mediator.noted = mediator.step, {}
    return mediator.noted[1]
