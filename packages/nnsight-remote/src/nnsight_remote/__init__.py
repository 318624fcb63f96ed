"""Models on a server for nnsight: run a block where the weights are. Nothing is here yet."""

from nnsight_remote._version import __version__

__all__ = ["__version__"]
