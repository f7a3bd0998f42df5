"""Recurrent encoders as ordinary transformers models."""
