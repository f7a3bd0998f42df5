"""The regularizers by name, and how they are built from it. Imports no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longarc.errors import OptionError, close_matches
from longarc.options import check_known

if TYPE_CHECKING:
    from longarc.objectives.regularizers.contract import Regularizer


@dataclass(frozen=True)
class RegularizerInfo:
    """What is known of a regularizer without importing it.

    ``path`` is ``module:class``; ``summary`` one line.
    """

    path: str
    summary: str


REGULARIZERS: dict[str, RegularizerInfo] = {
    "fgm": RegularizerInfo(
        "longarc.objectives.regularizers.fgm:FGM",
        "also learn from embeddings moved one step uphill",
    ),
    "pgd": RegularizerInfo(
        "longarc.objectives.regularizers.pgd:PGD",
        "also learn from embeddings moved several projected steps uphill",
    ),
    "freelb": RegularizerInfo(
        "longarc.objectives.regularizers.freelb:FreeLB",
        "learn from embeddings at every step uphill",
    ),
    "vat": RegularizerInfo(
        "longarc.objectives.regularizers.vat:VAT",
        "keep predictions the same where they could change most; needs no label",
    ),
    "input-gradient-penalty": RegularizerInfo(
        "longarc.objectives.regularizers.input_gradient_penalty:InputGradientPenalty",
        "penalise the gradient at the embeddings",
    ),
    "gradient-penalty": RegularizerInfo(
        "longarc.objectives.regularizers.gradient_penalty:GradientPenalty",
        "penalise the gradient of the weights, as a larger learning rate does",
    ),
    "sam": RegularizerInfo(
        "longarc.objectives.regularizers.sam:SAM",
        "descend with the gradient from the worst weights nearby",
    ),
    "flooding": RegularizerInfo(
        "longarc.objectives.regularizers.flooding:Flooding",
        "keep the training loss at a level",
    ),
    "r-drop": RegularizerInfo(
        "longarc.objectives.regularizers.r_drop:RDrop",
        "let two passes with different dropout agree",
    ),
}


def build_regularizers(chosen: Sequence[Any] | None) -> list[Regularizer]:
    """Build regularizers from their names, from the innermost to the outermost.

    Args:
        chosen: each a key of ``REGULARIZERS``, or a mapping of one to its options.

    Raises:
        OptionError: an unknown name or option, a value out of range, one that is named twice, or
            that cannot stand beside the others.

    >>> [r.__class__.__name__ for r in build_regularizers(["fgm", {"sam": {"rho": 0.1}}])]
    ['FGM', 'SAM']
    """
    built = []
    for name, options in check_regularizers(chosen):
        module, _, attribute = REGULARIZERS[name].path.partition(":")
        known = getattr(importlib.import_module(module), attribute)
        accepted = {k: p.default for k, p in inspect.signature(known).parameters.items()}
        check_known(f"Regularizer {name}", options, accepted)
        try:
            built.append(known(**options))
        except OptionError as error:
            raise OptionError(f"Regularizer {name}: {error}") from None
    if len(built) > 1:
        from longarc.objectives.regularizers.contract import check_together

        check_together(built)
    return built


def check_regularizers(chosen: Sequence[Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return names and options, and check the names; imports no torch.

    >>> check_regularizers(["fgn"])
    Traceback (most recent call last):
    longarc.errors.OptionError: There is no regularizer 'fgn'. Did you mean fgm? Known: fgm, pgd, freelb, vat, input-gradient-penalty, gradient-penalty, sam, flooding, r-drop.
    """  # noqa: E501
    found: list[tuple[str, Mapping[str, Any]]] = []
    for entry in chosen or ():
        pairs = list(entry.items()) if isinstance(entry, Mapping) else [(entry, None)]
        name, options = pairs[0] if len(pairs) == 1 else (None, None)
        options = {} if options is None else options
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise OptionError(
                f"{entry!r} is no regularizer. Expected a name, such as 'fgm', or one with its "
                "options, such as {'fgm': {'epsilon': 0.5}}."
            )
        if name not in REGULARIZERS:
            raise OptionError(
                f"There is no regularizer {name!r}. {close_matches(name, REGULARIZERS)}"
            )
        if name in dict(found):
            raise OptionError(f"The regularizer {name} is named twice. Name it once.")
        found.append((name, options))
    return found
