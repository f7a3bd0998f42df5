"""Measures of a model in training, as pure functions: they know neither losses nor trainers."""
