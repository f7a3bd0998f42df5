"""Train text encoders on long documents and long-tailed labels, and explain their predictions."""

from longarc.version import __version__

__all__ = ["__version__"]
