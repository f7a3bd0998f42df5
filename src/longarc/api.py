"""What Python users hold: :func:`fit`, :func:`open_run` and :class:`Run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from longarc.attribution.explained_run import ExplainedRun
from longarc.data.cells import as_texts
from longarc.data.columns import choose_columns
from longarc.data.examples import read_examples
from longarc.data.table import open_table
from longarc.data.table_writer import check_writable, table_writer
from longarc.errors import ModelError, OptionError
from longarc.files import write_text
from longarc.options import as_plain
from longarc.report.card import model_card
from longarc.report.citations import bibtex, cited, config_of
from longarc.report.diagnosis import save_diagnosis
from longarc.report.encoder_card import encoder_card
from longarc.report.html import write_report
from longarc.report.pretraining import collapse_message
from longarc.training.config import TrainConfig
from longarc.training.diagnosis import diagnose_documents
from longarc.training.evaluation import score
from longarc.training.job import train
from longarc.training.option_fields import check_names
from longarc.training.prediction import (
    Predictor,
    confidence,
    decisions,
    predictor_of,
    probabilities,
    trained_loss,
)
from longarc.training.pretraining.codes import encode
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.pretraining.job import pretrain as _pretrain
from longarc.training.run_folder import RunFolder, open_run_folder
from longarc.training.trainer import is_main_process

if TYPE_CHECKING:
    from longarc.data.labels import LabelSpace
    from longarc.objectives.losses.contract import Loss


def fit(data: Any, *, out: str | Path, verbose: bool = True, **options: Any) -> Run:
    """Train, evaluate and report a classifier on a table of texts and labels.

    Args:
        data: path or Hub id of a table, a pandas DataFrame, a ``datasets.Dataset``, or a dict of
            columns.
        out: run folder to write.
        verbose: say on the terminal what happens.
        options: the fields of :class:`TrainConfig`, e.g. ``text="body"``, ``label="topic"``,
            ``loss="logit-adjusted"``, ``max_length=256``.

    Returns:
        The finished run.

    Raises:
        LongarcError: input or options that cannot be used; nothing has been written then.

    >>> import tempfile
    >>> texts = ["the pump leaks oil", "oil on the pump floor", "invoice not paid",
    ...          "please pay the invoice", "pump is noisy", "the invoice is wrong"] * 4
    >>> table = {"text": [f"{t} {i}" for i, t in enumerate(texts)],
    ...          "topic": ["pump", "pump", "invoice", "invoice", "pump", "invoice"] * 4}
    >>> run = fit(table, out=tempfile.mkdtemp(), freeze=True, max_length=16, verbose=False)
    >>> run.predict(["the invoice was paid twice"])
    ['invoice']
    """
    check_names("fit", options, TrainConfig)
    name, in_memory, values = _settled(data, options)
    for part in ("validation", "test", "unlabelled"):
        if not isinstance(values.get(part), str | None):
            instead = "" if part == "unlabelled" else ", or let a part of the data stand for it"
            raise OptionError(
                f"{part} is a {type(values[part]).__name__}; expected the path of a table or a Hub "
                f"id. Save it to a file first{instead}."
            )
    config = TrainConfig(data=name, out=str(out), **values)
    return run_training(
        config, data=data if in_memory else None, console=Console() if verbose else None
    )


def pretrain(data: Any, *, out: str | Path, verbose: bool = True, **options: Any) -> Pretraining:
    """Adapt an encoder to texts without labels, self-supervised.

    Args:
        data: as for :func:`fit`; it may be larger than memory if it is a file.
        out: run folder to write; its ``model/`` is the encoder, for ``fit(…, model=…)``.
        verbose: say on the terminal what happens.
        options: the fields of :class:`PretrainConfig`, e.g. ``objective="simsiam"``.

    Returns:
        The finished run.

    Raises:
        LongarcError: input or options that cannot be used; nothing has been written then.
        ModelError: the codes collapsed. The run folder has metrics and a report, and no model.

    >>> import tempfile
    >>> texts = [f"the pump number {i} leaks oil and has to be sealed" for i in range(20)]
    >>> run = pretrain({"text": texts}, out=tempfile.mkdtemp(), batch_size=4, max_length=16,
    ...                evaluations=1, verbose=False)
    >>> run.encode(["oil on the floor"]).shape
    (1, 384)
    """
    check_names("pretrain", options, PretrainConfig)
    name, in_memory, values = _settled(data, options)
    config = PretrainConfig(data=name, out=str(out), **values)
    return run_pretraining(
        config, data=data if in_memory else None, console=Console() if verbose else None
    )


def run_pretraining(
    config: PretrainConfig, *, data: Any = None, console: Console | None = None
) -> Pretraining:
    """The pretraining job, then the model card and the report that read its folder."""
    run = Pretraining(_pretrain(config, data=data, console=console))
    if run.folder.collapsed:
        collapse, objective = run.metrics["collapse"], run.config.objective
        raise ModelError(collapse_message(collapse, objective, run.report()))
    write_text(run.folder.model / "README.md", encoder_card(run.path))
    run.report()
    return run


def run_training(config: TrainConfig, *, data: Any = None, console: Console | None = None) -> Run:
    """The training job, then the model card and the report that read its folder."""
    run = Run(train(config, data=data, console=console))
    if is_main_process():
        write_text(run.folder.model / "README.md", model_card(run.path))
        run.report()
    return run


def open_run(path: str | Path) -> Run:
    """Open a finished run folder.

    Raises :class:`RunError` that says what is missing, and how to go on with an unfinished run.
    """
    return Run(open_run_folder(path))


class Run(ExplainedRun):
    """A finished run: its figures, its model, its report.

    Nothing is read before it is asked for.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> TrainConfig:
        """Every option of the run."""
        return self.folder.config()

    @cached_property
    def labels(self) -> LabelSpace:
        """The classes, in the order of the model's outputs."""
        return self.folder.labels()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Validation and test figures with 95 % intervals, the baselines', and the differences.

        ``run.metrics["test"]["model"]["macro_f1"]["value"]``; schema in docs/run-folder.md.
        """
        return self.folder.metrics()

    @cached_property
    def predictor(self) -> Predictor:
        """The model with its tokenizer, and a hybrid's linear scores, ready for texts."""
        return predictor_of(self.folder)

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """The label of each text, in order; for a multi-label run a list of labels each."""
        logits = self._logits(texts)
        return self.labels.decode(decisions(logits, multi_label=self.labels.multi_label))

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (N, C), columns in the order of ``run.labels.names``.

        With ``logit-adjusted``, and after the recipes ``post-hoc`` and ``crt``, these are
        probabilities under equally frequent classes, or nearly so.
        """
        return self._probabilities(self._logits(texts))

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        return probabilities(logits, multi_label=self.labels.multi_label, loss=self._loss)

    @cached_property
    def _loss(self) -> Loss | None:
        return trained_loss(self.folder)

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        return self.predictor.logits(as_texts(texts, "texts"))

    def evaluate(
        self, data: Any, *, text: str | None = None, label: str | None = None
    ) -> dict[str, Any]:
        """Figures of the model on another labelled table (schema ``M`` of docs/run-folder.md).

        Columns are those of training unless named. Labels that training never saw count as errors
        and are listed under ``unseen_labels``.

        Raises:
            DataError: training saw none of the labels, or the table cannot be used.
        """
        examples, _ = read_examples(
            data,
            text=text or self.config.text,
            label=label or self.config.label,
            label_separator=self.config.label_separator,
        )
        examples = examples.spelled_like(self.labels.names)
        self.labels.refuse_strangers(examples.labels or [], examples.source)
        return score(examples, self.labels, self._logits(examples.texts), loss=self._loss)

    def predict_table(
        self,
        data: Any,
        out: str | Path,
        *,
        text: str | None = None,
        with_probabilities: bool = True,
        advance: Callable[[float], Any] | None = None,
        say: Callable[[str], Any] | None = None,
    ) -> Path:
        """Predict a table into a CSV, TSV, JSON Lines or Parquet file, in bounded memory.

        The rows keep their order and columns; added are ``prediction``, ``confidence`` and, for
        each class, ``p(NAME)``. A column of that name in the table is refused. An older ``out`` is
        replaced, once the new one is whole. Empty texts get what the model says of no text;
        ``say`` is told of them.
        """
        out = check_writable(out)
        if isinstance(data, str | Path) and Path(data).expanduser().resolve() == out.resolve():
            raise OptionError(f"{out} is the table itself. Name another file for the predictions.")
        table = open_table(data)
        column = choose_columns(table, text or self.config.text, need_label=False).text
        chances_of = [f"p({name})" for name in self.labels.names] if with_probabilities else []
        added = ["prediction", "confidence", *chances_of]
        if taken := [name for name in added if name in table.columns]:
            raise OptionError(
                f"{table.name} already has a column '{taken[0]}', which the prediction would "
                "replace. Rename it first."
            )
        several = self.labels.multi_label
        rows = self.predictor.batch_size * self.predictor.CHUNK
        done, empty = 0, list[int]()
        with table_writer(out) as write:
            for batch in table.batches(rows):
                texts = as_texts(batch[column], f"{table.name}, column {column!r}", done)
                empty += [done + i for i, found in enumerate(texts, 1) if not found.strip()]
                done += len(texts)
                logits = self.predictor.logits(texts, advance)
                chances = self._probabilities(logits)
                batch["prediction"] = self.labels.decode(decisions(logits, multi_label=several))
                batch["confidence"] = confidence(chances, multi_label=several).round(6).tolist()
                for name, values in zip(chances_of, chances.T, strict=False):
                    batch[name] = values.round(6).tolist()
                write(batch)
        if empty and say is not None:
            rows_of = ", ".join(map(str, empty[:3])) + (", …" if len(empty) > 3 else "")
            say(f"{len(empty):,} empty texts (rows {rows_of}) got what the model says of no text")
        return out

    def diagnose(self, data: Any, **options: Any) -> dict[str, Any]:
        """Say whether the gradient vanishes or explodes, on documents of a table.

        ``options`` are those of :func:`~longarc.training.diagnosis.diagnose_documents`, such as
        ``documents=16``. It writes ``diagnosis.json``, whose content it returns, and
        ``diagnosis.html``, to which the report then leads.
        """
        found = diagnose_documents(self.path, data, **options).to_dict()
        save_diagnosis(found, run=self.path)
        return found

    @property
    def citations(self) -> str:
        """BibTeX for exactly what the run used, and for longarc itself."""
        return bibtex(cited(self.path), config_of(self.path))

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` (or ``out``), in place of an older one, and return its path."""
        return write_report(self.path, Path(out).expanduser() if out is not None else None)


