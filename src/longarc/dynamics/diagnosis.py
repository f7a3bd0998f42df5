"""A model's gradient over several documents: does it vanish or explode, where, and what to change.

Legend: n tokens, L the loss, x_t the vector of token t, U recurrent weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longarc.dynamics.findings import Finding, findings_of, verdict_of
from longarc.dynamics.gradient_flow import GradientFlow, InputShares, SubLayer, gradient_flow
from longarc.dynamics.recurrent_flow import DOCUMENTS, RecurrentFlow
from longarc.errors import DataError


@dataclass(frozen=True)
class RecurrentSummary:
    """One direction of one recurrent layer, over documents; medians but where it says else.

    ``length`` are the steps, ``growth`` the rate a step in nats and ``growth_range`` its smallest
    and largest, ``reach`` the distance beyond which less than 1 % of ‖dL/dstate‖ lies and
    ``peak`` the largest of it, relative to that of the step at which the error enters. ``norms``
    are by distance, up to the length that half of the documents have. ``terms``, ``term_norms`` and
    ``carry`` are means, as in :class:`~longarc.dynamics.recurrent_flow.RecurrentFlow`;
    ``parameters`` are the norms of the parts of dL/dU by the steps they crossed, the whole being
    their sum as vectors, and ``parameter_reach`` is their reach; None unless asked for.
    """

    name: str
    cell: str
    length: float
    growth: float
    growth_range: tuple[float, float]
    reach: float
    peak: float
    norms: tuple[float, ...]
    terms: dict[str, float]
    term_norms: dict[str, float]
    carry: float | None
    parameters: tuple[float, ...] | None = None
    parameter_reach: float | None = None

    @property
    def carried_by(self) -> str:
        """The term with the largest share."""
        return max(self.terms, key=lambda name: self.terms[name])


@dataclass(frozen=True)
class InputSummary:
    """‖dL/dx_t‖ along the text, over the texts of all batches.

    ``within`` is the mean share of a text's sum that lies at most so many tokens before its end, by
    distance from 0, ``tenths`` the mean shares by tenths of the text, the first ones first.
    ``reach`` is the distance beyond which less than 1 % lies and ``length`` the tokens, medians.
    """

    within: tuple[float, ...]
    tenths: tuple[float, ...]
    reach: float
    length: float


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    ``batches`` that were looked at, ``loss`` and ``gradient`` (‖dL/dθ‖) their medians;
    ``depth_ratio`` the stream's gradient at the first layer over that at the last. Parts that the
    model does not have are None or empty. ``verdict`` is a sentence, ``findings`` say it part by
    part, the gravest first.
    """

    batches: int
    loss: float
    gradient: float
    recurrent: tuple[RecurrentSummary, ...]
    sublayers: tuple[SubLayer, ...]
    depth_ratio: float | None
    inputs: InputSummary | None
    findings: tuple[Finding, ...] = ()
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; numbers that are not finite become None, as JSON has none."""
        found = asdict(self)
        for entry, summary in zip(found["recurrent"], self.recurrent, strict=True):
            entry["carried_by"] = summary.carried_by
        return _plain(found)

    def __str__(self) -> str:
        lines = [self.verdict]
        for finding in self.findings:
            said = [] if finding.said == self.verdict else [finding.said]
            lines += [*said, *(f"→ {each}" for each in finding.advice)]
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    exact: int = 0,
    documents: int = DOCUMENTS,
    advance: Callable[[int], Any] | None = None,
) -> Diagnosis:
    """Say whether a model's gradient vanishes or explodes, where, what carries it, what to change.

    Any Hugging Face encoder, and any module that holds ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or
    longarc's output-gated GRU. Each batch is looked at by
    :func:`~longarc.dynamics.gradient_flow.gradient_flow`; batches of one document show how much
    documents differ. Evaluation mode shows the gradient without dropout. Nothing is changed:
    weights, ``.grad`` and random state are as before.

    Args:
        model: any module.
        batches: what the loss takes, each; by default keyword arguments of a Hugging Face model,
            labels among them. An ``attention_mask`` (b, n) in it says which tokens are no padding.
        loss: a function of model and batch that returns a scalar; ``model(**batch).loss`` by
            default.
        exact: of so many batches, the first ones, dL/dU of recurrent layers is also split by how
            many steps its parts crossed, at about n/2 backward passes of a layer.
        documents: of each batch, the first ones, that recurrent layers are followed on.
        advance: is called with 1 for each batch done.

    Raises:
        DataError: there is no batch.
        ModelError: no weight requires a gradient; no loss, or one that depends on no weight.

    >>> from longarc.models.recurrent.config import RecurrentConfig
    >>> from longarc.models.recurrent.model import RecurrentForSequenceClassification
    >>> _ = torch.manual_seed(0)
    >>> model = RecurrentForSequenceClassification(RecurrentConfig(
    ...     cell="rnn", vocab_size=30, embedding_size=4, cell_size=6, bidirectional=False)).eval()
    >>> def loss(model, batch):
    ...     return model(input_ids=batch).logits.square().sum()
    >>> found = diagnose(model, [torch.randint(3, 30, (1, 40))], loss=loss)
    >>> found.recurrent[0].carried_by, found.findings[0].part
    ('candidate', 'recurrent.layers.0.onward')
    """
    flows: list[GradientFlow] = []
    for number, batch in enumerate(batches):
        flows.append(
            gradient_flow(model, batch, loss=loss, exact=number < exact, documents=documents)
        )
        if advance is not None:
            advance(1)
    if not flows:
        raise DataError("There is no batch to diagnose the model on; expected one or more.")
    return summarize(flows)


def summarize(flows: Sequence[GradientFlow]) -> Diagnosis:
    """The diagnosis of a model's flows on several batches.

    >>> flow = GradientFlow(loss=1.0, gradient=2.0, inputs=None, sublayers=(), recurrent=())
    >>> summarize([flow]).verdict
    'No part of this model is one whose gradient can be followed.'
    """
    ratios = [flow.depth_ratio for flow in flows if flow.depth_ratio is not None]
    found = Diagnosis(
        batches=len(flows),
        loss=statistics.median(flow.loss for flow in flows),
        gradient=statistics.median(flow.gradient for flow in flows),
        recurrent=tuple(_recurrent(flows)),
        sublayers=tuple(_sublayers(flows)),
        depth_ratio=statistics.median(ratios) if ratios else None,
        inputs=_inputs(flows),
    )
    findings = findings_of(found)
    return replace(found, findings=findings, verdict=verdict_of(findings))


def _recurrent(flows: Sequence[GradientFlow]) -> list[RecurrentSummary]:
    by_name: dict[str, list[RecurrentFlow]] = {}
    for flow in flows:
        for each in flow.recurrent:
            by_name.setdefault(each.name, []).append(each)
    return [_one_layer(name, found) for name, found in by_name.items()]


def _one_layer(name: str, flows: list[RecurrentFlow]) -> RecurrentSummary:
    # A document of one step says nothing about a step back.
    flows = [f for f in flows if f.length > 1] or flows
    growths = [f.growth for f in flows]
    exact = [f for f in flows if f.parameters is not None]
    kept = [f.carry for f in flows if f.carry is not None]
    return RecurrentSummary(
        name=name,
        cell=flows[0].cell,
        length=statistics.median(f.length for f in flows),
        growth=statistics.median(growths),
        growth_range=(min(growths), max(growths)),
        reach=statistics.median(f.reach for f in flows),
        peak=statistics.median(max(f.norms) for f in flows),
        norms=_by_distance([f.norms for f in flows]),
        terms=_means([f.terms for f in flows]),
        term_norms=_means([f.term_norms for f in flows]),
        carry=statistics.fmean(kept) if kept else None,
        parameters=_by_distance([f.parameters or () for f in exact]) if exact else None,
        parameter_reach=statistics.median(f.parameter_reach or 0 for f in exact) if exact else None,
    )


def _by_distance(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The median of the curves at each distance that half of them have."""
    most = int(statistics.median(map(len, curves)))
    return tuple(statistics.median(c[k] for c in curves if len(c) > k) for k in range(most))


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(each[name] for each in found) for name in found[0]}


