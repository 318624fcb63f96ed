"""A language model's insides, offline: `python -m nnsight_hf.demo`.

Each part is one file to read as an example: `lens.py`, `patching.py`, `steering.py`, `gradients.py`, `timing.py`. In
each, functions ask the model with nnsight, and `part` puts their numbers into words, a table and a figure. What is
asked about is `prompts.py`; how numbers are drawn is `terminal.py` and `figures.py`.
"""
