"""Models of any task that transformers' pipelines serve.

`model.py` is the family. An input is read by `reading.py` (bare ones), `composite.py` (several things in a dict) and
`sound.py`, through the model's `processors.py`; `columns.py` puts several into one batch.
"""

from nnsight_hf.tasks.model import TransformersModel

__all__ = ["TransformersModel"]