def _sublayers(flows: Sequence[GradientFlow]) -> list[SubLayer]:
    by_place: dict[tuple[int, str], list[SubLayer]] = {}
    for flow in flows:
        for each in flow.sublayers:
            by_place.setdefault((each.layer, each.part), []).append(each)
    merged = []
    for found in by_place.values():
        middle: dict[str, Any] = {
            name: statistics.median(getattr(each, name) for each in found)
            for name in ("gradient", "parameters", "size", "change", "similarity")
        }
        splits = found[0].through is not None
        for name in ("through", "residual"):
            middle[name] = statistics.median(getattr(e, name) for e in found) if splits else None
        merged.append(replace(found[0], **middle))
    return merged


def _inputs(flows: Sequence[GradientFlow]) -> InputSummary | None:
    found = InputShares(
        tuple(text for flow in flows if flow.inputs is not None for text in flow.inputs.texts)
    )
    if not found.texts:
        return None
    longest = max(map(len, found.texts))
    within, tenths = torch.zeros(longest), torch.zeros(10)
    for text in found.texts:
        shares = torch.tensor(text)
        sums = shares.cumsum(0)
        within += torch.cat([sums, sums[-1:].expand(longest - len(sums))])
        # A token of a text shorter than ten lies in several tenths, in part.
        ends = torch.linspace(0, len(shares), 11)
        reached = torch.cat([torch.zeros(1), shares.flip(0).cumsum(0)])
        whole, part = ends.floor().long(), ends.frac()
        after = (whole + 1).clamp(max=len(shares))
        tenths += (reached[whole] * (1 - part) + reached[after] * part).diff()
    return InputSummary(
        within=tuple((within / len(found.texts)).tolist()),
        tenths=tuple((tenths / len(found.texts)).tolist()),
        reach=found.reach,
        length=found.length,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
