"""The networks behind the encoder: a projection head, and the prediction head that sees one side.

They end in the space where views are compared and are thrown away after training: the encoder's
own codes are the better features (Chen et al. 2020, arXiv 2002.05709, section 4.2).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from longarc.errors import OptionError
from longarc.options import check_choice, check_whole

Norm = Literal["batch", "layer", "none"]


def projection_head(
    dim: int,
    out: int | None = None,
    *,
    hidden: int | None = None,
    layers: int = 3,
    norm: Norm = "batch",
    last_norm: bool = True,
) -> nn.Sequential:
    """Return a head of ``layers`` linear layers from (b, dim) to (b, out), ReLU between them.

    The defaults are SimSiam's. BYOL's and SimCLR's have two layers and no norm after the last:
    ``layers=2, last_norm=False``.

    Args:
        dim: d, the width of the encoder's codes.
        out: width of the projections; d by default.
        hidden: width between layers; ``out`` by default. BYOL's is twice d.
        layers: how many, at least 1.
        norm: ``"batch"`` normalises a number over the batch. That alone keeps numbers from
            becoming the same for all examples, but with fewer than some 32 examples its statistics
            are noise, with several processes each has its own
            (``nn.SyncBatchNorm.convert_sync_batchnorm``), and a batch of 1 is an error.
            ``"layer"`` normalises an example over its numbers and knows no batch: right for
            SimCLR, but SimSiam and BYOL have collapsed with it at every learning rate tried
            (``longarc study simsiam``). ``"none"``.
        last_norm: whether a norm, without weights, follows the last layer.

    Raises:
        OptionError: a width or number of layers below 1, an unknown norm, or layer normalisation
            of a single number.

    Source: Chen & He 2021 (arXiv 2011.10566), section 3, and the code published with it.

    >>> projection_head(4, layers=2)
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=False)
      (1): BatchNorm1d(4, ...)
      (2): ReLU()
      (3): Linear(in_features=4, out_features=4, bias=False)
      (4): BatchNorm1d(4, ..., affine=False, ...)
    )
    """
    dim = check_whole("dim", dim, at_least=1)
    out = dim if out is None else check_whole("out", out, at_least=1)
    hidden = out if hidden is None else check_whole("hidden", hidden, at_least=1)
    parts: list[nn.Module] = []
    for layer in range(check_whole("layers", layers, at_least=1)):
        last = layer == layers - 1
        kind: Norm = "none" if last and not last_norm else norm
        parts += _layer(dim if layer == 0 else hidden, out if last else hidden, kind, last)
        if not last:
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)


def prediction_head(dim: int, *, hidden: int | None = None, norm: Norm = "batch") -> nn.Sequential:
    """Return a head of two layers from (b, dim) to (b, dim): the predictor h.

    Args:
        dim: the width of the projections.
        hidden: width in the middle; a quarter of ``dim`` by default, SimSiam's bottleneck, which
            the paper finds better than no bottleneck. BYOL's is wide: twice ``dim`` or more.
        norm: as in ``projection_head``, after the first layer. After the last there is none: with
            batch normalisation there training does not settle (the paper's table 3).

    Raises:
        OptionError: as for ``projection_head``.

    >>> prediction_head(8, norm="layer")
    Sequential(
      (0): Linear(in_features=8, out_features=2, bias=True)
      (1): LayerNorm((2,), ...)
      (2): ReLU()
      (3): Linear(in_features=2, out_features=8, bias=True)
    )
    """
    dim = check_whole("dim", dim, at_least=1)
    hidden = max(2, dim // 4) if hidden is None else check_whole("hidden", hidden, at_least=1)
    first = _layer(dim, hidden, norm, last=False)
    return nn.Sequential(*first, nn.ReLU(), nn.Linear(hidden, dim))


def _layer(wide: int, out: int, norm: Norm, last: bool) -> list[nn.Module]:
    """A linear layer and its norm: without a bias where the norm would take it away again."""
    check_choice("norm", norm, get_args(Norm))
    if norm == "batch":
        return [nn.Linear(wide, out, bias=False), nn.BatchNorm1d(out, affine=not last)]
    linear = nn.Linear(wide, out)
    if norm == "layer":
        if out == 1:
            raise OptionError("Layer normalisation of a width of 1 gives 0. Choose a larger width.")
        return [linear, nn.LayerNorm(out, elementwise_affine=not last)]
    return [linear]
