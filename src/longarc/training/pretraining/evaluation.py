"""How good the codes of held-out documents are, and how far from collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from longarc.data.augment import TextViews, special_ids
from longarc.data.token_file import TokenFile
from longarc.dynamics.collapse import collapse_measures
from longarc.errors import ModelError
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.training.batches import PaddedBatches
from longarc.training.bootstrap import resampled_figures, with_interval
from longarc.training.evaluation import macro_f1
from longarc.training.pretraining.codes import codes_of
from longarc.training.pretraining.documents import Split
from longarc.training.probe import PENALTY, fit_probe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longarc.models.pooled_encoder import PooledEncoder

NEIGHBOURS = 5
"""Few, as rare classes have few documents among the labelled ones."""

MONITORED = 128
"""Held-out documents that are watched for collapse, much more often than all are evaluated."""


class HeldOut:
    """Measures an encoder on documents that it is not trained on, and leaves it as it was.

    Args:
        encoder: the one that is trained.
        file: all documents.
        split: which of them are held out.
        views: makes two views of a document's ids, for the alignment.
        tokenizer: of the encoder.
        max_length: tokens of a document that are read.
        bf16: bfloat16 arithmetic under autocast.
        batch_size: documents at once.
    """

    def __init__(
        self,
        encoder: PooledEncoder,
        file: TokenFile,
        split: Split,
        views: TextViews,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        bf16: bool,
        batch_size: int,
    ):
        self.encoder, self.file, self.split, self.views = encoder, file, split, views
        self.whole = TextViews(crop=None, max_tokens=max_length, special=special_ids(tokenizer))
        self.collate = PaddedBatches(tokenizer, max_length)
        self.bf16, self.batch_size = bf16, batch_size
        random = np.random.default_rng(0)
        self.monitored = np.sort(random.permutation(split.held_out)[:MONITORED])

    def monitored_codes(self) -> Tensor:
        """Codes of the documents that are watched, the same ones each time."""
        return self.codes(self._read(self.monitored))

    def evaluate(self) -> dict[str, Any]:
        """Figures by name: collapse measures; with labels also ``knn`` and ``probe``.

        These two have ``accuracy`` and ``macro_f1``, each with ``value`` and the ``low`` and
        ``high`` of a 95 % interval from resampling the held-out documents. Classes that no labelled
        document has count as errors.
        """
        held_out = self.codes(self._read(self.split.held_out))
        pairs = [self.views(self.file[int(i)], index=int(i)) for i in self.split.held_out]
        second = self.codes([pair[1] for pair in pairs])
        first = self.codes([pair[0] for pair in pairs])
        # The views say how well they agree; everything else is about whole documents.
        aligned = collapse_measures(first, second).alignment
        measures = collapse_measures(held_out)._asdict() | {"alignment": aligned}
        found: dict[str, Any] = {"n": len(held_out), **measures}
        if len(self.split.labelled):
            labelled = self.codes(self._read(self.split.labelled))
            known = np.asarray(self.file.labels)[self.split.labelled]
            truth = np.asarray(self.file.labels)[self.split.held_out]
            for name, predict in (("knn", _neighbours), ("probe", _probe)):
                predicted = predict(_directions(labelled), known, _directions(held_out))
                found[name] = _figures(truth, predicted, len(self.file.names))
        return found

    def codes(self, documents: list[list[int]]) -> Tensor:
        """Codes (N, d) float32, without dropout, in the order given.

        Raises ModelError where they are no numbers; the loss may still have been one.
        """
        found = codes_of(
            self.encoder, documents, self.collate, batch_size=self.batch_size, bf16=self.bf16
        )
        if not found.isfinite().all():
            raise ModelError(
                "the codes of held-out documents are no numbers: the training diverged, or the "
                "model had broken weights. Try a smaller --learning-rate, or --precision fp32."
            )
        return found

    def _read(self, indices: np.ndarray) -> list[list[int]]:
        return [self.whole(self.file[int(i)], index=int(i))[0] for i in indices]


def _directions(codes: Tensor) -> Tensor:
    """Codes of length √d: the coordinates keep a size near 1, as under longarc's head."""
    return functional.normalize(codes) * codes.shape[1] ** 0.5


def _neighbours(labelled: Tensor, known: np.ndarray, asked: Tensor) -> np.ndarray:
    """The class of the nearest documents by cosine, nearer ones counting more."""
    from sklearn.neighbors import KNeighborsClassifier

    nearest = KNeighborsClassifier(
        min(NEIGHBOURS, len(known)), metric="cosine", weights="distance", algorithm="brute"
    )
    return nearest.fit(labelled.numpy(), known).predict(asked.numpy())


def _probe(labelled: Tensor, known: np.ndarray, asked: Tensor) -> np.ndarray:
    """What a linear classifier says that was fitted to the labelled documents."""
    classes, target = np.unique(known, return_inverse=True)
    probe = fit_probe(
        labelled,
        torch.from_numpy(target),
        CrossEntropyLoss(),
        classes=len(classes),
        score=lambda _: 0.0,  # the documents that could choose a penalty are those that measure
        penalties=(PENALTY,),
    )
    return classes[probe.logits(asked).argmax(1).numpy()]


def _figures(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    drawn = resampled_figures(truth, predicted, groups=["head"] * classes)
    accuracy = float((truth == predicted).mean())
    return {
        "accuracy": with_interval(accuracy, drawn["accuracy"]),
        "macro_f1": with_interval(macro_f1(truth, predicted), drawn["macro_f1"]),
    }
