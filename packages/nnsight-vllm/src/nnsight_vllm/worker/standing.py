"""Standing edits where the model is: decoded once, kept by name, and begun in each request that has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnsight.plugin import NNsight, decode_edits

from ..errors import StandingError
from ..fields import SALT, STANDING, names_in


@dataclass(frozen=True)
class Kept:
    """An edit (or several, that were made of one another), and the digest of the bytes it came in."""

    digest: str
    edits: list[Any]


class KeptEdits:
    """The standing edits of one worker.

    Args:
        model: the model as bodies see it.
    """

    def __init__(self, model: NNsight) -> None:
        self.model = model
        self.kept: dict[str, Kept] = {}

    def install(self, name: str, digest: str, data: bytes) -> None:
        """Take in an edit, in place of what had its name."""
        self.kept[name] = Kept(digest, decode_edits(data, self.model))

    def uninstall(self, name: str) -> None:
        """Forget an edit. Requests that have begun with it keep it."""
        self.kept.pop(name, None)

    def of(self, extra: Mapping[str, Any]) -> tuple[list[Any], Exception | None]:
        """Return the edits that a request has; or none and why, if one is not there or is another than it was."""
        if STANDING not in extra and SALT not in extra:
            return [], None
        try:
            names = names_in(extra)
        except TypeError as error:  # of a sender that no front end of ours has looked at
            return [], error
        gone = [name for name in names if name not in self.kept]
        if gone:
            said = f"The edit {gone[0]!r} is not installed, or was removed before this request began."
            return [], StandingError(said)
        chosen = [self.kept[name] for name in names]
        if SALT in extra and extra[SALT] != "+".join(one.digest for one in chosen):
            said = f"One of the edits {names} was replaced before this request began. Send it again."
            return [], StandingError(said)
        return [edit for one in chosen for edit in one.edits], None
