"""The oracle: every architecture of language models that transformers knows, as a tiny model, and what must hold for each."""
