"""`nnsight vllm-serve MODEL ...`: `vllm serve`, with standing edits.

One idea: it adds the options that make a server of vLLM's ours (`server.py`), and hands everything else to vLLM unread.

relies on: `ServeSubcommand` has `subparser_init`, `validate` and `cmd`; vLLM 0.30 to 0.32.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

#: What a server is started with. Bodies run in modules, which graphs leave out.
OPTIONS = (
    "--worker-extension-cls=nnsight_vllm.worker.extension.Extension",
    "--scheduler-cls=nnsight_vllm.scheduling.scheduler",
    "--middleware=nnsight_vllm.server.StandingEdits",
    "--enforce-eager",
)


def serve(arguments: Sequence[str]) -> int:
    """Run vLLM's server with standing edits; see `nnsight vllm-serve --help`."""
    parser = argparse.ArgumentParser(
        prog="nnsight vllm-serve",
        description="Run vLLM's OpenAI-compatible server with standing edits. A request asks for them by name: "
        '"vllm_xargs": {"nnsight": "calm"}. All other options are those of `vllm serve`.',
        epilog="With NNSIGHT_ADMIN_KEY in the environment, whoever has that key may install edits while the server runs. "
        "Edits are code: give it to nobody who may not run code on the server.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--edit",
        action="append",
        default=[],
        metavar="NAME=FILE[,every][,tokenwise]",
        help="install the edits in a file that `save_edits` wrote; `every`: for all requests; `tokenwise`: they change "
        "each token's row by that row alone",
    )
    parser.add_argument("--turn-seconds", type=float, default=60.0, help="how long one turn of an edit may take")
    ours, theirs = parser.parse_known_args(list(arguments))
    try:
        edits = [_edit(said) for said in ours.edit]
    except ValueError as error:
        parser.error(str(error))
    from .server import SETTINGS

    os.environ[SETTINGS] = json.dumps({"edits": edits, "turn_seconds": ours.turn_seconds})
    # Servers fork nothing that runs threads already; vLLM's own command says so too.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # Not through vLLM's `main`: that asks for the version of a distribution called vllm, and builds for CPUs are called
    # otherwise.
    served, command = FlexibleArgumentParser(prog="nnsight vllm-serve"), ServeSubcommand()
    command.subparser_init(served.add_subparsers(dest="subparser"))
    said = served.parse_args([command.name, *theirs, *OPTIONS])
    command.validate(said)
    command.cmd(said)
    return 0


def _edit(said: str) -> tuple[str, str, list[str]]:
    """Read `NAME=FILE[,every][,tokenwise]`."""
    name, _, rest = said.partition("=")
    file, *options = rest.split(",")
    if not name or not file or not set(options) <= {"every", "tokenwise"}:
        raise ValueError(f"an edit is given as NAME=FILE[,every][,tokenwise], not {said!r}")
    if not Path(file).is_file():
        raise ValueError(f"there is no file {file!r} with the edit {name!r}")
    return name, str(Path(file).resolve()), options
