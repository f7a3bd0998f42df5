"""The study's entry: its sizes, what it says, its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longarc.studies.conclusion import Conclusion, conclude, measured
from longarc.studies.realformer.figures import figures
from longarc.studies.realformer.findings import findings
from longarc.studies.realformer.measured import COMPARED, Measured, Size, measure
from longarc.studies.realformer.scratch_training import Outcome
from longarc.studies.shared.long_tailed_tuning import figures as figures_of
from longarc.studies.shared.scratch_encoders import HEAD_WIDTH, Shape
from longarc.studies.shared.word_windows import SHARE
from longarc.studies.study import Finding, StudyResult
from longarc.training.progress import Reporter

FULL = Size(
    Shape(layers=6, width=64, words=1000, length=64),
    steps=3000,
    batch=16,
    points=10,
    rates=(5e-4, 1e-3, 2e-3),
    seeds=3,
    held_out=300,
    train=2000,
    test=1000,
    epochs=4,
    minilm=(128, 300, 100, 40),
)
QUICK = Size(
    Shape(layers=2, width=32, words=200, length=16),
    steps=2,
    batch=2,
    points=2,
    rates=(1e-3,),
    seeds=2,
    held_out=4,
    train=24,
    test=16,
    epochs=1,
    minilm=(16, 1, 1, 2),
    texts=20,
)


def realformer(
    quick: bool = False,
    *,
    tables: tuple[str | Path, str | Path] | None = None,
    reporter: Reporter | None = None,
) -> StudyResult:
    """Train four encoders alike; compare them, their attention, and what they make of many classes.

    Args:
        quick: hardly any text and steps: it shows that the study runs, its numbers say nothing.
        tables: documents with labels to fine-tune on too, and others to test with.
        reporter: told of the progress.
    """
    everything = measure(QUICK if quick else FULL, tables, reporter or Reporter(None))
    found = findings(everything)
    return StudyResult(
        title="RealFormer, and where LayerNorm goes",
        text=_text(everything),
        findings=found,
        table=_table(everything),
        figures=figures(everything),
        source=(
            "He et al. 2021, “RealFormer: Transformer Likes Residual Attention” (arXiv "
            "2012.11747): on BERT’s pre-training and on GLUE and SQuAD RealFormer ≥ PostLN ≥ "
            "PreLN (RealFormer’s BERT-base: MNLI 86.28 and 86.34, SST-2 94.04, CoLA 59.83), with "
            "half the steps for the same result. That the gain shrinks as classes become many, "
            "is a practitioner’s report. PostLN’s need of warm-up: Xiong et al. 2020 (arXiv "
            "2002.04745). ReZero: Bachlechner et al. 2020 (arXiv 2003.04887)."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    return conclude(
        "Residual attention is said to be ahead of LayerNorm after each addition, and that of "
        "LayerNorm before each branch",
        found,
        f"of masked tokens RealFormer restores {measured(found, 'RealFormer restores')} by PostLN, "
        f"which has {measured(found, 'PostLN restores')} by PreLN",
        "It depends on the task and on where training starts: fine-tuned, the gain in accuracy is "
        f"{measured(found, 'RealFormer’s gain')}, and put into a pretrained encoder it restores "
        f"{measured(found, 'Residual attention put')}, with gates that start at 0 "
        f"{measured(found, 'With gates that start')}",
    )


def _text(measured: Measured) -> Sequence[str]:
    size = measured.size
    shape = size.shape
    tasks = ", ".join(f"{t.task.name} ({t.task.classes})" for t in measured.tuned)
    rates = ", ".join(f"{rate:g}" for rate in size.rates)
    best = "; ".join(
        f"{name} {runs[0].cell.rate:g} {'with' if runs[0].cell.warm_up else 'without'} warm-up"
        for name, runs in measured.runs.items()
    )
    return (
        "RealFormer adds each layer’s attention scores to those of the layer before, A_n = "
        "Q_n K_nᵀ/√d + A_(n−1), and leaves BERT’s block, LayerNorm after each addition (PostLN), "
        "as it is. It is said to be ahead of PostLN, and that of PreLN, which normalises what "
        "enters a branch and so adds up ever more of them. ReZero has x + α f(x), α = 0 at the "
        "start, in place of the LayerNorms.",
        f"Four encoders of {shape.layers} layers, {shape.width} numbers a token and "
        f"{shape.width // HEAD_WIDTH} heads start from the same weights and learn to restore "
        f"{SHARE:.0%} of the tokens in windows of {shape.length} tokens of licence texts, in a "
        f"vocabulary of MiniLM’s {shape.words} most frequent. Positions start as sines, words as "
        "the main directions of MiniLM’s vectors, or none of the encoders would get past the "
        f"frequencies of words in so short a training. Each cell has {size.steps} steps of "
        f"{size.batch} windows, the same and masked alike for every encoder; learning rates "
        f"{rates}, with a tenth of the steps as warm-up and without, then linear decay.",
        f"Shares are those of masked tokens restored in {len(measured.grid[0].final)} held-out "
        f"texts. The best cell of each encoder ({best}) is chosen with one seed and compared with "
        f"{size.seeds} "
        "others; ± is one standard error, from the texts and the seeds, and differences count "
        "from two. Licence texts resemble each other; a short training of small encoders says "
        "how they begin, not how large ones end.",
        f"The trained {' and '.join(COMPARED)} are fine-tuned on {size.train} documents each of "
        f"tasks with more and more classes: {tasks}, "
        f"{size.epochs} passes, the first {shape.length} tokens. Intervals are those of a paired "
        "bootstrap over the test documents. Last, residual attention is put into the pretrained "
        f"MiniLM, which has learnt to restore masked tokens in windows of {size.minilm[0]}: in "
        "full, and by gates that are 0 at the start.",
    )


def _table(measured: Measured) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []

    def add(what: str, encoder: str, setting: str, accuracy: float, balanced: float | str) -> None:
        rows.append(
            {
                "what": what,
                "encoder": encoder,
                "setting": setting,
                "accuracy": accuracy,
                "balanced accuracy": balanced,
            }
        )

    outcomes: list[Outcome] = [
        *measured.grid,
        *(o for runs in measured.runs.values() for o in runs),
    ]
    for outcome in outcomes:
        cell = outcome.cell
        warm_up = "warm-up" if cell.warm_up else "no warm-up"
        setting = f"{cell.rate:g}, {warm_up}, seed {cell.seed}"
        add("masked tokens", cell.architecture, setting, float(outcome.final.mean()), "")
    for tuned in measured.tuned:
        for name, runs in tuned.given.items():
            for outcome, given in zip(measured.runs[name], runs, strict=True):
                found = figures_of(tuned.task, given)
                add(
                    f"{tuned.task.name}, {tuned.task.classes} classes", name,
                    f"seed {outcome.cell.seed}", found["accuracy"], found["balanced_accuracy"],
                )  # fmt: skip
    for way in measured.minilm:
        for when, shares in (("before training", way.before), ("after", way.after)):
            add("masked tokens", "MiniLM", f"{way.way}, {when}", float(shares.mean()), "")
    return rows
