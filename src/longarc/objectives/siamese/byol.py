"""BYOL: SimSiam whose targets come from a moving average of the network."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from longarc.objectives.siamese.ema import EMATarget, Schedule, scheduled_decay
from longarc.objectives.siamese.negative_cosine import negative_cosine
from longarc.objectives.siamese.simsiam import Distance, SimSiam, Target
from longarc.options import check_choice, check_number


class BYOL(SimSiam):
    """½ l(h(f_θ(T₁x)), f_ξ(T₂x)) + the same with views swapped, ξ an average of past θ.

    Call ``update_target`` after each step of the optimizer. With ``decay=0`` this is SimSiam.

    Args:
        encoder: called with a view, returns codes (b, d).
        projector: from (b, d) to (b, p). The paper's is ``projection_head(d, 256, hidden=2 * d,
            layers=2, last_norm=False)``.
        predictor: from (b, p) to (b, p). The paper's is ``prediction_head(256, hidden=2 * d)``.
        decay: τ in [0, 1], at the start. 0.996 by default, the paper's for long training; a target
            of some 1 / (1 − τ) steps must be short against the training.
        schedule: ``"cosine"`` takes τ to 1 at the end, ``"constant"`` does not.
        target: as in ``SimSiam``, of the averaged network.
        distance: as in ``SimSiam``.
        chunk: as in ``SimSiam``.

    The targets are computed in the module's mode, so that in training dropout and batch statistics
    act in them too.

    Raises:
        OptionError: a decay outside [0, 1], an unknown schedule, and as ``SimSiam``.
        ModelError: on ``update_target``, weights in half precision; and as ``SimSiam``.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv 2006.07733).

    >>> from longarc.objectives.siamese.heads import prediction_head, projection_head
    >>> objective = BYOL(nn.Linear(6, 8), projection_head(8), prediction_head(8), decay=0.99)
    >>> rows = torch.randn(32, 6)
    >>> objective(rows, rows + 0.1 * torch.randn(32, 6)).loss.backward()
    >>> objective.update_target(progress=0.5)
    0.995
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        *,
        decay: float = 0.996,
        schedule: Schedule = "cosine",
        target: Target = "other",
        distance: Distance = negative_cosine,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            encoder, projector, predictor, target=target, distance=distance, chunk=chunk
        )
        self.decay = check_number("decay", decay, below=1 + 1e-9)
        check_choice("schedule", schedule, get_args(Schedule))
        self.schedule: Schedule = schedule
        self.average = EMATarget(nn.Sequential(self.encoder, self.projector))

    def update_target(self, progress: float = 0.0) -> float:
        """Move the target towards the network, after a step, and return the τ that was used.

        ``progress`` is the part of the training that is done, 0 to 1; the cosine schedule needs it.
        """
        decay = scheduled_decay(self.decay, self.schedule, progress)
        self.average.update(nn.Sequential(self.encoder, self.projector), decay)
        return decay

    def targets_from_views(
        self, views: tuple[Any, Any], projections: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the averaged network's projection (b, p) of each view."""
        first, second = views
        return self.project_target(first), self.project_target(second)

    def project_target(self, view: Any) -> Tensor:
        """Return the averaged network's projection (b, p) of a view."""
        encoder, projector = self.average.network.children()
        with torch.no_grad():
            return projector(self.encode(view, encoder))
