"""What nnsight-remote registers with the core: the commands of the command line. The hooks are in `nnsight.plugin`."""

from __future__ import annotations

from nnsight.plugin import hookimpl


@hookimpl
def commands() -> dict[str, str]:
    """What can be run as `nnsight NAME ...`."""
    return {"serve": "nnsight_remote.server.command:main"}
