"""Self-supervision from two views of an input: one objective a file, over any encoder."""
