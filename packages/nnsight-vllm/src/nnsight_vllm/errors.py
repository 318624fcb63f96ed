"""What this package refuses on its own account. What a server answers as a mistake of the sender is a ValueError."""

from __future__ import annotations

from nnsight import NNsightError


class PromptTooLongError(NNsightError, ValueError):
    """A prompt has to be seen whole, and has more tokens than the engine takes in one step."""


class EditFailedError(NNsightError, RuntimeError):
    """A standing edit raised in a request of a server, and ended it."""


class EngineOptionError(NNsightError, ValueError):
    """An engine with such an option would leave bodies out."""


class StandingError(NNsightError, ValueError):
    """A request asks for a standing edit that there is not, or one cannot be installed."""


class RequestError(NNsightError, ValueError):
    """vLLM refuses a request: its prompt, or how tokens are to be drawn."""


class ClusterError(NNsightError, RuntimeError):
    """A Ray cluster cannot take an engine."""


class DeadEngineError(NNsightError, RuntimeError):
    """vLLM's engine has ended, and with it all that it was doing."""

    def __init__(self) -> None:
        super().__init__(
            "vLLM's engine has died, and with it every request that it had; what it wrote before says why (memory, a signal, "
            "a defect). `model.shutdown()` clears it away, and the next run starts another"
        )


def refused(error: Exception, what: str) -> Exception:
    """Return what is raised where vLLM refuses something: a ValueError or TypeError, whatever its own errors are."""
    if isinstance(error, (ValueError, TypeError)):
        if hasattr(error, "add_note"):  # not in Python 3.10
            error.add_note(f"nnsight: vLLM does not take {what}")
        return error
    return RequestError(f"vLLM does not take {what}: {error}")
