"""Where the gradient of a loss goes: by distance from a text's end, by layer, by recurrent step.

Legend: b batch, n tokens, d width, L the loss, x_t the vector of token t.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longarc.dynamics.gradient_share import reach
from longarc.dynamics.implicit_regularization import loss_of_output
from longarc.dynamics.recurrent_flow import DOCUMENTS, RecurrentFlow, recurrent_flow
from longarc.dynamics.replay import replayed
from longarc.dynamics.watching import Entry, Watch
from longarc.errors import ModelError

_CHECKPOINTING = (
    "the gradient does not come back to the layers' inputs: switch gradient checkpointing off, or "
    "put the model into evaluation mode."
)


@dataclass(frozen=True)
class InputShares:
    """How much of dL/dx_t there is at each distance from a text's end.

    ``texts`` has, for each text, ‖dL/dx_t‖ as a share of the text's own sum, by distance from its
    end: as many numbers as it has tokens.
    """

    texts: tuple[tuple[float, ...], ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """By distance (n,), a mean over the texts that are long enough."""
        longest = max(map(len, self.texts))
        return tuple(
            statistics.fmean(text[k] for text in self.texts if len(text) > k)
            for k in range(longest)
        )

    @property
    def reach(self) -> float:
        """The distance beyond which less than 1 % of a text's sum lies; median over the texts."""
        return statistics.median(reach(torch.tensor(text)) for text in self.texts)

    @property
    def length(self) -> float:
        """The number of tokens; median over the texts."""
        return statistics.median(map(len, self.texts))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self) | {"shares": self.shares, "reach": self.reach, "length": self.length}


@dataclass(frozen=True)
class SubLayer:
    """The residual stream where a sub-layer reads it, and what the sub-layer does to it.

    Norms are over all tokens of the batch. ``through`` and ``residual`` are the parts of
    ``gradient`` that come back through the sub-layer's branch and past it; they add up as vectors,
    not as norms. None where a family's branches are not known.
    """

    layer: int
    part: str
    gradient: float
    """‖dL/dx‖, x the stream that enters."""
    through: float | None
    residual: float | None
    parameters: float
    """‖dL/dθ‖ of the sub-layer's weights."""
    size: float
    """Root mean square of the numbers of x."""
    change: float
    """‖y − x‖ / ‖x‖, y the stream that leaves; mean over tokens."""
    similarity: float
    """cos(x, y), mean over tokens."""


@dataclass(frozen=True)
class GradientFlow:
    """What :func:`gradient_flow` found; parts that the model does not have are None or empty."""

    loss: float
    gradient: float
    """‖dL/dθ‖ of all weights."""
    inputs: InputShares | None
    sublayers: tuple[SubLayer, ...]
    recurrent: tuple[RecurrentFlow, ...]

    @property
    def depth_ratio(self) -> float | None:
        """‖dL/dx‖ where the first layer reads the stream over that where the last one does."""
        norms = [s.gradient for s in self.sublayers if s.part != "feed-forward"]
        if len(norms) < 2:
            return None
        return norms[0] / norms[-1] if norms[-1] else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        inputs = None if self.inputs is None else self.inputs.to_dict()
        return asdict(self) | {"depth_ratio": self.depth_ratio, "inputs": inputs}


