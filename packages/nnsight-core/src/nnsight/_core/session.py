"""A session: several traces that belong together.

Locally it groups them and lets values be saved between them; each trace runs where it stands. Sent elsewhere
(`backend=`), the whole block travels as one request, and its values never leave the other end in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import active as scopes

if TYPE_CHECKING:
    from .blocks import Body, Names
    from .sites import Place
    from .tree import Node


class Session:
    """Several traces in one block; made by `model.session()`."""

    members: frozenset[Place] = frozenset()

    def __init__(self, node: Node) -> None:
        self.model = node

    def mediator_for(self, place: Place) -> None:
        """Serve nothing: sites belong to the traces inside."""
        return

    def run_body(self, body: Body, names: Names) -> None:
        """Run a captured body as the block of this session."""
        with self as session:
            body.assign(names, session)
            body.run(names)

    def __enter__(self) -> Session:
        scopes.enter(self)
        return self

    def __exit__(self, *error: Any) -> None:
        scopes.leave(self)
