"""Which versions of vLLM this package serves bodies in: those that its own metadata declares, and no others.

One idea: much of what is relied on inside vLLM is nobody's promise (`adapters/`), so a version that was not tried is refused
before anything is started, when this is imported, and does not fail somewhere in a run, or go wrong in silence.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from nnsight import NNsightError

_HOW = "`pip install 'nnsight-vllm[cuda]'`, or `[cpu]` for vLLM's builds without a GPU"


class VersionError(NNsightError, ImportError):
    """There is no vLLM here, or one of a version that is not supported."""


try:
    import vllm
except ModuleNotFoundError as error:
    if error.name != "vllm":
        raise
    raise VersionError(f"vLLM is not installed. Install a version that is supported: {_HOW}.") from None


def supported() -> SpecifierSet:
    """Return the versions of vLLM that the package's metadata declares."""
    for requirement in map(Requirement, metadata.requires("nnsight-vllm") or ()):
        if requirement.name == "vllm":
            return requirement.specifier
    raise VersionError("nnsight-vllm was installed without its metadata, which says what versions of vLLM it supports")


def check(version: str | None = None) -> None:
    """Refuse a version of vLLM that is not supported.

    Args:
        version: which; that of the installed vLLM by default.

    Raises:
        VersionError: it is out of the range, or says nothing of itself.
    """
    version = vllm.__version__ if version is None else version
    wanted = supported()
    try:
        # What is built from a checkout between releases counts as the release that it comes after.
        base = Version(Version(version).base_version)
    except InvalidVersion:
        raise VersionError(
            f"The vLLM that is installed calls its version {version!r}, so it cannot be told whether it is supported "
            f"({wanted}). Install a release: {_HOW}."
        ) from None
    if base not in wanted:
        raise VersionError(
            f"vLLM {version} is installed, and nnsight-vllm supports {wanted}: it reaches into vLLM's inside, which "
            f"changes between versions. Install one of these: {_HOW}."
        )


check()
