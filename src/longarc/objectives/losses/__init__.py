"""Losses for long-tailed labels: one file each, one contract, one registry of names."""
