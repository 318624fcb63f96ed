"""Diffusion pipelines for nnsight: look inside models while they make images. Nothing is here yet."""

from nnsight_diffusers._version import __version__

__all__ = ["__version__"]
