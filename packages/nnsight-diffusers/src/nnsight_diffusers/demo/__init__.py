"""How a diffusion model makes an image, offline: `python -m nnsight_diffusers.demo`.

Each part is one file to read as an example: `trajectory.py`, `blocks.py`, `words.py`. In each, one function asks the
model with nnsight, and `part` puts what it found into words, a table and a figure. What is drawn is in `prompts.py`; how
it is shown, in `figures.py` and `terminal.py`.
"""
