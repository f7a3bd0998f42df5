"""The comparison as far as it goes without a training: material, folder, processes that fail."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from longarc.comparison.children import how_it_ended, run_training
from longarc.comparison.config import CompareConfig
from longarc.comparison.figures import _start_kept, _training_speed
from longarc.comparison.folder import CompareFolder, resumed
from longarc.comparison.job import _begun, _opened, _Part, run_comparison
from longarc.comparison.material import read_material
from longarc.comparison.slot import Slot, read
from longarc.errors import DataError, OptionError, RunError
from longarc.files import write_json
from longarc.training.config import TrainConfig
from longarc.training.preparation import prepare
from longarc.training.progress import Reporter

TABLE = {
    "body": [f"the {'pump leaks' if i % 2 else 'invoice is due'} {i}" for i in range(40)],
    "topic": ["pump" if i % 2 else "invoice" for i in range(40)],
}
CANDIDATES = {"mean": {}, "cls": {"pooling": "cls"}}


def options(out: Path, **more) -> CompareConfig:
    values = {"data": "<dict in memory>", "candidates": "(in Python)", "budget_steps": 3, **more}
    return CompareConfig(out=str(out), **values)


def test_a_table_in_memory_becomes_a_file_that_a_resumed_comparison_reads(tmp_path):
    config = options(tmp_path / "out", seeds=[0, 1], documents=5)
    job = _begun(config, TABLE, CANDIDATES, Reporter(None))
    folder = CompareFolder(tmp_path / "out")
    assert folder.data.is_file()
    assert len(json.loads(folder.documents.read_text())) == 5
    assert [slot.path for slot in job.slots["cls"]] == [
        folder.slot("cls", seed).path for seed in (0, 1)
    ]
    again = _opened(CompareConfig(**folder.read_settings()["options"]), None, None, Reporter(None))
    assert again.material.facts() == job.material.facts()
    assert again.candidates == job.candidates
    assert [len(splits.train) for splits in again.material.splits.values()] == [28, 28]
    first, second = (s.train.texts for s in again.material.splits.values())
    assert first != second


def test_a_changed_table_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    rows = list(zip(TABLE["body"], TABLE["topic"], strict=True))

    def write(rows: list[tuple[str, str]]) -> None:
        lines = ["body,topic", *(",".join(row) for row in rows)]
        table.write_text("\n".join(lines) + "\n")

    write(rows)
    config = options(tmp_path / "out", data=str(table))
    _begun(config, None, CANDIDATES, Reporter(None))
    saved = CompareConfig(**CompareFolder(tmp_path / "out").read_settings()["options"])
    _opened(saved, None, None, Reporter(None))
    write([*rows[1:], rows[0]])
    with pytest.raises(RunError, match="have changed since"):
        _opened(saved, None, None, Reporter(None))


def test_another_table_or_other_candidates_in_memory_are_refused(tmp_path):
    _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    saved = CompareConfig(**CompareFolder(tmp_path / "out").read_settings()["options"])
    _opened(saved, TABLE, CANDIDATES, Reporter(None))
    with pytest.raises(RunError, match="began with other candidates: mean, cls"):
        _opened(saved, TABLE, {"mean": {}, "cls": {"pooling": "mean"}}, Reporter(None))
    other = {**TABLE, "topic": TABLE["topic"][::-1]}
    with pytest.raises(RunError, match="have changed since"):
        _opened(saved, other, CANDIDATES, Reporter(None))


def test_an_edited_file_of_candidates_is_told_of_or_refused(tmp_path):
    """Told of where the comparison goes on by itself, refused where the file is named again."""
    file = tmp_path / "candidates.yaml"
    file.write_text("mean: {}\ncls: {pooling: cls}\n")
    out = tmp_path / "out"
    _begun(options(out, candidates=str(file)), TABLE, None, Reporter(None))

    def said() -> str:
        printed = io.StringIO()
        console = Console(file=printed, width=200)
        job = _opened(resumed(CompareConfig(out=str(out))), None, None, Reporter(console))
        assert [c.name for c in job.candidates] == ["mean", "cls"]
        return printed.getvalue()

    assert said() == ""
    file.write_text("# the same\ncls: {pooling: cls}\nmean:\n")
    assert said() == ""
    file.write_text("mean: {pooling: cls}\ncls: {pooling: cls}\nmore: {}\n")
    assert f"{file} has been edited since the comparison began (more is new; mean: pooling " in (
        said()
    )
    named = CompareConfig(candidates=str(file), out=str(out), resume=True)
    with pytest.raises(RunError, match=r"began with other candidates: mean, cls \(more is new; "):
        run_comparison(named)
    file.write_text("mean: {pooling: middle}\n")
    assert "has been edited since the comparison began (candidate 'mean': " in said()
    file.unlink()
    assert said() == ""


def test_a_reason_that_ends_with_a_stop_goes_on_with_a_comma_alone(tmp_path):
    job = _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    (slot,) = job.slots["mean"]
    slot.path.mkdir(parents=True)
    write_json(slot.failure, {"why": "no memory. Use less."})
    assert f"{job._outcome(slot)}, 1 s" == "failed, no memory. Use less, 1 s"


def test_a_table_in_memory_goes_with_a_file_to_test_on(tmp_path):
    """Whose columns and separator are those of the table, in every candidate's own process too."""
    test = tmp_path / "test.csv"
    test.write_text("body,topic\nthe pump leaks again,pump;urgent\n")
    table = {
        **TABLE,
        "topic": [f"{t};urgent" if i % 3 else t for i, t in enumerate(TABLE["topic"])],
    }
    config = options(tmp_path / "out", test=str(test), label_separator=";")
    job = _begun(config, table, CANDIDATES, Reporter(None))
    slot = job.folder.slot("mean", 0)
    job._prepare(slot, job.candidates[0], 0)
    prepared = prepare(TrainConfig(**read(slot.job)["config"]), Reporter(None))
    assert prepared.splits.test is not None
    assert prepared.splits.test.labels == [["pump", "urgent"]]
    assert prepared.splits.train.labels == job.material.splits[0].train.labels


