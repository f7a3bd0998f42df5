"""Measures of a model in training: functions from a model and a batch to numbers."""
