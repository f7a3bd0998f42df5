"""Attention nearby and to clusters, with what clusters lose learnt for each head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longarc.models.attention.clustered import BEND, variance_correction
from longarc.models.attention.local_clustered import LocalClustered


class Learned(LocalClustered):
    """:class:`LocalClustered` with parameters that are fitted to the model's own attention.

    A head's bias of a cluster is log n + ½ a σ² / √(1 + b² σ²) + o, with a ``share``, a ``bend``
    and an ``offset`` of its own: how much the variance within a cluster counts, where its growth
    turns, and how much all that is far weighs against what is near. New, it is LocalClustered.
    :func:`longarc.calibrate_attention` fits it to unlabelled texts within minutes, and fine-tuning
    trains it with the model. Three numbers a head cannot overfit a handful of texts.

    Args:
        window, num_global, num_selected, num_clusters, iterations, importance, spread: as in
            LocalClustered; ``spread`` is where a starts.

    Raises:
        OptionError: a value out of range.

    >>> {name: tuple(p.shape) for name, p in Learned(12, 32).named_parameters()}
    {'share': (12,), 'bend': (12,), 'offset': (12,)}
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        seed: int = 0,
        window: int = 64,
        num_global: int = 1,
        num_selected: int = 2,
        num_clusters: int = 64,
        iterations: int = 4,
        importance: float = 2.0,
        spread: float = 0.7,
    ) -> None:
        super().__init__(
            heads, width, seed=seed, window=window, num_global=num_global,
            num_selected=num_selected, num_clusters=num_clusters, iterations=iterations,
            importance=importance, spread=spread,
        )  # fmt: skip
        self.share = nn.Parameter(torch.full((heads,), self.spread))
        self.bend = nn.Parameter(torch.full((heads,), BEND**0.5))  # squared, so that it is ≥ 0
        self.offset = nn.Parameter(torch.zeros(heads))

    def correct(self, variance: Tensor) -> Tensor:
        """What the variance of a cluster's scores, (b, nb, h, c), adds to its bias."""
        share, bend, offset = (
            p.to(variance.dtype)[:, None] for p in (self.share, self.bend, self.offset)
        )
        return variance_correction(variance, share, bend.square()) + offset
