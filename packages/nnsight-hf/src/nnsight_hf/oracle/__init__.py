"""The oracle: every architecture of language models that transformers knows, as a tiny model, and what must hold for each.

`python -m nnsight_hf.oracle` asks about all of them (extra `oracle`). `zoo.py` and `shrink.py` make the models, `checks.py`
makes the checks, `exceptions.py` lists what does not hold and why.
"""
