"""What comes back from a run elsewhere as what it is: outputs and caches of models are data with a few methods."""

from __future__ import annotations

import transformers
from transformers import BatchEncoding
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from nnsight import register

for _cls in (ModelOutput, Cache, BatchEncoding):
    register(_cls)
# relies on: caches are made of layers with a class of their own, transformers 4.56 to 5.23
register(transformers.cache_utils.CacheLayerMixin)
