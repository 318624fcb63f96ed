"""What runs where vLLM has the model: in each of its workers.

extension.py  what vLLM lets a worker do besides its own work
stage.py      the model as bodies see it, and the traces that are being served
pipeline.py   one stage of a pipeline, among those beside it
absent.py     weights that lie in another stage
standing.py   edits that stay, for many requests
places.py     values that are no module's: the logits, the tokens that are drawn
"""
