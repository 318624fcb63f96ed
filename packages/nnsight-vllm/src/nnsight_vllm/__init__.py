"""vLLM for nnsight: look inside models while they are served. `model.py` has `VLLM`; nothing is imported before that."""

from nnsight_vllm._version import __version__

__all__ = ["__version__"]
