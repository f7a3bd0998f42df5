"""The study's entry: its sizes, what it says, its table."""

from __future__ import annotations

from collections.abc import Sequence

from longarc.studies.conclusion import Conclusion, conclude, measured
from longarc.studies.kernel_machine.figures import figures
from longarc.studies.kernel_machine.findings import findings
from longarc.studies.kernel_machine.ledger import WIDTHS, LedgerSize
from longarc.studies.kernel_machine.measured import Measured, Size, measure
from longarc.studies.kernel_machine.neighbours import HIDDEN, MEASURES, TOKENS, TOP, NeighbourSize
from longarc.studies.shared.intervals import interval
from longarc.studies.study import Finding, StudyResult
from longarc.training.progress import Reporter

FULL = Size(
    seeds=5,
    few_seeds=4,
    rates=(0.4, 0.2, 0.1, 0.05),
    time=16.0,
    images=300,
    queries=100,
    exact=(20, 40, 4),
    ledger=LedgerSize(
        train=100, test=100, asked=40, steps=40, rate=0.5, counts=(1, 5, 20), draws=20
    ),
    neighbours=NeighbourSize(categories=5, licences=6, known=10, asked=2, epochs=3),
)
QUICK = Size(
    seeds=2,
    few_seeds=2,
    rates=(0.4, 0.2),
    time=0.8,
    images=20,
    queries=5,
    exact=(3, 8, 1),
    ledger=LedgerSize(train=16, test=6, asked=3, steps=2, rate=0.5, counts=(1, 2), draws=2),
    neighbours=NeighbourSize(categories=2, licences=2, known=3, asked=1, epochs=1),
)


def kernel_machine(quick: bool = False, *, reporter: Reporter | None = None) -> StudyResult:
    """Rebuild networks from kernels along their path; edit, look up, and compare with an SVM.

    Args:
        quick: hardly any steps and examples: it shows that the study runs, its numbers say nothing.
        reporter: told of the progress.
    """
    everything = measure(QUICK if quick else FULL, reporter or Reporter(None))
    found = findings(everything)
    return StudyResult(
        title="A trained network as a kernel machine",
        text=_text(everything.size),
        findings=found,
        table=_table(everything),
        figures=figures(everything),
        source=(
            "Domingos 2020, “Every Model Learned by Gradient Descent Is Approximately a Kernel "
            "Machine” (arXiv 2012.00152): as the step goes to 0, f_T(x) = f_0(x) + Σ α_i K(x, x_i) "
            "with the path kernel K, the tangent kernel’s integral over the path, and α_i the mean "
            "of −∂ℓ_i/∂f on it, weighted by the kernel, so that it depends on x. Sums of inner "
            "products of gradients at checkpoints as influence: Pruthi et al. 2020, “TracIn” "
            "(arXiv 2002.08484). Finite steps, other optimizers, α that do not depend on x, the "
            "ledger and the neighbours are longarc’s questions."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    return conclude(
        "A network learned by gradient descent is said to be a kernel machine over its training "
        "examples as the step goes to 0, and so much like a support vector machine",
        found,
        f"the error falls with the order {measured(found, 'Rebuilt from the tangent')} in the "
        f"step, of finite steps {measured(found, 'At finite steps the sum')} is missing, and an "
        f"SVM on the path kernel has {measured(found, 'A support vector machine')}",
        "It depends on weights that change on the way: with one for each example the error is "
        f"{measured(found, 'With one weight')}, and forgetting an example in the ledger correlates "
        f"{measured(found, 'Forgetting an example')} with training again, learning one more "
        f"{measured(found, 'Learning an example')}",
    )


def _text(size: Size) -> Sequence[str]:
    return (
        "A step of gradient descent moves what a network says of x by the pulls of the losses at "
        "the training examples, times inner products of gradients at x and there. Added up over "
        "the training that is a kernel machine over the training set, with weights that change "
        "on the way. It is said that deep networks are therefore much like support vector "
        "machines, that they look up training examples, and that examples can be added and taken "
        "away by their terms.",
        f"Walks: networks of 64, 32, 32, 32, 10 units with GELU learn {size.images} of "
        f"scikit-learn’s digits by gradient descent for the time {size.time:g} (step size × "
        f"steps); the logits of {size.queries} other digits are rebuilt. Ledger and SVM: networks "
        f"of {', '.join(map(str, WIDTHS))} units learn from {size.ledger.train} digits whether "
        f"they are 5 or more, {size.ledger.steps} steps of {size.ledger.rate:g}; training again "
        "starts from the same weights, with the weights of examples set to 0, or more examples "
        f"added. Neighbours: a network of {HIDDEN} hidden units on vectors of the frozen MiniLM "
        f"({TOKENS} tokens) learns the category of licence texts, with AdamW; then the {TOP} "
        "nearest training texts are those of the same licence, which it was not told, or not. "
        f"{size.seeds} seeds, {size.few_seeds} of the neighbours, each with its own data and first "
        "weights; float64 throughout.",
        "± is half a 95 % interval by Student’s t over the seeds.",
    )


def _table(measured: Measured) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []

    def add(part: str, what: str, quantity: str, values: Sequence[float]) -> None:
        mean, half = interval(values)
        rows.append({"part": part, "what": what, "quantity": quantity, "mean": mean, "±": half})

    for walked in measured.walks:
        name = f"γ = {walked.rate:g}"
        for rule, missing in walked.missing.items():
            add("walk", name, f"missing, ∇f at: {rule}", missing.tolist())
        add("walk", name, "missing, constant weights", walked.constant.tolist())
        add("walk", name, "same digit, constant weights", walked.agreeing.tolist())
    for who in measured.binary[0].accuracy:
        add("SVM", who, "accuracy", [b.accuracy[who] for b in measured.binary])
    for who in measured.binary[0].agreeing:
        add("SVM", who, "says what the network says", [b.agreeing[who] for b in measured.binary])
    for kind in ("forgotten", "learned"):
        for count in measured.size.ledger.counts:
            edits = [getattr(b, kind)[count] for b in measured.binary]
            for quantity in ("correlation", "slope", "error"):
                values = [getattr(e, quantity) for e in edits]
                add("ledger", f"{kind}, {count} at once", quantity, values)
    for who in MEASURES:
        add("neighbours", who, "of the same licence", [f.licence[who] for f in measured.found])
        add("neighbours", who, "of the same category", [f.category[who] for f in measured.found])
    return rows
