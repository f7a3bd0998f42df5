"""The textbook form of every registered loss, by its name."""

from textbook.cross_entropies import CROSS_ENTROPIES
from textbook.form import Textbook

TEXTBOOK: dict[str, Textbook] = {**CROSS_ENTROPIES}
