"""Regularizers: what a training step does besides descending the loss."""
