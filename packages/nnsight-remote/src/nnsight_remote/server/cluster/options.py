"""The options of `nnsight serve` that are about a cluster.

The one idea: what is wrong with them is said before the server starts; whether the cluster is there is not asked, for it
may come later.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .resources import parse_resources

if TYPE_CHECKING:  # at run time not before it is needed: the options are also read where no server runs
    from ..confine import Confinement
    from .engine import RayEngine


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let a command line choose the cluster."""
    add = parser.add_argument
    add("--engine", choices=("processes", "ray"), default="processes", help="hold models here, or on a Ray cluster")
    add(
        "--ray-resource",
        action="append",
        default=[],
        metavar="[MODEL:]NAME=NUMBER",
        help="what models, or one of them, are given on the cluster, as num_gpus=1 (num_cpus=1)",
    )
    add("--ray-wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for room on the cluster (60)")


def ray_engine(options: argparse.Namespace, confinement: Confinement, models: Sequence[str]) -> RayEngine:
    """Make the engine that the options ask for. Raise ValueError, saying what is wrong with them."""
    from .engine import RayEngine

    if find_spec("ray") is None:
        raise ValueError('--engine ray needs Ray, which is not installed: pip install "nnsight-remote[ray]"')
    if options.ray_wait <= 0:
        raise ValueError(f"--ray-wait is a number of seconds above 0, not {options.ray_wait:g}")
    return RayEngine(
        confinement,
        options.isolation,
        options.threads,
        resources=parse_resources(options.ray_resource, models),
        wait_seconds=options.ray_wait,
        address=os.environ.get("RAY_ADDRESS") or "auto",
    )
