"""What nnsight-remote registers with the core: nothing yet. What it may is in `nnsight.plugin`."""
