"""The errors a user can meet: each says what was found, what was expected and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LongarcError(Exception):
    """Base of every error that is the input's fault, not longarc's.

    The command line prints its message and exits with 1; anything else is a bug and keeps its
    traceback.
    """


class DataError(LongarcError):
    """A table, a column, a text or a label cannot be used as it is."""


class OptionError(LongarcError):
    """An option has a value that does not exist or does not fit the others."""


class ModelError(LongarcError):
    """A model cannot be found, loaded or used for this job."""


class RunError(LongarcError):
    """A run folder is missing, incomplete, in the way, or does not fit the request."""


class Interrupted(LongarcError):  # noqa: N818  (what happened is no error)
    """The user stopped a run; its state is saved, and the message says how to go on."""


def close_matches(name: str, choices: Iterable[str]) -> str:
    """A sentence for an error about an unknown name: the likely one first, then all of them.

    >>> close_matches("logit-ajusted", ["cross-entropy", "logit-adjusted"])
    'Did you mean logit-adjusted? Known: cross-entropy, logit-adjusted.'
    >>> close_matches("FGM", ["fgm", "sam"])
    'Did you mean fgm? Known: fgm, sam.'
    >>> close_matches("xyz", ["b", "a"])
    'Known: b, a.'
    """
    choices = list(choices)
    lower = {choice.lower(): choice for choice in reversed(choices)}
    matches = difflib.get_close_matches(str(name).lower(), lower, n=2, cutoff=0.5)
    near = [] if name in choices else [lower[match] for match in matches]
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{guess}Known: {', '.join(choices)}."
