"""SimCLR: two views of an example attract, all other examples repel. On text, SimCSE."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from longarc.objectives.siamese.info_nce import Negatives, check_temperature, info_nce
from longarc.objectives.siamese.objective import SiameseObjective, SiameseOutput, output
from longarc.options import check_choice


class SimCLR(SiameseObjective):
    """InfoNCE between the projections of two views: the other examples of the batch are negatives.

    SimCSE is this with an encoder that has dropout, the same input for both views,
    ``negatives="other"`` and ``temperature=0.05``.

    Args:
        encoder: called with a view, returns codes (b, d).
        projector: from (b, d) to (b, p). The paper's is ``projection_head(d, 128, hidden=d,
            layers=2, last_norm=False)``; None, as in SimCSE's evaluation, compares codes.
        temperature: τ. 0.1 by default, the paper's best on ImageNet; the smaller, the more the
            hardest negatives count.
        negatives: see ``info_nce``.
        chunk: examples that the encoder works on at a time. More negatives need larger batches,
            and this lets them into memory; see ``encode_in_chunks``.

    With several processes each has the negatives of its own batch: projections are not gathered.

    Raises:
        OptionError: a temperature that is not above 0, a chunk below 1, unknown negatives.
        DataError: on call, a batch of 1, or views with different numbers of examples.
        ModelError: on call, an encoder that returns no codes (b, d).

    Source: Chen et al. 2020 (arXiv 2002.05709); Gao et al. 2021, "SimCSE: Simple Contrastive
    Learning of Sentence Embeddings" (arXiv 2104.08821).

    >>> import torch
    >>> encoder = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.1))
    >>> simcse = SimCLR(encoder, temperature=0.05, negatives="other")
    >>> rows = torch.randn(8, 6)
    >>> simcse(rows, rows).loss.backward()
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        temperature: float = 0.1,
        negatives: Negatives = "both",
        chunk: int | None = None,
    ) -> None:
        super().__init__(encoder, projector, chunk=chunk)
        self.temperature = check_temperature(temperature)
        check_choice("negatives", negatives, get_args(Negatives))
        self.negatives: Negatives = negatives

    def forward(self, first: Any, second: Any) -> SiameseOutput:
        """Return the loss of two views of the same b examples, in the same order."""
        codes = self.encode_pair(first, second)
        one, other = (self.projector(code) for code in codes)
        loss = info_nce(one, other, temperature=self.temperature, negatives=self.negatives)
        return output(loss, codes, (one, other))
