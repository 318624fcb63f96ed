"""Which versions this server is made of, read from the metadata of what is installed; nothing heavy is imported for it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

#: The version of the interface over HTTP; the wire inside of the requests has a version of its own.
PROTOCOL = 1
_SHOWN = ("nnsight-core", "nnsight-hf", "nnsight-remote", "nnsight-vllm", "nnsight-diffusers", "torch", "transformers")


def packages() -> dict[str, str]:
    """The versions of the packages that matter to a client, by the names they are installed under."""
    found = {}
    for name in _SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "nnsight-core" in found:
        found["nnsight"] = found["nnsight-core"]  # the name by which it is imported, which nnsight 0.8 compares
    return found
