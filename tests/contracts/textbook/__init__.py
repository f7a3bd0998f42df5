"""The textbook form of every registered loss, by its name."""

from textbook.cross_entropies import CROSS_ENTROPIES
from textbook.form import Textbook
from textbook.margins import MARGINS
from textbook.scores import SCORES

TEXTBOOK: dict[str, Textbook] = {**CROSS_ENTROPIES, **SCORES, **MARGINS}
