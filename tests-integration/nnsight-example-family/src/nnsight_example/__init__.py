"""Character models for nnsight: an example of a plugin."""
