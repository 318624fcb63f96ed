"""What this package refuses on its own account. A server answers these as mistakes of the sender: they are ValueErrors."""

from __future__ import annotations

from nnsight import NNsightError


class PromptTooLongError(NNsightError, ValueError):
    """A prompt has to be seen whole, and has more tokens than the engine takes in one step."""


class StandingError(NNsightError, ValueError):
    """A request asks for a standing edit that there is not, or one cannot be installed."""