def test_what_a_preset_needs_of_the_length_is_checked(tmp_path):
    for candidates in ("everything-small", "attention"):
        config = options(tmp_path / "out", candidates=candidates, options={"max_length": "long"})
        with pytest.raises(OptionError, match="max_length"):
            _begun(config, TABLE, None, Reporter(None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("candidates", "everywhere"),
    [
        ({"mean": {}, "long": {"max_length": 9999}}, None),
        ({"long": {}, "scratch": {"model": "scratch-bert"}}, {"max_length": 9999}),
    ],
)
def test_more_tokens_than_the_model_has_positions_for_are_refused(tmp_path, candidates, everywhere):
    said = (
        r"candidate 'long': --max-length is 9999, but minilm has positions for 512 tokens\. "
        ".*Here they are max_length and positions"
    )
    config = options(tmp_path / "out", options=everywhere)
    with pytest.raises(OptionError, match=said):
        run_comparison(config, data=TABLE, candidates=candidates)
    config = options(tmp_path / "out", candidates="tail", options={"max_length": 9999})
    with pytest.raises(OptionError, match="candidate 'cross-entropy': --max-length is 9999"):
        run_comparison(config, data=TABLE)
    assert not (tmp_path / "out").exists()


def test_lengths_that_a_model_has_no_limit_to_or_is_stretched_to_are_taken(tmp_path):
    candidates = {
        "stretched": {"positions": "hierarchical"},
        "scratch": {"model": "scratch-bert"},
        "lstm": {"model": "lstm"},
    }
    config = options(tmp_path / "out", options={"max_length": 9999})
    assert len(_begun(config, TABLE, candidates, Reporter(None)).candidates) == 3


def test_a_single_class_is_refused_as_a_training_refuses_it(tmp_path):
    table = {**TABLE, "topic": ["pump"] * 40}
    said = "All labels of the training split are 'pump'. Expected at least two classes"
    with pytest.raises(DataError, match=said):
        run_comparison(options(tmp_path / "out"), data=table, candidates=CANDIDATES)
    assert not (tmp_path / "out").exists()
    config = TrainConfig(data="-", out=str(tmp_path / "run"))
    with pytest.raises(DataError, match=said):
        prepare(config, Reporter(None), table)


def test_a_table_inside_the_folder_is_not_deleted(tmp_path):
    folder = CompareFolder(tmp_path / "out")
    _begun(options(folder.path), TABLE, CANDIDATES, Reporter(None))
    config = options(folder.path, data=str(folder.data), overwrite=True)
    with pytest.raises(RunError, match="which --overwrite deletes"):
        _begun(config, None, CANDIDATES, Reporter(None))
    assert folder.data.is_file()
    _begun(options(folder.path, overwrite=True), TABLE, CANDIDATES, Reporter(None))


def test_timings_are_kept_unless_one_failed(tmp_path, monkeypatch):
    job = _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    for slots in job.slots.values():
        slots[0].path.mkdir(parents=True)
        write_json(slots[0].training, {})
    failed = {"mean": {"threads": 1}, "cls": {"why": "the process was killed"}}
    write_json(job.folder.reading, {"load": [1, 1], "candidates": failed})
    again = {"mean": {"threads": 1}, "cls": {"threads": 1}}
    monkeypatch.setattr("longarc.comparison.job.measure_reading", lambda *_, **__: again)
    assert job._read()["candidates"] == again
    monkeypatch.undo()
    assert job._read()["candidates"] == again


def test_a_baseline_that_was_stopped_is_tried_again(tmp_path):
    """Its candidate is finished by then; one that bears none has nothing left to do."""
    job = _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    mean, cls = job.candidates
    for (slot,) in job.slots.values():
        slot.path.mkdir(parents=True)
        write_json(slot.training, {})
    assert (job._done(mean, 0), job._done(cls, 0)) == (False, True)
    (slot,) = job.slots["mean"]
    for baseline, done in (({"why": "no memory"}, False), ({"test": {}}, True)):
        write_json(slot.baseline, baseline)
        assert job._done(mean, 0) is done


def test_a_killed_candidate_says_why_there_is_no_baseline(tmp_path, monkeypatch):
    job = _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    monkeypatch.setattr("longarc.comparison.job.run_training", lambda *_: -9)
    with pytest.raises(RunError, match="no candidate could be trained"):
        job._train()
    first, second = (job.slots[name][0] for name in CANDIDATES)
    assert "that one failed" in job._baseline()["why"]
    assert "memory" in read(first.failure)["why"]
    assert not second.baseline.exists()


def test_a_job_has_the_shared_options_and_its_own(tmp_path):
    job = _begun(options(tmp_path / "out", limit=30), TABLE, CANDIDATES, Reporter(None))
    written = []
    for candidate in job.candidates:
        slot = job.folder.slot(candidate.name, 0)
        job._prepare(slot, candidate, 0)
        written.append(read(slot.job))
    first, second = (job["config"] for job in written)
    assert first["data"] == second["data"] == str(tmp_path / "out/data.parquet")
    assert (first["pooling"], second["pooling"]) == ("mean", "cls")
    assert not first["baseline"]
    assert [job["baseline"] for job in written] == [True, False]
    assert first["limit"] == 30
    assert written[0]["documents"] == len(job.material.splits[0].train)
    assert written[0]["budget"] == {"kind": "steps", "amount": 3}


def test_a_budget_has_to_be_named_unless_the_preset_has_one(tmp_path):
    with pytest.raises(OptionError, match="no budget named"):
        read_material(options(tmp_path, budget_steps=None, candidates="tail"), TABLE)
    material = read_material(
        options(tmp_path, budget_steps=None, candidates="everything-small"), TABLE
    )
    assert material.config.budget_examples is not None
    assert material.config.test_fraction == 0.15  # the packaged texts' own are for them alone


def test_training_speed_leaves_evaluations_out(tmp_path):
    """64 documents in 4 s of steps, whatever the evaluations between them took."""
    slot = Slot(tmp_path)
    slot.run.mkdir()
    write_json(slot.job, {"documents": 32})
    records = [
        {"event": "start", "steps": 4, "time": 0.0},
        {"event": "validation", "step": 0, "epoch": 0, "time": 90.0},
        {"event": "train", "step": 1, "epoch": 0.5, "time": 91.0},
        {"event": "train", "step": 2, "epoch": 1.0, "time": 92.0},
        {"event": "validation", "step": 2, "epoch": 1.0, "time": 192.0},
        {"event": "checkpoint", "step": 2, "time": 200.0},
        {"event": "train", "step": 4, "epoch": 2.0, "time": 202.0},
        {"event": "validation", "step": 4, "epoch": 2.0, "time": 302.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (slot.run / "log.jsonl").write_text(lines)
    assert _training_speed(slot) == pytest.approx(64 / 4)


def test_the_bar_moves_with_the_steps_of_the_log(tmp_path):
    """Whatever comes before them: a probe that the head starts from is recorded first."""
    slot = Slot(tmp_path)
    slot.run.mkdir()
    told: list[tuple[float, str]] = []
    part = _Part(slot, lambda part, remark: told.append((part, remark)), "x", "starting")
    part.look()
    lines = [
        '{"event": "probe", "penalty": 0.01, "temperature": 1.5}',
        '{"event": "start", "steps": 20}',
    ]
    for step in (5, 10):
        lines.append(json.dumps({"event": "train", "step": step}))
        (slot.run / "log.jsonl").write_text("\n".join(lines) + "\n")
        part.look()
    assert [remark for _, remark in told] == ["x: starting", "x: step 5 of 20", "x: step 10 of 20"]
    assert sum(part for part, _ in told) == pytest.approx(0.1 + 0.8 / 2)


def test_a_discarded_training_is_seen_in_its_log(tmp_path):
    """By its end: a resumed training has several, and the last one holds."""
    slot = Slot(tmp_path)
    assert not _start_kept(slot)
    slot.run.mkdir()
    lines = [json.dumps({"event": "end", "step": 4, "best_step": step}) for step in (0, None, 2, 0)]
    for count, kept in ((1, True), (2, False), (3, False), (4, True)):
        (slot.run / "log.jsonl").write_text("\n".join(lines[:count]) + "\n")
        assert _start_kept(slot) == kept


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    """Options that a newer version refuses, say; the comparison itself checks them first."""
    (tmp_path / "yaml.py").write_text("raise ImportError('not the one that is meant')\n")
    monkeypatch.chdir(tmp_path)
    job = _begun(options(tmp_path / "out"), TABLE, CANDIDATES, Reporter(None))
    slot = job.folder.slot("mean", 0)
    job._prepare(slot, job.candidates[0], 0)
    written = read(slot.job)
    written["config"]["batch_size"] = 0
    write_json(slot.job, written)
    looks: list[int] = []
    assert run_training(slot.path, slot.log, lambda: looks.append(1)) == 1
    assert "--batch-size is 0" in read(slot.failure)["why"]
    assert "Here it is batch_size: among the options of the candidate" in read(slot.failure)["why"]
    assert looks
    written["config"]["no_such_option"] = 1
    write_json(slot.job, written)
    assert run_training(slot.path, slot.log, lambda: None) == 1
    assert read(slot.failure)["why"].startswith("TypeError: ")
    assert "Traceback" in slot.log.read_text()
    assert not slot.finished


def test_how_a_process_ended_is_said():
    assert "memory" in how_it_ended(-9, Path("log"))
    assert how_it_ended(1, Path("log")) == "the process ended with status 1; see log"