class Pretraining:
    """A finished pretraining run: its figures, its encoder, its report.

    Nothing is read before it is asked for.
    """

    def __init__(self, folder: PretrainFolder):
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"Pretraining({str(self.path)!r})"

    @cached_property
    def config(self) -> PretrainConfig:
        """Every option of the run."""
        return self.folder.config()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Figures on held-out documents before and after; schema in docs/run-folder.md."""
        return self.folder.metrics()

    @property
    def model(self) -> Path:
        """The encoder's folder, for ``fit(…, model=…)`` and ``SentenceTransformer(…)``."""
        return self.folder.model

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Codes (N, d) of length 1, float32, of the first ``max_length`` tokens."""
        return encode(self.folder, as_texts(texts, "texts"))

    @property
    def citations(self) -> str:
        """BibTeX for exactly what the run used, and for longarc itself."""
        return bibtex(cited(self.path), config_of(self.path))

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` (or ``out``) and return its path."""
        return write_report(self.path, Path(out).expanduser() if out is not None else None)


def _settled(data: Any, options: dict[str, Any]) -> tuple[str, bool, dict[str, Any]]:
    """The data's name, whether it is in memory, and options as config.yaml can hold them."""
    in_memory = not isinstance(data, str | Path)
    named = f"<{type(data).__name__} in memory>" if in_memory else str(data)
    return named, in_memory, as_plain(options)
