"""`Somewhere`: what a suite is told of where its blocks run.

The one idea: a check that is written for a backend, saving what it looks at, holds here too. So there is one set of checks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight.plugin import Backend

#: Further arguments of a trace.
Where = dict[str, Any]


class Somewhere:
    """A suite whose blocks run here, or on a backend if it makes one."""

    def make_backend(self) -> Backend | str | None:
        """Make the backend that the blocks of the checks are sent to; None runs them here."""
        return None

    @pytest.fixture(autouse=True)
    def _without_graphs(self) -> Any:
        with torch.no_grad():
            yield

    @pytest.fixture
    def backend(self) -> Any:
        """The backend; override this where it outlives a check, as a server does."""
        return self.make_backend()

    @pytest.fixture
    def where(self, backend: Any) -> Where:
        """What a trace is told of where it runs."""
        return {} if backend is None else {"backend": backend}

    @pytest.fixture
    def here(self, backend: Any) -> None:
        """Leave out a check that sends nothing anywhere."""
        if backend is not None:
            pytest.skip("nothing of this check runs on the backend")
