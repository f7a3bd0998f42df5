"""The studies by name, and how one is run. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longarc.data.table import refuse_missing
from longarc.errors import OptionError, close_matches

if TYPE_CHECKING:
    from longarc.studies.study import StudyResult
    from longarc.training.progress import Reporter


@dataclass(frozen=True)
class StudyInfo:
    """What is known of a study without running it.

    ``path`` is ``module:function``, the function taking ``quick`` and returning a ``StudyResult``;
    ``summary`` one line; ``seconds`` about how long it takes on two CPU cores. ``takes`` are what
    else the function takes of ``tables`` and ``reporter``. ``claim`` is a sentence with what was
    claimed, ``source`` who claimed it first, and ``references`` the keys of ``references.bib``.
    """

    path: str
    summary: str
    seconds: int
    takes: tuple[str, ...] = ()
    claim: str = ""
    source: str = ""
    references: tuple[str, ...] = ()


STUDIES: dict[str, StudyInfo] = {
    "imbalance": StudyInfo(
        "longarc.studies.imbalance.study:imbalance",
        "every loss as a way to re-weight cross-entropy's gradient",
        seconds=5,
        claim="Every loss for rare classes is cross-entropy with its gradient re-weighted",
        source="longarc, from the papers of each loss",
        references=(
            "cui2019class",
            "menon2021long",
            "cao2019learning",
            "lin2017focal",
            "ridnik2021asymmetric",
            "su2022zlpr",
        ),
    ),
    "kernel-machine": StudyInfo(
        "longarc.studies.kernel_machine.study:kernel_machine",
        "a trained network as a kernel machine: rebuilt, edited, searched, beside an SVM",
        seconds=600,
        takes=("reporter",),
        claim=(
            "A network learned by gradient descent is a kernel machine over its training examples"
        ),
        source="Domingos 2020",
        references=(
            "domingos2020every",
            "pruthi2020estimating",
        ),
    ),
    "learning-rate": StudyInfo(
        "longarc.studies.learning_rate.study:learning_rate",
        "a finite step as a gradient penalty: on two weights, on digits, by flooding, with Adam",
        seconds=180,
        takes=("reporter",),
        claim=(
            "A large learning rate is a gradient penalty, ends in flatter minima and tests better"
        ),
        source="Barrett & Dherin 2021",
        references=(
            "barrett2021implicit",
            "ishida2020do",
            "karakida2023understanding",
            "cattaneo2024implicit",
        ),
    ),
    "performer": StudyInfo(
        "longarc.studies.performer:performer",
        "random features of the softmax: errors by how they are drawn, and when they pay",
        seconds=120,
        claim=(
            "Random features stand in for the softmax, nearer if they are orthogonal, and pay from "
            "some 5,000 tokens on"
        ),
        source="Choromanski et al. 2021; Su 2020",
        references=(
            "choromanski2021rethinking",
            "likhosherstov2022chefs",
        ),
    ),
    "positions": StudyInfo(
        "longarc.studies.positions.study:positions",
        "positions stretched threefold: masked tokens restored before and after training",
        seconds=1130,
        claim=(
            "Trained positions, combined by a coarse and a fine index, serve longer texts after a "
            "short training"
        ),
        source="Su 2020",
        references=("su2020hierarchical",),
    ),
    "realformer": StudyInfo(
        "longarc.studies.realformer.study:realformer",
        "residual attention beside PostLN, PreLN and ReZero, from scratch and on many classes",
        seconds=7200,
        takes=("tables", "reporter"),
        claim=(
            "Residual attention is ahead of LayerNorm after each addition, and that of LayerNorm "
            "before"
        ),
        source="He et al. 2021",
        references=(
            "he2021realformer",
            "xiong2020layer",
            "bachlechner2020rezero",
        ),
    ),
    "rnn": StudyInfo(
        "longarc.studies.rnn.study:rnn",
        "recurrent cells: bounds, gates and the Jacobian's terms, from exercises to texts",
        seconds=600,
        takes=("tables", "reporter"),
        claim=(
            "A forget gate close to 1 keeps memory and gradient alike, and the GRU, with a gate "
            "fewer, is less stable than the LSTM"
        ),
        source="Hochreiter & Schmidhuber 1997; Su 2020",
        references=(
            "hochreiter1997long",
            "cho2014learning",
            "pascanu2013difficulty",
            "jozefowicz2015empirical",
            "saxe2014exact",
        ),
    ),
    "simsiam": StudyInfo(
        "longarc.studies.simsiam.study:simsiam",
        "why SimSiam does not collapse: two numbers, every ablation, the mean view as target",
        seconds=600,
        takes=("reporter",),
        claim=(
            "A stop-gradient and a predictor keep SimSiam's codes from collapse, without negatives "
            "or a moving average"
        ),
        source="Chen & He 2021",
        references=(
            "chen2021exploring",
            "grill2020bootstrap",
        ),
    ),
}

QUICKLY = "This was a quick run: it shows that the study works, and its numbers say nothing."


def run_study(
    name: str,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    quick: bool = False,
    tables: tuple[str | Path, str | Path] | None = None,
    reporter: Reporter | None = None,
) -> StudyResult:
    """Run a study, write its folder and return what it found.

    Args:
        name: a key of ``STUDIES``.
        out: folder to write; ``studies/NAME`` by default. The page is its ``study.html``.
        overwrite: whether to replace an earlier study there.
        quick: fewer data and sizes, in at most a minute: a look, whose findings are rougher.
        tables: documents with labels to train on, and to test with; for studies that take them.
        reporter: told of the progress by studies that last.

    Raises:
        OptionError: an unknown name, or tables for a study that takes none.
        RunError: a folder that is taken; before anything is run.

    >>> run_study("inbalance")
    Traceback (most recent call last):
    longarc.errors.OptionError: There is no study 'inbalance'. Did you mean imbalance? Known: imbalance, kernel-machine, learning-rate, performer, positions, realformer, rnn, simsiam.
    """  # noqa: E501
    if name not in STUDIES:
        raise OptionError(f"There is no study {name!r}. {close_matches(name, STUDIES)}")
    info = STUDIES[name]
    if tables is not None and "tables" not in info.takes:
        takers = [other for other, known in STUDIES.items() if "tables" in known.takes]
        raise OptionError(
            f"The study {name!r} takes no tables: leave them out. Known to: {', '.join(takers)}."
        )
    refuse_missing(*map(str, tables or ()))
    from longarc.studies.study import refuse_existing, write_study

    folder = Path("studies", name) if out is None else Path(out).expanduser()
    refuse_existing(folder, overwrite=overwrite)
    import torch

    from longarc.machine import describe_gpu, describe_machine

    module, _, function = info.path.partition(":")
    given = {"tables": tables, "reporter": reporter}
    further = {option: given[option] for option in info.takes}
    started = time.perf_counter()
    result: StudyResult = getattr(importlib.import_module(module), function)(quick=quick, **further)
    if quick:
        result = dataclasses.replace(result, text=(*result.text, QUICKLY))
    run = {
        **describe_machine(),
        **describe_gpu(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
        "quick": quick,
    }
    if tables is not None:
        run["tables"] = [Path(table).name for table in tables]
    write_study(result, folder, overwrite=overwrite, run=run)
    return result
