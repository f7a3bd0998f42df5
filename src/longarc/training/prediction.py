"""Logits and predictions of a trained classifier, in bounded memory and in the order given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longarc.models.head import capture_features, final_linear
from longarc.objectives.losses.registry import build_loss
from longarc.training.batches import Documents, PaddedBatches

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longarc.objectives.losses.contract import Loss
    from longarc.training.run_folder import RunFolder


def chosen_device(device: str = "auto") -> torch.device:
    """The device a run uses: the accelerator if there is one, unless ``cpu`` is asked for."""
    if device == "auto" and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        known = (getattr(torch.cpu, name, None) for name in _CPU_BFLOAT16)
        return any(check() for check in known if check is not None)
    return False


_CPU_BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


class Predictor:
    """A classifier with its tokenizer, ready for texts.

    Args:
        max_length: tokens of a document that are read.
        bf16: bfloat16 arithmetic under autocast; logits come out in float32.
        batch_size: documents at once; documents of similar length share a batch.
        offset: what is added to the logits, (N, C) for N texts, such as a hybrid's linear margins.
    """

    CHUNK = 64
    """Batches that are tokenised and sorted together: more would need memory, fewer padding."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        bf16: bool = False,
        batch_size: int = 32,
        offset: Callable[[Sequence[str]], np.ndarray] | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.bf16 = bf16
        self.batch_size = batch_size
        self.offset = offset
        self._collate = PaddedBatches(tokenizer, max_length)

    def logits(
        self, texts: Sequence[str], advance: Callable[[float], Any] | None = None
    ) -> np.ndarray:
        """(N, C) float32, a row a text, in order; ``advance`` is called with documents done."""
        logits = self._run(texts, features=False, advance=advance)
        return logits if self.offset is None else logits + self.offset(texts)

    def features(
        self, texts: Sequence[str], advance: Callable[[float], Any] | None = None
    ) -> np.ndarray:
        """(N, d) float32: what enters the final linear layer, without dropout."""
        return self._run(texts, features=True, advance=advance)

    @torch.inference_mode()
    def _run(
        self, texts: Sequence[str], *, features: bool, advance: Callable[[float], Any] | None
    ) -> np.ndarray:
        was_training = self.model.training
        self.model.eval()
        device = self.model.device
        rows: list[np.ndarray] = []
        try:
            for start in range(0, len(texts), self.batch_size * self.CHUNK):
                part = texts[start : start + self.batch_size * self.CHUNK]
                documents = Documents(part, self.tokenizer, self.max_length)
                order = np.argsort(-documents.lengths, kind="stable")
                out: list[np.ndarray] = []
                for first in range(0, len(order), self.batch_size):
                    some = order[first : first + self.batch_size]
                    batch = self._collate([documents[int(i)] for i in some])
                    batch = {name: tensor.to(device) for name, tensor in batch.items()}
                    with (
                        self._autocast(device),
                        capture_features(self.model) if features else (nullcontext([])) as captured,
                    ):
                        logits = self.model(**batch).logits
                    result = captured[0] if features else logits
                    out.append(result.float().cpu().numpy())
                    if advance is not None:
                        advance(len(some))
                sorted_rows = np.concatenate(out)
                ordered = np.empty_like(sorted_rows)
                ordered[order] = sorted_rows
                rows.append(ordered)
        finally:
            self.model.train(was_training)
        if not rows:
            head = final_linear(self.model)
            width = head.in_features if features else head.out_features
            return np.zeros((0, width), dtype=np.float32)
        return np.concatenate(rows)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()


def predictor_of(folder: RunFolder) -> Predictor:
    """The model of a finished run with its tokenizer, and a hybrid's linear scores."""
    from longarc.models.loading import load_model, load_tokenizer
    from longarc.training.baseline import LinearBaseline

    config = folder.config()
    device = chosen_device(config.device)
    model = load_model(folder.model, trust_remote_code=config.trust_remote_code)
    return Predictor(
        model.to(device),  # pyright: ignore[reportArgumentType]
        load_tokenizer(folder.model, trust_remote_code=config.trust_remote_code),
        max_length=config.max_length or 0,
        bf16=config.precision == "bf16" and bfloat16_is_fast(device),
        offset=LinearBaseline.load(folder.linear).margins if config.hybrid else None,
    )


def probabilities(logits: np.ndarray, *, multi_label: bool, loss: Loss | None = None) -> np.ndarray:
    """Softmax over classes, or a sigmoid for each label, in float64 and without overflow.

    With ``loss``, what it says of the logits (N, C) of a head that it trained: the same for most,
    corrected for a focal loss.

    >>> probabilities(np.array([[0.0, 1000.0]]), multi_label=False)
    array([[0., 1.]])
    """
    from scipy.special import expit, softmax

    exact = logits.astype(np.float64)
    if loss is not None:
        return loss.probabilities(torch.from_numpy(exact)).numpy()
    return expit(exact) if multi_label else softmax(exact, axis=1)


def trained_loss(folder: RunFolder) -> Loss | None:
    """The loss of a run, for ``probabilities``; None where the head is no longer as it left it.

    A second stage that changed the head (``recipe.json``), or a hybrid's scores in the sum, leave
    logits for a softmax or sigmoid.
    """
    config = folder.config()
    if config.hybrid or folder.recipe().get("second_stage", {}).get("head_changed"):
        return None
    space = folder.labels()
    check = folder.check_file
    rows = json.loads(check.read_text(encoding="utf-8"))["rows"] if check.is_file() else {}
    return build_loss(
        config.loss,
        class_counts=space.counts,
        num_examples=rows.get("train"),
        options=config.loss_options,
        multi_label=space.multi_label,
    )


def decisions(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Class indices (N,) by the largest logit, or a 0/1 array (N, C) by logit > 0."""
    return (logits > 0).astype(np.int64) if multi_label else logits.argmax(axis=1)


def confidence(chances: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Probability of the prediction (N,); multi-label: mean over labels of max(p, 1 − p)."""
    if multi_label:
        return np.maximum(chances, 1 - chances).mean(axis=1)
    return chances.max(axis=1)
