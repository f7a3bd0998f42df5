"""The comparison: each candidate trained in its own process, then all timed, then drawn.

This process trains nothing: it starts the others, watches them, and reads what they wrote.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from longarc.comparison.budget import Budget
from longarc.comparison.candidates import (
    Candidate,
    check_lengths,
    in_a_file,
    make_candidates,
    read_candidates,
    what_differs,
)
from longarc.comparison.children import how_it_ended, run_training
from longarc.comparison.config import CompareConfig
from longarc.comparison.figures import rows
from longarc.comparison.folder import (
    CompareFolder,
    as_saved,
    cleared,
    refuse_existing,
    resumed,
)
from longarc.comparison.material import Material, read_material
from longarc.comparison.memory import available_mib
from longarc.comparison.presets import PRESETS
from longarc.comparison.reading import Needs, measure_reading
from longarc.comparison.slot import Slot, read
from longarc.data.table_writer import table_writer
from longarc.errors import Interrupted, LongarcError, OptionError, RunError
from longarc.files import refuse_own_sources, write_json
from longarc.hold import held
from longarc.machine import describe_machine, system_load
from longarc.options import check_whole
from longarc.report.measures import figure, system_name
from longarc.report.trade_off import sentence_of, write_trade_off
from longarc.stopping import stoppable
from longarc.training.option_fields import check_out
from longarc.training.progress import Reporter, clock
from longarc.training.run_folder import RunFolder

NOT_REACHED = "it is fitted once the first candidate is trained, and that one failed"

DEFAULT_LENGTH = 512
"""Tokens where neither a preset, nor the options, nor a candidate says how many."""


def run_comparison(
    config: CompareConfig,
    *,
    data: Any = None,
    candidates: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> CompareFolder:
    """Do all of it and return the folder.

    Args:
        config: see :class:`~longarc.comparison.config.CompareConfig`.
        data: a table in memory (DataFrame, datasets.Dataset, dict of columns) instead of
            ``config.data``.
        candidates: names and options instead of ``config.candidates``.
        console: where to say what happens; None for silence.

    Raises:
        LongarcError: bad input or options, before anything is written; Interrupted after Ctrl-C;
            RunError if no candidate could be trained, or another process works in the folder.
    """
    reporter = Reporter(console)
    if config.resume:
        check_out(config)
        if candidates is None and config.candidates and config.candidates not in PRESETS:
            candidates = read_candidates(config.candidates)
        config = resumed(config)
    config.validate()
    if not config.resume:
        refuse_existing(config)
    begin = _opened if config.resume else _begun
    with held(config.folder):
        return begin(config, data, candidates, reporter).run()


def _begun(
    config: CompareConfig, data: Any, candidates: Mapping[str, Any] | None, reporter: Reporter
) -> _Job:
    """A comparison that starts: everything is checked, then the folder is made."""
    preset = PRESETS.get(config.candidates) if candidates is None else None
    if preset is None:  # what is wrong with a file is said before a table is read
        found = read_candidates(config.candidates if candidates is None else candidates)
        chosen = make_candidates(found, config.options)
        check_lengths(chosen)
        material = read_material(config, data)
    else:
        material = read_material(config, data)
        length = (config.options or {}).get("max_length", preset.length)
        check_whole("max_length in --options", length, at_least=8)
        everywhere = {"max_length": length, **(config.options or {})}
        chosen = make_candidates(preset.candidates(length, material.multi_label), everywhere)
        check_lengths(chosen)
    models = [c.options.get(name) for c in chosen for name in ("model", "embeddings")]
    if config.overwrite:
        refuse_own_sources(config.folder, models)
    folder = cleared(config)
    config = material.config
    if material.table is not None:
        with table_writer(folder.data) as write:
            # Under the names that they had, as tables to validate or test on have them too.
            labels: list[Any] = material.table.labels or []
            write({str(config.text): material.table.texts, str(config.label): labels})
    write_json(folder.documents, material.documents())
    folder.write_settings(config, chosen, material.facts())
    for note in material.notes:
        reporter.say(note)
    return _Job(config, folder, chosen, material, reporter)


def _opened(
    config: CompareConfig, data: Any, candidates: Mapping[str, Any] | None, reporter: Reporter
) -> _Job:
    """A comparison that goes on, with the table and the candidates that it began with."""
    folder = CompareFolder(config.folder)
    saved = folder.read_settings()
    if candidates is not None:
        now = make_candidates(read_candidates(candidates), config.options)
        if differing := what_differs(saved["candidates"], as_saved(now)):
            raise RunError(
                f"the comparison in {folder.path} began with other candidates: "
                f"{', '.join(saved['candidates'])} ({differing}). Name the same ones, or another "
                "folder."
            )
    elif remark := _edited_since(config, saved["candidates"]):
        reporter.say(remark)
    chosen = [Candidate(name, dict(options)) for name, options in saved["candidates"].items()]
    given = str(folder.data) if folder.data.is_file() else None
    material = read_material(config, given if data is None else data)
    if material.facts()["sha256"] != saved["data"]["sha256"]:
        raise RunError(
            f"the texts or labels of {config.data} have changed since the comparison in "
            f"{folder.path} began. Restore them, or start anew with --overwrite."
        )
    return _Job(config, folder, chosen, material, reporter)


def _of_memory(needs: Needs) -> str:
    if needs.memory is None:
        return ""
    free = available_mib()
    left = f"; {free:,.0f} MiB are free" if free is not None else ""
    return f", each of less than {needs.memory:,.0f} MiB{left}"


def _edited_since(config: CompareConfig, then: Mapping[str, Any]) -> str:
    """A line where the file of candidates is no longer what the comparison began with."""
    named = config.candidates
    if not in_a_file(named) or not Path(named).expanduser().is_file():
        return ""  # what was moved or was never a file is not missed
    try:
        now = as_saved(make_candidates(read_candidates(named), config.options))
        differing = what_differs(then, now)
    except (LongarcError, OSError) as error:
        differing = str(error)
    if not differing:
        return ""
    return (
        f"{named} has been edited since the comparison began ({differing.rstrip('.')}). "
        "It goes on with the candidates as they were; for others begin a new one in another --out"
    )


class _Job:
    """One comparison; its methods are the stages, in order."""

    def __init__(
        self,
        config: CompareConfig,
        folder: CompareFolder,
        candidates: list[Candidate],
        material: Material,
        reporter: Reporter,
    ):
        budget = config.budget
        if budget is None:
            raise OptionError("no budget named.")
        self.config, self.folder, self.candidates = config, folder, candidates
        self.material, self.reporter = material, reporter
        self.budget: Budget = budget
        self.slots = {
            c.name: [folder.slot(c.name, seed) for seed in config.every_seed] for c in candidates
        }

    def run(self) -> CompareFolder:
        """Train, time, draw."""
        try:
            with stoppable():
                self._train()
                reading = self._read()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped. {self.folder.how_to_resume()}") from None
        self._write(reading)
        return self.folder

    def _train(self) -> None:
        """Every candidate with every seed, each in its own process; what is finished is left."""
        seeds = self.config.every_seed
        todo = [
            (candidate, seed)
            for seed in seeds
            for candidate in self.candidates
            if not self._done(candidate, seed)
        ]
        runs = len(seeds) * len(self.candidates)
        if done := runs - len(todo):
            are = "is" if done == 1 else "are"
            self.reporter.say(f"{done} of {runs} trainings {are} finished already")
        many = "s" if len(todo) != 1 else ""
        self.reporter.say(f"{len(todo)} training{many} to run: {self.budget}")
        with self.reporter.task("comparing", len(todo)) as advance:
            for candidate, seed in todo:
                slot = self.folder.slot(candidate.name, seed)
                self._prepare(slot, candidate, seed)
                shown = candidate.name if len(seeds) == 1 else f"{candidate.name}, seed {seed}"
                fits = candidate.options.get("attention") == "learned"
                part = _Part(slot, advance, shown, "fitting its attention" if fits else "starting")
                started = time.monotonic()
                status = run_training(slot.path, slot.log, part.look)
                if not slot.finished and not slot.failure.is_file():
                    write_json(slot.failure, {"why": how_it_ended(status, slot.log)})
                if self._bears_baseline(candidate, seed) and not slot.baseline.is_file():
                    why = how_it_ended(status, slot.log) if slot.finished else NOT_REACHED
                    write_json(slot.baseline, {"why": why})
                part.end()
                self.reporter.say(f"{shown}: {self._outcome(slot)}, "
                                  f"{clock(time.monotonic() - started)}")  # fmt: skip
        if not any(slot.finished for slots in self.slots.values() for slot in slots):
            why = read(self.folder.slot(self.candidates[0].name, seeds[0]).failure).get("why")
            raise RunError(
                f"no candidate could be trained. The first, {self.candidates[0].name}: {why}"
            )

    def _bears_baseline(self, candidate: Candidate, seed: int) -> bool:
        """Whether the linear baseline is fitted by this process: that of the first of all."""
        return candidate is self.candidates[0] and seed == self.config.every_seed[0]

    def _done(self, candidate: Candidate, seed: int) -> bool:
        """Whether nothing is left to do; a baseline that failed or was stopped is tried again."""
        slot = self.folder.slot(candidate.name, seed)
        baseline = read(slot.baseline)
        fitted = bool(baseline) and "why" not in baseline
        return slot.finished and (fitted or not self._bears_baseline(candidate, seed))

    def _prepare(self, slot: Slot, candidate: Candidate, seed: int) -> None:
        """Write down what the process is to do."""
        slot.path.mkdir(parents=True, exist_ok=True)
        slot.failure.unlink(missing_ok=True)
        if "why" in read(slot.baseline):
            slot.baseline.unlink()
        names = (
            "text", "label", "label_separator", "validation", "test", "validation_fraction",
            "test_fraction", "limit", "device",
        )  # fmt: skip
        shared = {name: getattr(self.config, name) for name in names}
        table = self.folder.data if self.folder.data.is_file() else self.config.data
        config = candidate.config(
            **shared, data=str(table), out=str(slot.run), seed=seed, baseline=False
        )  # fmt: skip
        job = {
            "config": dataclasses.asdict(config),
            "budget": dataclasses.asdict(self.budget),
            "documents": len(self.material.splits[seed].train),
            "models": str(self.folder.models),
            "length": DEFAULT_LENGTH,
            "baseline": self._bears_baseline(candidate, seed),
        }
        write_json(slot.job, job)

    @staticmethod
    def _outcome(slot: Slot) -> str:
        if not slot.finished:
            return f"failed, {read(slot.failure)['why'].rstrip('.')}"
        metrics = RunFolder(slot.run).metrics()
        found = figure((metrics.get("test") or metrics["validation"])["model"], "macro_f1")
        peak = read(slot.training).get("peak_mib")
        memory = f", peak memory {peak:,.0f} MiB" if peak is not None else ""
        return f"macro-F1 {found.written if found else '–'}{memory}"

    def _read(self) -> dict[str, Any]:
        """The speed of prediction of every finished candidate, and the system's load meanwhile."""
        names = [c.name for c in self.candidates if all(s.finished for s in self.slots[c.name])]
        kept = read(self.folder.reading)
        timed = kept.get("candidates", {})
        if list(timed) == names and not any("why" in one for one in timed.values()):
            return kept
        before = system_load()
        texts = json.loads(self.folder.documents.read_text(encoding="utf-8"))
        needs = self._needs(names)
        self.reporter.say(
            f"timing the prediction of {len(texts)} documents, {self.config.repeats} turns of "
            f"each; processes at once: {len(names)}{_of_memory(needs)}"
        )
        found = measure_reading(
            {name: self.slots[name][0].run for name in names},
            self.folder.documents,
            count=len(texts),
            repeats=self.config.repeats,
            logs={name: self.folder.reading_log(name) for name in names},
            needs=needs,
            reporter=self.reporter,
        )
        measured = {"load": [before, system_load()], "candidates": found}
        write_json(self.folder.reading, measured)
        return measured

    def _needs(self, names: list[str]) -> Needs:
        """As much as a training took: predicting takes less, but nobody has measured it yet."""
        spent = [read(self.slots[name][0].training) for name in names]
        memory, gpu = (
            max((s[peak] for s in spent if s.get(peak) is not None), default=None)
            for peak in ("peak_mib", "gpu_peak_mib")
        )
        return Needs(memory, gpu)

    def _write(self, reading: dict[str, Any]) -> None:
        found = {
            "data": self.config.data,
            "text": self.config.text,
            "label": self.config.label,
            **self.material.facts(),
            "split": self._split(),
            "budget": dataclasses.asdict(self.budget),
            "seeds": self.config.every_seed,
            "speed": {
                "documents": len(json.loads(self.folder.documents.read_text(encoding="utf-8"))),
                "repeats": self.config.repeats,
                "alone": any(one.get("alone") for one in reading["candidates"].values()),
            },
            "machine": {
                **describe_machine(),
                **dict(zip(("load", "load_after"), reading["load"], strict=True)),
                "device": self._of_first("device"),
                "threads": self._of_first("threads"),
            },
            "baseline": self._baseline(),
            "candidates": rows(
                self.candidates, self.slots, reading["candidates"], self.folder.path
            ),
        }
        found["sentence"] = sentence_of(found)
        write_trade_off(found, self.folder.path)
        write_json(self.folder.figures, found)

    def _finished(self) -> Iterator[Slot]:
        return (slot for slots in self.slots.values() for slot in slots if slot.finished)

    def _of_first(self, name: str) -> Any:
        return next((read(slot.training).get(name) for slot in self._finished()), None)

    def _split(self) -> str:
        metrics = RunFolder(next(self._finished()).run).metrics()
        return "test" if "test" in metrics else "validation"

    def _baseline(self) -> dict[str, Any]:
        """Macro-F1 of TF-IDF and a linear SVM with the first seed, or why there is none."""
        found = read(self.slots[self.candidates[0].name][0].baseline)
        name = {"name": system_name("tfidf-svm")}
        return name | (found if "why" in found else found[self._split()]["macro_f1"])


class _Part:
    """Moves the bar by what one training has done: its steps, read off its log."""

    def __init__(self, slot: Slot, advance: Any, name: str, first: str):
        self.slot, self.advance, self.name, self.first = slot, advance, name, first
        self.done = 0.0
        self.steps = 0

    def look(self) -> None:
        """Read the end of the log."""
        step = self._step()
        done = 0.1 + 0.8 * step / self.steps if self.steps else 0.0
        doing = f"step {step} of {self.steps}" if self.steps else self.first
        self.advance(max(done - self.done, 0.0), f"{self.name}: {doing}")
        self.done = max(done, self.done)

    def end(self) -> None:
        """The rest of its unit."""
        self.advance(1.0 - self.done, self.name)

    def _step(self) -> int:
        log = RunFolder(self.slot.run).log_file
        try:
            with log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 2000))
                end = file.read().decode("utf-8", "replace").splitlines()
            if not self.steps:
                with log.open(encoding="utf-8") as file:
                    starts = (r for r in map(json.loads, file) if r.get("event") == "start")
                    self.steps = int(next(starts, {}).get("steps") or 0)
        except (OSError, ValueError):
            return 0
        for line in reversed(end):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue
        return 0
