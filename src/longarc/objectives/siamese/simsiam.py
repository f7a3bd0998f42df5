"""SimSiam: each view predicts the other, whose gradient is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from longarc.errors import OptionError
from longarc.objectives.siamese.negative_cosine import negative_cosine
from longarc.objectives.siamese.objective import SiameseObjective, SiameseOutput, output
from longarc.options import check_choice, check_flag

Target = Literal["other", "mean"]
Distance = Callable[[Tensor, Tensor], Tensor]


class SimSiam(SiameseObjective):
    """½ l(h(f(T₁x)), sg f(T₂x)) + ½ l(h(f(T₂x)), sg f(T₁x)), l the negative cosine.

    f is the encoder with its projector, h the predictor, sg the stop-gradient. There are no
    negatives: what keeps f from becoming a constant is that h learns fast and f slowly, so that h
    fits, and the pull on f ends, before f has come far. Without the stop-gradient f is pulled
    through the target too, directly, and does collapse: ``longarc study simsiam`` shows both.

    Ablations need nothing else:

    - no stop-gradient: ``stop_gradient=False``;
    - no predictor: ``predictor=None``;
    - a random one, fixed: ``predictor=prediction_head(p).requires_grad_(False)``;
    - its learning rate: ``parameter_groups(objective, rate, predictor_factor=10)``.

    Args:
        encoder: called with a view, returns codes (b, d).
        projector: from (b, d) to (b, p): ``projection_head(d)``.
        predictor: h, from (b, p) to (b, p): ``prediction_head(p)``.
        stop_gradient: whether the target is a constant.
        target: ``"other"``, the other view, or ``"mean"``, f(x̄) of the mean view x̄ = E_T[T x], for
            both views. To first order f(x̄) is the mean of f over all views, which SimSiam's
            stop-gradient is said to estimate.
        distance: l, of two tensors (b, p) and differentiable in both; ``F.mse_loss`` for example.
        chunk: examples that the encoder works on at a time; see ``encode_in_chunks``.

    Raises:
        OptionError: an unknown target or a chunk below 1; on call, a mean view that is missing, or
            given where the target is the other view.
        DataError: on call, views with different numbers of examples.
        ModelError: on call, an encoder that returns no codes (b, d).

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566).
    The mean view: Su 2020 (in Chinese, kexue.fm/archives/7980), as a question.

    >>> import torch
    >>> from longarc.objectives.siamese.heads import prediction_head, projection_head
    >>> objective = SimSiam(nn.Linear(6, 8), projection_head(8), prediction_head(8))
    >>> rows = torch.randn(32, 6)
    >>> views = [rows + 0.1 * torch.randn(32, 6) for _ in range(2)]
    >>> objective(*views).loss.backward()
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        *,
        stop_gradient: bool = True,
        target: Target = "other",
        distance: Distance = negative_cosine,
        chunk: int | None = None,
    ) -> None:
        super().__init__(encoder, projector, chunk=chunk)
        self.predictor = nn.Identity() if predictor is None else predictor
        self.stop_gradient = check_flag("stop_gradient", stop_gradient)
        check_choice("target", target, get_args(Target))
        self.target: Target = target
        self.distance = distance

    def forward(self, first: Any, second: Any, mean: Any = None) -> SiameseOutput:
        """Return the loss of two views of the same b examples, in the same order.

        ``mean`` is the mean view of each, for ``target="mean"`` alone. Where both views are tensors
        of numbers and it is not given, their own mean stands in: half of what there is to average,
        so give the mean over many transformations if you can.
        """
        codes = self.encode_pair(first, second)
        one, other = (self.projector(code) for code in codes)
        if self.target == "mean":
            middle = self.project_target(_mean_view(first, second, mean))
            of_first, of_second = middle, middle
        elif mean is not None:
            raise OptionError('A mean view was given, but the target is not "mean". Leave it out.')
        else:
            of_second, of_first = self.targets_from_views((first, second), (one, other))
        loss = self._distance(one, of_first) / 2 + self._distance(other, of_second) / 2
        return output(loss, codes, (one, other))

    def targets_from_views(
        self, views: tuple[Any, Any], projections: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the target (b, p) that each view is: here its projection."""
        return projections

    def project_target(self, view: Any) -> Tensor:
        """Return the target (b, p) of a view that was not encoded yet."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            return self.projector(self.encode(view))

    def _distance(self, projection: Tensor, target: Tensor) -> Tensor:
        target = target.detach() if self.stop_gradient else target
        return self.distance(self.predictor(projection), target)


def _mean_view(first: Any, second: Any, mean: Any) -> Any:
    if mean is not None:
        return mean
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    if tensors and first.shape == second.shape and first.is_floating_point():
        return (first + second) / 2
    raise OptionError(
        'target="mean" needs the mean view as third argument: only views that are tensors of '
        f"numbers, of the same shape, have a mean of their own; found {_described(first)} and "
        f"{_described(second)}."
    )


def _described(view: Any) -> str:
    if isinstance(view, Tensor):
        return f"a tensor {tuple(view.shape)} of {view.dtype}"
    return f"a {type(view).__name__}"
