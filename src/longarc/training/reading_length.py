"""How many tokens of a document a training reads, and whether its model can. Free of torch."""

from __future__ import annotations

from longarc.errors import OptionError
from longarc.models.loading import usable_length
from longarc.training.config import TrainConfig

DEFAULT_LENGTH = 512
"""Tokens read when ``max_length`` is not named; attention's cost grows with the square."""


def reading_length(config: TrainConfig) -> int:
    """The ``max_length`` of a training, or its default. Reads the model's configuration alone.

    Raises:
        ModelError: there is no such model.
        OptionError: the model's positions do not reach so far, or are to be stretched without need.

    >>> reading_length(TrainConfig(data="t.csv", out="run", model="lstm"))
    512
    """
    allowed = usable_length(config.model, trust_remote_code=config.trust_remote_code)
    longest = config.max_length
    if config.positions != "trained" and (longest is None or allowed is None or longest <= allowed):
        found = "no limit to the length it reads" if allowed is None else f"{allowed} positions"
        asked = "no --max-length is named" if longest is None else f"--max-length is {longest}"
        raise OptionError(
            f"--positions {config.positions} stretches a model's positions to --max-length, but "
            f"{config.model} has {found} and {asked}. Name a larger --max-length, or drop "
            "--positions."
        )
    if longest is None:
        return min(allowed or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if allowed is not None and longest > allowed and config.positions == "trained":
        raise OptionError(
            f"--max-length is {longest}, but {config.model} has positions for {allowed} tokens. "
            f"Use --max-length {allowed}, stretch them with --positions hierarchical, or name a "
            "model with more positions."
        )
    return longest
