"""Measures of a model in training, as pure functions."""
