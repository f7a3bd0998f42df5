"""The surest errors of a run, explained: why this class, and not the true one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from longarc.attribution.explanation import Explanation
from longarc.attribution.of_run import explain_run
from longarc.data.examples import read_examples
from longarc.data.table import open_table
from longarc.errors import DataError, RunError
from longarc.files import write_json
from longarc.options import check_whole
from longarc.training.evaluation import short_hash

if TYPE_CHECKING:
    from longarc.training.prediction import Predictor
    from longarc.training.run_folder import RunFolder


def explain_errors(
    folder: RunFolder,
    predictor: Predictor,
    count: int = 3,
    *,
    data: Any = None,
    top: int = 5,
    method: str = "exact",
    tolerance: float = 1e-3,
    advance: Callable[[float], Any] | None = None,
) -> list[Explanation]:
    """Explain the wrong predictions that a run was surest of, and keep them for its report.

    Of each the margin of the predicted class over the true one; see
    :meth:`longarc.Run.explain_errors`. Written is ``explanations.json``.
    """
    wrong = surest_errors(folder, check_whole("count", count, at_least=1))
    texts = _texts_of(folder, wrong, data)
    names = folder.labels().names
    found = explain_run(
        folder,
        predictor,
        texts,
        of="margin",
        method=method,
        over=[p["label"] if p["label"] in names else None for p in wrong],
        tolerance=tolerance,
        advance=advance,
    )
    entries = [
        {
            "text": text,
            "row": p["row"],
            "label": p["label"],
            "prediction": p["prediction"],
            "confidence": p["confidence"],
            **e.to_dict(top),
        }
        for p, text, e in zip(wrong, texts, found, strict=True)
    ]
    write_json(folder.explanations_file, {"split": wrong[0]["split"], "explained": entries})
    return found


def surest_errors(folder: RunFolder, count: int) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet``: wrong ones of the test split, or else of the validation.

    Raises RunError where there is none, or where documents have several labels.
    """
    if folder.labels().multi_label:
        raise RunError(
            f"the documents of the run in {folder.path} have several labels each, so that an error "
            "has no one class to be explained. Explain a label of a text: longarc explain "
            f"{folder.path} --text … --label …"
        )
    columns = ["split", "row", "text_sha256", "label", "prediction", "confidence"]
    rows = pq.read_table(folder.predictions_file, columns=columns).to_pylist()
    split = "test" if any(row["split"] == "test" for row in rows) else "validation"
    wrong = [row for row in rows if row["split"] == split and row["label"] != row["prediction"]]
    if not wrong:
        raise RunError(
            f"the run in {folder.path} made no error on its {split} split, so there is none to "
            "explain."
        )
    return sorted(wrong, key=lambda row: (-row["confidence"], row["row"]))[:count]


def _texts_of(folder: RunFolder, rows: list[dict[str, Any]], data: Any) -> list[str]:
    """The whole texts of predictions, out of the table that the run was made of."""
    config = folder.config()
    named = getattr(config, rows[0]["split"])  # a table of its own
    source = data if data is not None else named or config.data
    if isinstance(source, str) and source.startswith("<"):
        raise RunError(
            f"the run in {folder.path} was trained on a {source[1:-1]}, and keeps only the "
            "beginnings of its test documents. Give the same data: run.explain_errors(data=…)."
        )
    table = open_table(source, to_train=True)  # as the training read it
    examples, _ = read_examples(table, text=config.text, need_label=False)
    by_row = dict(zip(examples.rows, examples.texts, strict=True))
    texts = []
    for row in rows:
        text = by_row.get(row["row"])
        if text is None or short_hash(text) != row["text_sha256"]:
            raise DataError(
                f"row {row['row']} of {examples.source} is not the document that the run was "
                "tested on. Give the table as it was."
            )
        texts.append(text)
    return texts
