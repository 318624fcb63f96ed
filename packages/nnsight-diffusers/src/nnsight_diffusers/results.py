"""What comes back from a run elsewhere as what it is: the outputs of pipelines, modules and schedulers."""

from __future__ import annotations

from diffusers.utils import BaseOutput

from nnsight import register

register(BaseOutput)
