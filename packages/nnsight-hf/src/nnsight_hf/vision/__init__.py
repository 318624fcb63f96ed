"""Models that read text with images in it.

`model.py` is the family; `shares.py` counts whose images are whose in a batch, `sights.py` finds out how they lie in values,
and `families.py` knows what single families need or cannot do.
"""

from nnsight_hf.vision.model import VisionLanguageModel

__all__ = ["VisionLanguageModel"]
