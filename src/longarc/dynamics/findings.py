"""From the figures of a gradient's flow to a verdict, and to what would change it.

The bounds are conventions, not laws: 1 % is what the field calls vanished, and a hundredfold its
mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from longarc.dynamics.diagnosis import Diagnosis, InputSummary, RecurrentSummary
    from longarc.dynamics.gradient_flow import SubLayer

Verdict = Literal["explodes", "vanishes", "grows", "fades", "steady", "unknown"]
GRAVEST_FIRST: tuple[Verdict, ...] = (
    "explodes", "vanishes", "grows", "fades", "steady", "unknown",
)  # fmt: skip

VANISHED, FADED = 0.01, 0.1
"""Of what it was, what is left of a gradient that vanishes, or fades, with depth."""

SHORT = 8
"""Steps below which a text says little about distance."""


_BRANCHES = {"attention": "attention", "feed-forward": "the feed-forward part", "layer": "a layer"}


@dataclass(frozen=True)
class Finding:
    """What is so about one part of a model, and what would change it.

    ``part`` is a recurrent layer's name, ``depth`` or ``inputs``; several with commas between them
    where the same is so about all of them.
    """

    part: str
    verdict: Verdict
    said: str
    advice: tuple[str, ...] = ()


def findings_of(found: Diagnosis) -> tuple[Finding, ...]:
    """One for each recurrent layer, one for the depth and one for the inputs; gravest first.

    Parts for which the texts are too short have one in common.
    """
    inputs = None
    if found.inputs is not None and found.inputs.length >= SHORT:
        inputs = _inputs(found.inputs)
    everywhere = inputs is not None and inputs.verdict == "steady"
    all_found = [_recurrent(e, everywhere) for e in found.recurrent if e.length >= SHORT]
    if found.depth_ratio is not None:
        all_found.append(_depth(found.depth_ratio, found.sublayers))
    if inputs is not None:
        all_found.append(inputs)
    all_found += _too_short(found)
    all_found.sort(key=lambda finding: GRAVEST_FIRST.index(finding.verdict))
    given: set[str] = set()
    for number, finding in enumerate(all_found):  # what one layer needs is not said again
        fresh = tuple(each for each in finding.advice if each not in given)
        given.update(fresh)
        all_found[number] = replace(finding, advice=fresh)
    return tuple(all_found)


def verdict_of(findings: Sequence[Finding]) -> str:
    """The gravest finding as a sentence.

    >>> verdict_of([Finding("depth", "steady", "It is even.")])
    'The gradient neither vanishes nor explodes.'
    """
    if not findings:
        return "No part of this model is one whose gradient can be followed."
    first = findings[0]
    if first.verdict == "steady":
        return "The gradient neither vanishes nor explodes."
    return first.said


def _too_short(found: Diagnosis) -> list[Finding]:
    """One for each length below ``SHORT``: as a rule one, as all parts read the same texts."""
    places: dict[str, dict[str, str]] = {}
    for layer in found.recurrent:
        if layer.length < SHORT:
            said = f"in {layer.name} ({layer.cell})"
            places.setdefault(f"{layer.length:.0f}", {})[layer.name] = said
    if found.inputs is not None and found.inputs.length < SHORT:
        places.setdefault(f"{found.inputs.length:.0f}", {})["inputs"] = "along the text"
    return [
        Finding(
            ", ".join(parts),
            "unknown",
            f"The texts have {length} {'tokens' if 'inputs' in parts else 'steps'}, too few to say "
            f"how far back the gradient comes {_listed(list(parts.values()))}.",
        )
        for length, parts in places.items()
    ]


def _recurrent(found: RecurrentSummary, everywhere: bool) -> Finding:
    span = found.length - 1
    judged: Verdict
    if found.peak >= 1 / VANISHED:
        judged = "explodes"
    elif found.reach < 0.5 * span:
        judged = "vanishes"
    elif found.peak >= 1 / FADED:
        judged = "grows"
    else:
        judged = "fades" if found.reach < 0.9 * span else "steady"
    share = found.terms[found.carried_by]
    carried = f"{_part(share)} of it comes back by the {found.carried_by}"
    if judged in ("explodes", "grows"):
        said = (
            f"In {found.name} ({found.cell}) the gradient {judged}: on its way back over "
            f"{span:.0f} steps it becomes {_times(found.peak)} what it was; {carried}."
        )
    elif judged == "steady":
        said = (
            f"In {found.name} ({found.cell}) the gradient comes from the whole of the "
            f"{found.length:.0f} steps; {carried}."
        )
    else:
        said = (
            f"In {found.name} ({found.cell}) the gradient {judged}: less than 1 % of it comes from "
            f"more than {found.reach:.0f} steps back, of {found.length:.0f}; {carried}."
        )
    if found.parameter_reach is not None:
        said += (
            f" Of its recurrent weights' gradient less than 1 % crossed more than "
            f"{found.parameter_reach:.0f} steps."
        )
    return Finding(found.name, judged, said, tuple(_recurrent_advice(found, judged, everywhere)))


def _recurrent_advice(found: RecurrentSummary, judged: Verdict, everywhere: bool) -> list[str]:
    if judged in ("explodes", "grows"):
        advice = ["Clip the gradient's norm (--max-grad-norm 1), and lower the learning rate."]
        if found.cell == "relu-rnn":
            advice.append("A relu bounds nothing: tanh, or a gated cell (lstm, gru), would.")
        if found.growth > 0:
            factor = math.exp(-found.growth)
            advice.append(
                f"It grows by {math.exp(found.growth) - 1:.1%} a step: recurrent weights scaled by "
                f"{factor:.2f} at the start would hold it level."
            )
        return advice
    if judged not in ("vanishes", "fades"):
        return []
    advice = []
    if everywhere:
        advice.append(
            "The inputs' gradient does reach the whole text, as the pooling gives each token a "
            "short way to the loss: what is lost is only what must be read together over a longer "
            "span."
        )
    if found.carry is None:
        advice.append("A gated cell keeps what this one loses: lstm or gru.")
    else:
        advice.append(_gate_advice(found))
    if not everywhere:
        advice.append(
            "A mean, a maximum or attention over all steps, rather than the last state, gives far "
            "tokens a short way to the loss (--pooling max)."
        )
    return advice


_GATES = {
    "lstm": ("forget gate", "the forget gate's bias"),
    "gru": ("update gate", "the update gate's bias"),
    "output-gated-gru": ("update gate, 1 − z,", "the update gate's bias"),
}


def _gate_advice(found: RecurrentSummary) -> str:
    """What the gate keeps, and the bias with which it would keep 1 % over the text.

    A gate of σ(b) keeps σ(b)^n: σ(b) = .01^(1/n). The chrono initialisation of Tallec & Ollivier
    2018 (arXiv 1804.11188) is of the same order, log n.
    """
    gate, bias = _GATES[found.cell]
    kept = min(max(found.carry or 0.0, 1e-6), 1 - 1e-6)
    lasts = math.log(VANISHED) / math.log(kept)
    wanted = VANISHED ** (1 / max(found.length - 1, 1))
    value = math.log(wanted / (1 - wanted))
    value = -value if found.cell == "output-gated-gru" else value
    return (
        f"The {gate} keeps {kept:.2f} a step on average; a unit that keeps so much has 1 % left "
        f"after {lasts:.0f} steps. "
        f"Starting {bias} at {value:+.1f} would make it 1 % over the {found.length:.0f} steps."
    )


def _depth(ratio: float, sublayers: Sequence[SubLayer]) -> Finding:
    layers = sublayers[-1].layer + 1
    tops = [s for s in sublayers if s.part != "feed-forward"]
    last = tops[-1].gradient
    below = next((tops[-1].layer - s.layer for s in reversed(tops) if s.gradient < 0.01 * last), 0)
    judged: Verdict = (
        "vanishes" if ratio < VANISHED
        else "fades" if ratio < FADED
        else "explodes" if ratio > 1 / VANISHED
        else "grows" if ratio > 1 / FADED
        else "steady"
    )  # fmt: skip
    said = (
        f"Over the {layers} layers the gradient {'is even' if judged == 'steady' else judged}: "
        f"where the first layer reads the stream it is {_times(ratio)} that of the last"
    )
    if judged == "vanishes" and below:
        said += f", and below 1 % of it {below} layers down"
    said += f"; {carried}." if (carried := _carried(sublayers)) else "."
    advice: list[str] = []
    if judged in ("vanishes", "fades"):
        advice = [
            "Let the step size rise more slowly at the start (--warmup), and let lower layers "
            "step as far as the last (--layer-decay 1).",
            "Residual attention (--residual-attention gated), ReZero, or an encoder that "
            "normalises what enters a branch (PreLN) gives the gradient a straighter way down.",
        ]
    elif judged in ("explodes", "grows"):
        advice = ["Clip the gradient's norm (--max-grad-norm 1), and lower the learning rate."]
    idle = [s.layer for s in sublayers if s.change < 0.05]
    if len(idle) > 1:
        advice.append(
            f"{len(idle)} of {len(sublayers)} sub-layers change the stream by less than 5 %, the "
            f"first of them in layer {idle[0]}: so many layers may not be needed."
        )
    return Finding("depth", judged, said, tuple(advice))


def branch_shares(sublayers: Sequence[SubLayer]) -> dict[str, float]:
    """Of the squared gradient that comes back over a sub-layer, the part through its branch.

    A mean over layers, for each kind of sub-layer; empty where branches are not known. The rest
    comes past the branch, along the residual path.
    """
    found: dict[str, list[float]] = {}
    for s in sublayers:
        if s.through is None or s.residual is None:
            continue
        whole = s.through**2 + s.residual**2
        if whole:
            found.setdefault(s.part, []).append(s.through**2 / whole)
    return {part: sum(each) / len(each) for part, each in found.items()}


def _carried(sublayers: Sequence[SubLayer]) -> str:
    shares = branch_shares(sublayers)
    if not shares:
        return ""
    most = max(shares, key=lambda part: shares[part])
    if shares[most] <= 0.5:
        told = " and ".join(f"{_part(shares[part])} through {_BRANCHES[part]}" for part in shares)
        return f"the residual path carries most of it, {told}"
    return f"{_BRANCHES[most]} carries most of it, {_part(shares[most])}"


def _inputs(found: InputSummary) -> Finding:
    length, span = found.length, found.length - 1
    ends = (
        f"the first tenth of a text has {_part(found.tenths[0])} of it, the last tenth "
        f"{_part(found.tenths[-1])}"
    )
    if found.reach >= 0.9 * span:
        said = f"The gradient reaches the inputs of the whole text, {length:.0f} tokens: {ends}."
        return Finding("inputs", "steady", said)
    judged: Verdict = "vanishes" if found.reach < 0.5 * span else "fades"
    said = (
        f"Along the text the inputs' gradient {judged}: less than 1 % of it lies more than "
        f"{found.reach:.0f} tokens before the end, of {length:.0f}; {ends}."
    )
    advice = ("What stands earlier hardly moves the loss: pool over all tokens.",)
    return Finding("inputs", judged, said, advice)


def _listed(names: Sequence[str]) -> str:
    """Several as a sentence has them.

    >>> _listed(["here", "there", "everywhere"])
    'here, there and everywhere'
    """
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _part(share: float) -> str:
    """A share in percent, as a sentence has it.

    >>> _part(0.873), _part(0.004)
    ('87 %', '0.4 %')
    """
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"


def _times(ratio: float) -> str:
    """A factor as a sentence has it.

    >>> _times(0.0312), _times(1.04), _times(2.5e7)
    ('0.031 times', '1.0 times', '2.5e+07 times')
    """
    if not math.isfinite(ratio):
        return "infinitely many times"
    return f"{ratio:.2g} times" if ratio < 0.95 or ratio >= 1e4 else (
        f"{ratio:.1f} times" if ratio < 100 else f"{ratio:,.0f} times"
    )  # fmt: skip
