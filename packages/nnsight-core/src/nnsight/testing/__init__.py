"""For authors of plugins: small models, another way to compute what a trace gives, and suites that say what must hold.

A suite is a class of tests. Subclass it in your tests, say how to make your thing, and pytest runs the rest::

    from nnsight.testing import FamilySuite

    class TestCharacterModel(FamilySuite):
        def make_model(self):
            return CharacterModel(hidden=8)

        def inputs(self):
            return ["hello", "a longer line"]

`FamilySuite` is for a family (`NNsight` with its `Batchable` methods), `GeneratingSuite` for one that generates,
`LoadableSuite` for one whose weights are loaded when they are needed, `BackendSuite` for a place to run. A suite of a family
that makes a backend sends its blocks there: whether the family can be served. pytest is imported here and nowhere else in
nnsight.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError('nnsight.testing runs under pytest: pip install "nnsight-core[testing]"') from error

# The suites' asserts are to explain themselves as those of a test file do.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in ("reference", "subjects", "somewhere", "family", "generating", "loadable", "backend")
    )
)

from nnsight.testing.backend import BackendSuite  # noqa: E402 - after they were registered
from nnsight.testing.family import FamilySuite  # noqa: E402
from nnsight.testing.generating import GeneratingSuite  # noqa: E402
from nnsight.testing.loadable import LoadableSuite  # noqa: E402
from nnsight.testing.models import MLP, Generating, Pair, Recurrent, Transformer, seeded  # noqa: E402
from nnsight.testing.reference import Hooked, assert_alike, state_of  # noqa: E402

__all__ = [
    "MLP",
    "BackendSuite",
    "FamilySuite",
    "Generating",
    "GeneratingSuite",
    "Hooked",
    "LoadableSuite",
    "Pair",
    "Recurrent",
    "Transformer",
    "assert_alike",
    "seeded",
    "state_of",
]
