"""Learning rates of encoder and predictor: the predictor's may be larger, and may stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from longarc.errors import OptionError
from longarc.objectives.siamese.objective import SiameseObjective
from longarc.options import check_flag, check_number


def parameter_groups(
    objective: SiameseObjective,
    rate: float,
    *,
    predictor_factor: float = 1.0,
    fixed_predictor_rate: bool = False,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: what learns of the predictor, and everything else.

    Args:
        objective: any of the objectives. Weights that do not learn are in no group.
        rate: the learning rate.
        predictor_factor: the predictor's learning rate is this times ``rate``. The faster it fits,
            the less the encoder is pulled meanwhile.
        fixed_predictor_rate: mark the predictor's group with ``"fixed_rate"``: ``rate_schedule``
            leaves its learning rate alone. SimSiam's predictor, without decay of its rate, adapts
            to the latest codes (67.7 → 68.1 % on ImageNet).

    Raises:
        OptionError: a rate or factor that is negative; either option for an objective whose
            predictor does not learn.

    Source: Chen & He 2021 (arXiv 2011.10566), section 4.2.

    >>> from torch import nn
    >>> from longarc.objectives.siamese.simsiam import SimSiam
    >>> objective = SimSiam(nn.Linear(4, 3), predictor=nn.Linear(3, 3))
    >>> groups = parameter_groups(objective, 0.1, predictor_factor=10)
    >>> [(len(group["params"]), group["lr"]) for group in groups]
    [(2, 0.1), (2, 1.0)]
    """
    check_number("rate", rate)
    check_number("predictor_factor", predictor_factor)
    check_flag("fixed_predictor_rate", fixed_predictor_rate)
    predictor = getattr(objective, "predictor", None)
    quick = [] if predictor is None else [w for w in predictor.parameters() if w.requires_grad]
    if not quick and (predictor_factor != 1 or fixed_predictor_rate):
        raise OptionError(
            f"This {type(objective).__name__} has no predictor that learns, so predictor_factor "
            "and fixed_predictor_rate have nothing to act on. Leave them out."
        )
    ids = {id(weight) for weight in quick}
    slow = [w for w in objective.parameters() if w.requires_grad and id(w) not in ids]
    groups = [
        {"params": slow, "lr": rate, "fixed_rate": False},
        {"params": quick, "lr": predictor_factor * rate, "fixed_rate": fixed_predictor_rate},
    ]
    return [group for group in groups if group["params"]]


def rate_schedule(optimizer: Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    """Return a schedule that multiplies learning rates by ``factor(step)``, but for fixed ones.

    >>> import torch
    >>> groups = [{"params": [torch.ones(1)], "fixed_rate": fixed} for fixed in (False, True)]
    >>> rate_schedule(torch.optim.SGD(groups, lr=1.0), lambda step: 0.5).get_last_lr()
    [0.5, 1.0]
    """

    def stay(step: int) -> float:
        return 1.0

    fixed = [group.get("fixed_rate", False) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [stay if still else factor for still in fixed])
