"""What nnsight-remote registers with the core. The hooks are in `nnsight.plugin`."""

from __future__ import annotations

from nnsight.plugin import hookimpl


@hookimpl
def backends() -> dict[str, str]:
    """Where blocks can be run."""
    return {"remote": "nnsight_remote.client.backend:RemoteBackend"}


@hookimpl
def import_aliases() -> dict[str, str]:
    """What can be imported from nnsight."""
    of_ndif = ("status", "compare", "is_model_running")
    return {
        "nnsight.ndif": "nnsight_remote.client.ndif",
        "nnsight.intervention.backends.remote": "nnsight_remote.client.backend",
        **{f"nnsight.{name}": f"nnsight_remote.client.ndif:{name}" for name in of_ndif},
    }


@hookimpl
def commands() -> dict[str, str]:
    """What can be run as `nnsight NAME ...`."""
    return {
        "serve": "nnsight_remote.server.command:main",
        "login": "nnsight_remote.client.command:login",
        "whoami": "nnsight_remote.client.command:whoami",
    }
