"""What the study of kernel machines claims, and how close counts: decided before it was run."""

from __future__ import annotations

from collections.abc import Sequence

from longarc.studies.kernel_machine.ledger import GAUSSIANS, PATH, Edits
from longarc.studies.kernel_machine.measured import Measured
from longarc.studies.kernel_machine.neighbours import TOP
from longarc.studies.kernel_machine.walks import ORDERS
from longarc.studies.shared.intervals import interval
from longarc.studies.shared.power_law import slope
from longarc.studies.study import Finding

CLOSE = 0.1  # an order of convergence, to count as the one expected
ROUNDING = 1e-9  # of the movement, to count as nothing
USEFUL = 0.5  # a correlation above it foretells; an error below it is more right than wrong


def findings(measured: Measured) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_orders(measured),
        _exact(measured),
        *_constant(measured),
        *_svm(measured),
        *_ledger(measured),
        *_neighbours(measured),
    ]


def told(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and interval.

    >>> told([1.0, 2.0, 3.0])
    '2.00 ± 2.48'
    """
    mean, half = interval(values)
    return f"{mean:{form}} ± {half:{form}}".replace("-", "−")


def orders(measured: Measured) -> dict[str, list[float]]:
    """By rule the order of its error in the learning rate, of each seed."""
    rates = [walked.rate for walked in measured.walks]
    return {
        rule: [
            slope(rates, [float(walked.missing[rule][seed]) for walked in measured.walks])
            for seed in range(measured.size.seeds)
        ]
        for rule in ORDERS
    }


def _orders(measured: Measured) -> list[Finding]:
    claims = {
        "start of the step": "Rebuilt from the tangent kernel at every step, f_T is reached as "
        "the learning rate goes to 0.",
        "middle": "With the query’s gradient in the middle of each step it is reached one order "
        "sooner.",
        "two points": "With two points of Gauss on each step two orders sooner still.",
    }
    found = []
    rates = [walked.rate for walked in measured.walks]
    for rule, order in ORDERS.items():
        values = orders(measured)[rule]
        ends = [measured.walks[i].missing[rule].mean() for i in (0, -1)]
        found.append(
            Finding(
                claims[rule],
                f"slope {order}",
                told(values),
                abs(interval(values)[0] - order) <= CLOSE,
                "Slope of the logarithm of the mean error of the logits, as a share of how far "
                f"they moved, against that of γ, {rates[0]:g} to {rates[-1]:g}; the share falls "
                f"from {ends[0]:.2g} to {ends[1]:.2g}. Holds if the mean is within {CLOSE:g}."
                + ("" if order == 1 else " longarc’s."),
            )
        )
    return found


def _exact(measured: Measured) -> Finding:
    return Finding(
        "At finite steps the sum is exact: for gradient descent, momentum and AdamW with "
        "clipping, dropout, decay and warm-up.",
        f"below {ROUNDING:g}",
        ", ".join(f"{value:.0e}" for value in measured.residuals.values()),
        all(value <= ROUNDING for value in measured.residuals.values()),
        "longarc’s: the largest |f_T − f_0 − Σ contributions − decay| over the largest "
        f"|f_T − f_0|, {', '.join(measured.residuals)}; {measured.size.exact[0]} steps in "
        "float64, points added on each step until nothing is missing.",
    )


def _constant(measured: Measured) -> list[Finding]:
    last = measured.walks[-1]
    agreeing = last.agreeing.tolist()
    return [
        Finding(
            "With one weight for each example and the path kernel, whatever x, the machine is the "
            "network too.",
            "error goes to 0 with γ",
            f"{told(last.constant.tolist())} of the movement at γ = {last.rate:g}, "
            f"{told(measured.walks[0].constant.tolist())} at {measured.walks[0].rate:g}",
            interval(last.constant.tolist())[0] < CLOSE,
            "Not the paper’s claim, whose weights depend on x, but how it is often read: α_i the "
            "sum of an example’s pulls over the path, K the kernel’s mean. Holds if the mean "
            f"error at the smallest γ is below {CLOSE:g}.",
        ),
        Finding(
            "That machine at least says what the network says.",
            "95 % of the time",
            told([100 * value for value in agreeing], ".1f") + " %",
            interval(agreeing)[0] >= 0.95,
            f"longarc’s question: share of {measured.size.queries} digits that both name alike; "
            f"accuracy {told([100 * v for v in last.accuracy[1].tolist()], '.1f')} % against "
            f"{told([100 * v for v in last.accuracy[0].tolist()], '.1f')} %.",
        ),
    ]


def _svm(measured: Measured) -> list[Finding]:
    binary = measured.binary

    def share(of: str, who: str) -> list[float]:
        return [100 * getattr(b, of)[who] for b in binary]

    apart = [
        a - b for a, b in zip(share("accuracy", PATH), share("accuracy", "network"), strict=True)
    ]
    ahead = [
        a - b for a, b in zip(share("agreeing", PATH), share("agreeing", GAUSSIANS), strict=True)
    ]
    mean, half = interval(apart)
    return [
        Finding(
            "A support vector machine on the path kernel does as well as the network.",
            "no difference",
            f"{told(share('accuracy', PATH), '.1f')} % against "
            f"{told(share('accuracy', 'network'), '.1f')} %",
            mean + half >= 0 and mean > -2,
            f"Test accuracy on {measured.size.ledger.test} digits; difference {told(apart, '.1f')} "
            "points, paired; one with Gaussians has "
            f"{told(share('accuracy', GAUSSIANS), '.1f')} %. C is cross-validated. Holds if the "
            "interval of the difference reaches zero and its mean is above −2 points.",
        ),
        Finding(
            "It says what the network says, more so than one that never saw the network.",
            "more",
            f"{told(share('agreeing', PATH), '.1f')} % against "
            f"{told(share('agreeing', GAUSSIANS), '.1f')} %",
            interval(ahead)[0] > interval(ahead)[1],
            "Share of test digits on which it agrees with the network, against that of the one "
            f"with Gaussians; {told(ahead, '.1f')} points, paired. Holds if the interval is above "
            "zero.",
        ),
    ]


def _ledger(measured: Measured) -> list[Finding]:
    found = []
    most = measured.size.ledger.counts[-1]
    for kind, verb in (("forgotten", "Forgetting"), ("learned", "Learning")):
        edits: dict[int, list[Edits]] = {
            count: [getattr(b, kind)[count] for b in measured.binary]
            for count in measured.size.ledger.counts
        }
        single = [e.correlation for e in edits[1]]
        along = "; ".join(
            f"{count} at once: correlation {told([e.correlation for e in some])}, "
            f"{told([e.slope for e in some])} times the change foretold took place, error "
            f"{told([e.error for e in some])} of the change"
            for count, some in edits.items()
        )
        found.append(
            Finding(
                f"{verb} an example in the ledger foretells what training again changes.",
                f"correlation above {USEFUL:g}",
                told(single),
                interval(single)[0] - interval(single)[1] > USEFUL,
                f"longarc’s question, over {measured.size.ledger.draws} edits and "
                f"{measured.size.ledger.asked} margins a seed: {along}. Holds if the interval for "
                f"one example is above {USEFUL:g}.",
            )
        )
        errors = [e.error for e in edits[1]]
        found.append(
            Finding(
                f"{verb} in the ledger stands for training again.",
                f"error below {USEFUL:g}",
                f"{told(errors)}; {told([e.error for e in edits[most]])} of {most} at once",
                interval(errors)[0] + interval(errors)[1] < USEFUL,
                "The same edits: root mean square of the difference over that of the change, for "
                f"one example. Holds if the interval is below {USEFUL:g}.",
            )
        )
    return found


def _neighbours(measured: Measured) -> list[Finding]:
    def share(who: str) -> list[float]:
        return [100 * f.licence[who] for f in measured.found]

    chance = 100 * measured.found[0].chance[0]
    found = []
    for other in ("TF-IDF", "embedding"):
        ahead = [a - b for a, b in zip(share("path kernel"), share(other), strict=True)]
        found.append(
            Finding(
                f"The path kernel finds texts of the same licence better than {other} does"
                + (" (of the vectors that it works on)." if other == "embedding" else "."),
                "more",
                f"{told(share('path kernel'), '.1f')} % against {told(share(other), '.1f')} %",
                interval(ahead)[0] > interval(ahead)[1],
                f"longarc’s question: share of the {TOP} nearest of the training texts that are of "
                f"the same licence, {chance:.1f} % by chance; {told(ahead, '.1f')} points, paired. "
                f"By contributions to the prediction {told(share('contribution'), '.1f')} %. Holds "
                "if the interval is above zero.",
            )
        )
    kinds = {
        who: [100 * f.category[who] for f in measured.found]
        for who in ("contribution", "path kernel", "embedding", "TF-IDF")
    }
    best = max(("embedding", "TF-IDF"), key=lambda who: interval(kinds[who])[0])
    ahead = [a - b for a, b in zip(kinds["path kernel"], kinds[best], strict=True)]
    accuracy = [100 * f.accuracy for f in measured.found]
    found.append(
        Finding(
            "It finds texts of the same category, which the network learned, better than both.",
            "more",
            f"{told(kinds['path kernel'], '.1f')} % against {told(kinds[best], '.1f')} % ({best})",
            interval(ahead)[0] > interval(ahead)[1],
            f"The same with the category; {told(ahead, '.1f')} points, paired. By contributions to "
            f"the prediction {told(kinds['contribution'], '.1f')} %; the network names the "
            f"category of {told(accuracy, '.1f')} %. Holds if the interval is above zero.",
        )
    )
    return found