def gradient_flow(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    exact: bool = False,
    documents: int = DOCUMENTS,
) -> GradientFlow:
    """Say where the gradient of a batch's loss goes.

    Any module: token vectors are what its embedding table puts out; the residual stream is found in
    the Transformers of BERT's, RoBERTa's, ModernBERT's and DistilBERT's kind, and by whole layers
    in others; recurrent layers are ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and longarc's output-gated
    GRU wherever they stand. Weights, ``.grad`` and random state are as before afterwards; dropout
    is off or on as the model is in evaluation or training mode.

    It takes a forward and a backward pass, and, for recurrent layers, the textbook steps of
    ``documents`` texts: benchmarks/gradient_flow.py has it at less than 1.3 training steps.

    Args:
        model: any module.
        batch: what the loss takes; by default the keyword arguments of a Hugging Face model, labels
            among them. An ``attention_mask`` (b, n) in it, 0 for padding, says which tokens count;
            without one all do.
        loss: a function of model and batch that returns a scalar; ``model(**batch).loss`` by
            default.
        exact: also split recurrent layers' dL/dU by how many steps its parts crossed, which takes
            about n/2 backward passes of the layer.
        documents: of the batch, the first ones, that recurrent layers are followed on.

    Raises:
        ModelError: no weight requires a gradient; no loss, or one that depends on no weight.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> model = BertForSequenceClassification(BertConfig(
    ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
    ...     vocab_size=30)).eval()
    >>> batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([0])}
    >>> flow = gradient_flow(model, batch)
    >>> [(s.layer, s.part) for s in flow.sublayers]
    [(0, 'attention'), (0, 'feed-forward'), (1, 'attention'), (1, 'feed-forward')]
    >>> len(flow.inputs.shares), round(sum(flow.inputs.shares), 3)
    (4, 1.0)
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ModelError(
            f"No weight of this {type(model).__name__} requires a gradient, so there is none to "
            "follow. Unfreeze what training would move."
        )
    call = loss_of_output if loss is None else loss
    with torch.enable_grad():
        with Watch(model) as watch:
            value = replayed(lambda: call(model, batch), weights)()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ModelError(
                "The loss is no scalar tensor that depends on the weights; expected the batch's "
                "mean, not detached."
            )
        gradient_of = _differentiate(value.sum(), watch, weights)
    mask = batch["attention_mask"] if hasattr(batch, "keys") and "attention_mask" in batch else None
    seen = mask.bool() if mask is not None and mask.ndim == 2 else None
    return GradientFlow(
        loss=float(value.detach()),
        gradient=_joint(gradient_of[id(w)] for w in weights),
        inputs=_input_shares(watch.vectors, gradient_of, seen),
        sublayers=tuple(_sublayers(watch, gradient_of, seen)),
        recurrent=tuple(
            flow
            for called in watch.calls
            if called.output is not None
            for flow in recurrent_flow(called, gradient_of, seen, exact=exact, documents=documents)
        ),
    )


def _differentiate(
    value: Tensor, watch: Watch, weights: Sequence[Tensor]
) -> dict[int, Tensor | None]:
    """The gradients of all that was kept, by the tensors' identities."""
    wanted: list[Tensor] = [*weights]
    wanted += [t for entry in watch.entries for t in (entry.stream, entry.copy) if t is not None]
    wanted += [t for t in (watch.vectors, watch.last) if t is not None]
    for called in watch.calls:
        if called.output is not None:
            wanted += [called.data, *called.finals]
    wanted = [t for t in {id(t): t for t in wanted}.values() if t.requires_grad]
    try:
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ModelError(_CHECKPOINTING) from error
    found: dict[int, Tensor | None] = dict.fromkeys(map(id, weights))
    found.update((id(t), g) for t, g in zip(wanted, gradients, strict=True))
    return found


def _input_shares(
    vectors: Tensor | None, gradient_of: dict[int, Tensor | None], mask: Tensor | None
) -> InputShares | None:
    gradient = None if vectors is None else gradient_of.get(id(vectors))
    if gradient is None:
        return None
    norms = gradient.float().norm(dim=-1)  # (b, n)
    if mask is None or mask.shape != norms.shape:
        mask = torch.ones_like(norms, dtype=torch.bool)
    texts = [row[seen].flip(0) for row, seen in zip(norms.cpu(), mask.cpu(), strict=True)]
    texts = [row for row in texts if len(row) and float(row.sum())]
    if not texts:
        return None
    return InputShares(tuple(tuple((row / row.sum()).tolist()) for row in texts))


def _sublayers(
    watch: Watch, gradient_of: dict[int, Tensor | None], mask: Tensor | None
) -> list[SubLayer]:
    if watch.last is None:
        return []
    after = [*(entry.stream for entry in watch.entries[1:]), watch.last]
    return [
        _sublayer(number, entry, leaves, gradient_of, mask)
        for number, entry, leaves in zip(_layers(watch.entries), watch.entries, after, strict=True)
    ]


def _layers(entries: Sequence[Entry]) -> list[int]:
    """The layers' numbers in the order of the calls: one layer may serve as several."""
    numbers, number = [], -1
    for entry in entries:
        number += entry.branch.part != "feed-forward"
        numbers.append(number)
    return numbers


def _sublayer(
    number: int,
    entry: Entry,
    leaves: Tensor,
    gradient_of: dict[int, Tensor | None],
    mask: Tensor | None,
) -> SubLayer:
    whole = gradient_of.get(id(entry.stream))
    if whole is None:
        raise ModelError(_CHECKPOINTING)
    copy = entry.copy
    through = residual = None
    if copy is not None:
        part = gradient_of.get(id(copy))
        part = torch.zeros_like(whole) if part is None else part
        through, residual = float(part.norm()), float((whole - part).norm())
    x, y = entry.stream.detach(), leaves.detach()
    if mask is not None and mask.shape == x.shape[:2]:
        x, y = x[mask], y[mask]
    x, y = x.flatten(0, -2).float(), y.flatten(0, -2).float()
    tiny = torch.finfo(x.dtype).tiny
    sizes = x.norm(dim=-1).clamp(min=tiny)
    return SubLayer(
        layer=number,
        part=entry.branch.part,
        gradient=float(whole.norm()),
        through=through,
        residual=residual,
        parameters=_joint(
            gradient_of.get(id(weight))
            for owner in entry.branch.owners
            for weight in owner.parameters()
        ),
        size=float(x.square().mean().sqrt()),
        change=float(((y - x).norm(dim=-1) / sizes).mean()),
        similarity=float(((x * y).sum(-1) / sizes / y.norm(dim=-1).clamp(min=tiny)).mean()),
    )


def _joint(gradients: Any) -> float:
    squares = [float(g.norm()) ** 2 for g in gradients if g is not None]
    return math.sqrt(sum(squares))
