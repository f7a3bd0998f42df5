"""The study's entry: its sizes, what it says, its table."""

from __future__ import annotations

from collections.abc import Sequence

from longarc.studies.conclusion import Conclusion, conclude, holds, measured
from longarc.studies.shared.intervals import interval
from longarc.studies.simsiam.figures import figures
from longarc.studies.simsiam.findings import findings
from longarc.studies.simsiam.measured import NORMS, Measured, Size, measure
from longarc.studies.study import Finding, StudyResult
from longarc.training.progress import Reporter

FULL = Size(steps=(200, 300), every=5, seeds=4, few_seeds=2, documents=800)
QUICK = Size(steps=(6, 6), every=1, seeds=1, few_seeds=1, documents=24, digits=150)

PUBLISHED = {
    "SimSiam": 67.7,
    "no stop-gradient": 0.1,
    "no predictor": 0.1,
    "predictor fixed at random": 1.5,
    "predictor’s rate not decayed": 68.1,
    f"SimSiam, norm {NORMS['none']}": 34.6,
    f"SimSiam, norm {NORMS['output']}": 68.1,
}
"""ImageNet, linear classification after 100 epochs, per cent."""


def simsiam(quick: bool = False, *, reporter: Reporter | None = None) -> StudyResult:
    """Follow the scalar model, run every ablation on digits and documents, try the mean view.

    Args:
        quick: hardly any steps and examples: it shows that the study runs, its numbers say nothing.
        reporter: told of the progress.
    """
    everything = measure(QUICK if quick else FULL, reporter or Reporter(None))
    found = findings(everything)
    return StudyResult(
        title="SimSiam: what keeps codes from collapse",
        text=_text(everything),
        findings=found,
        table=_table(everything),
        figures=figures(everything),
        source=(
            "Chen & He 2021, “Exploring Simple Siamese Representation Learning” (arXiv "
            "2011.10566): ImageNet, linear classification after 100 epochs: 67.7 %; without "
            "stop-gradient 0.1, without predictor 0.1, with a predictor fixed at random 1.5, "
            "without decay of its learning rate 68.1; by the batch normalisation of the heads: "
            "none 34.6, between layers 67.4, after the projector’s last too 68.1. Moving average: "
            "Grill et al. 2020 (arXiv 2006.07733). Fast predictor and slow encoder, the scalar "
            "model and the mean view as an open question: Su Jianlin 2020 (in Chinese, "
            "kexue.fm/archives/7980)."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    gradient = holds(found, "Without the stop-gradient codes")
    predictor = holds(found, "Without a predictor")
    better = holds(found, "SimSiam’s codes are better")
    mean = holds(found, "With f(x̄) as target codes")
    return conclude(
        "A stop-gradient and a predictor are said to keep codes from collapse, without negatives "
        "or a moving average",
        found,
        f"codes {'collapse' if gradient else 'do not always collapse'} without the stop-gradient "
        f"and {'do so' if predictor else 'not always'} without a predictor, and SimSiam’s are "
        f"{'' if better else 'not '}better than an untrained network’s "
        f"({measured(found, 'SimSiam’s codes are better')}); with the mean view as target and "
        f"neither of the two, an open question, they {'do not' if mean else 'collapse too'} "
        f"({measured(found, 'With f(x̄) as target codes')})",
        "It depends on the predictor, of which ten times the encoder’s rate against a tenth has "
        f"({measured(found, 'A fast predictor')}) and one fixed at random "
        f"({measured(found, 'A predictor fixed at random')}), and on the heads’ normalisation "
        f"({measured(found, 'With the stop-gradient codes do not collapse, whatever')})",
    )


def _text(measured: Measured) -> Sequence[str]:
    size = measured.size
    digits, licences = (runs.material for runs in measured.materials)
    return (
        "SimSiam makes the codes of two views of an input alike, and has no negatives. A constant "
        "code would be the best solution. It is said not to be reached because gradients do not "
        "flow into the target: the predictor, next to the loss, is fast, the encoder slow, and the "
        "pull on the encoder is gone once the predictor fits. Without the stop-gradient the target "
        "is a fast lane to collapse. Another view has it that the target f(T₂x) stands for the "
        "mean of f over all views, to first order f(x̄), x̄ the mean view; whether f(x̄) as target "
        "avoids collapse without any of this, its author left open.",
        f"A small convolutional network learns from {len(digits.train)} of scikit-learn’s digits, "
        "moved by up to a pixel each way and with noise; the mean view is the blurred image. A "
        f"network of two layers learns from {len(licences.train)} licence texts: a view is one of "
        f"{licences.train.shape[1]} passages of 64 tokens, as a vector of the frozen MiniLM, the "
        "mean view the mean of these. Projector and predictor have two layers each, with batch "
        "normalisation between them and none at the end, where it would hide a collapse from the "
        f"standard deviation. {' and '.join(map(str, size.steps))} steps of SGD (learning rate "
        f"0.1, momentum 0.9, cosine schedule) from {size.seeds} starts, the same ones and the same "
        f"batches for all variants; heads with other normalisation from {size.few_seeds}.",
        "Spread is √d times the standard deviation of the numbers of normalised projections: 1 if "
        "they are spread evenly, 0 if all are the same. Accuracy is that of five nearest "
        "neighbours by the encoder’s codes, of views of held-out examples among views of training "
        "examples. ± is a 95 % interval by Student’s t over the starts, differences are paired by "
        "start. Collapsed is a spread below 0.1, not collapsed one above 0.5. Small networks and "
        "short trainings: compare directions with the published figures, not values.",
    )


def _table(measured: Measured) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for runs in measured.materials:
        for name, outcomes in runs.outcomes.items():
            knn, knn_half = interval([o.knn for o in outcomes])
            probe, probe_half = interval([o.probe for o in outcomes])
            trained = bool(outcomes[0].steps)
            alarms = [o.alarm.step for o in outcomes if o.alarm is not None]
            rows.append(
                {
                    "data": runs.material.name,
                    "variant": name,
                    "starts": len(outcomes),
                    "spread": _mean([o.end_spread for o in outcomes]) if trained else "",
                    "rank": _mean([o.end_rank for o in outcomes]) if trained else "",
                    "loss": _mean([o.loss[-1] for o in outcomes]) if trained else "",
                    "neighbours": knn,
                    "±": knn_half if len(outcomes) > 2 else "",
                    "probe": probe,
                    "probe ±": probe_half if len(outcomes) > 2 else "",
                    "of mean views": _mean([o.knn_of_means for o in outcomes]),
                    "alarms": f"{len(alarms)} of {len(outcomes)}" if trained else "",
                    "published, %": PUBLISHED.get(name, ""),
                }
            )
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
