"""The models of the servers that the tests start, and of the tests themselves: the same weights on both ends."""

from __future__ import annotations

import os
import signal

from nnsight import NNsight
from nnsight.testing.models import MLP, Generating, seeded


def mlp() -> NNsight:
    return NNsight(seeded(MLP))


def generating() -> NNsight:
    return NNsight(seeded(Generating))


def unloadable() -> NNsight:
    raise FileNotFoundError("there are no such weights")


def dying() -> NNsight:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")
