"""vLLM for nnsight: look inside models while they are served. Nothing is here yet."""

from nnsight_vllm._version import __version__

__all__ = ["__version__"]
