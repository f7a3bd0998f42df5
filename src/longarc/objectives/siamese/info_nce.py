"""InfoNCE: among the examples of a batch, tell the other view of an example from the rest."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.errors import DataError, OptionError
from longarc.objectives.siamese.negative_cosine import at_least_float32
from longarc.options import check_choice, check_number

Negatives = Literal["both", "other"]


def info_nce(
    first: Tensor, second: Tensor, *, temperature: float = 0.1, negatives: Negatives = "both"
) -> Tensor:
    """Return the mean over anchors of −log( e^{cos(a, a⁺)/τ} / Σ_k e^{cos(a, k)/τ} ).

    Args:
        first: (b, p), the projections of one view of b examples.
        second: (b, p), those of the other view.
        temperature: τ > 0. As τ → 0 only the hardest negative counts, as τ → ∞ all alike.
        negatives: ``"both"``: every projection of both views is an anchor, and k runs over the
            2b − 1 others (SimCLR's NT-Xent; swapping the views changes nothing). ``"other"``: the
            anchors are ``first``, and k runs over ``second`` (SimCSE; the multiple-negatives
            ranking loss of sentence-transformers, whose scale is 1/τ).

    Raises:
        DataError: projections of different shapes, or of fewer than 2 examples, which have no
            negatives.
        OptionError: a temperature that is not above 0; unknown negatives.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations" (arXiv 2002.05709), eq. 1; Gao et al. 2021, "SimCSE" (arXiv 2104.08821), eq. 1.

    >>> z = torch.eye(4)
    >>> info_nce(z, z, temperature=1.0)  # −1 + log(e + 6)
    tensor(1.1654)
    >>> info_nce(z, z, temperature=1.0, negatives="other")  # −1 + log(e + 3)
    tensor(0.7437)
    """
    check_temperature(temperature)
    check_choice("negatives", negatives, get_args(Negatives))
    if first.ndim != 2 or first.shape != second.shape:
        raise DataError(
            f"The views have projections of shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}; expected (b, p) twice."
        )
    b = len(first)
    if b < 2:
        raise DataError(
            f"A batch of {b} has no negatives: InfoNCE needs 2 examples or more. Leave the last "
            "batch out if it is smaller than the others."
        )
    first = F.normalize(at_least_float32(first))
    second = F.normalize(at_least_float32(second))
    places = torch.arange(b, device=first.device)
    # Autocast would take the products back to half precision.
    with torch.autocast(first.device.type, enabled=False):
        if negatives == "other":
            return F.cross_entropy(first @ second.T / temperature, places)
        both = torch.cat([first, second])
        scores = both @ both.T / temperature
    scores = scores.masked_fill(torch.eye(2 * b, dtype=torch.bool, device=both.device), -torch.inf)
    return F.cross_entropy(scores, torch.cat([places + b, places]))


def check_temperature(temperature: float) -> float:
    """Return the temperature, or raise OptionError unless it is above 0."""
    if check_number("temperature", temperature) == 0:
        raise OptionError("temperature must be above 0: the scores are divided by it.")
    return float(temperature)
