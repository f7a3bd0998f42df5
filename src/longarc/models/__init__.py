"""Encoders, heads and how they are opened."""
