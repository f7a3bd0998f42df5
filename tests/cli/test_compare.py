"""``longarc compare``: interrupted, gone on with, finished; what it refuses before it starts."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console
from sklearn.metrics import f1_score

import longarc as package
from longarc.comparison.candidates import Candidate
from longarc.comparison.config import CompareConfig
from longarc.comparison.figures import rows
from longarc.comparison.folder import CompareFolder
from longarc.comparison.job import _opened
from longarc.comparison.pace import seconds_per_step
from longarc.comparison.reading import Needs, measure_reading
from longarc.comparison.slot import Slot, read
from longarc.comparison.training_process import _train
from longarc.errors import RunError
from longarc.files import write_json
from longarc.training.config import TrainConfig
from longarc.training.progress import Reporter

STEPS = 24


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, tiny_model) -> Path:
    """A training of many steps, and a probe that takes none."""
    file = tmp_path_factory.mktemp("candidates") / "candidates.yaml"
    everything = {
        "all": {"model": str(tiny_model), "precision": "fp32"},
        "linear": {"attention": "linear", "checkpoint_minutes": 0.0, "learning_rate": 3e-3},
        "probe": {"freeze": True},
    }
    file.write_text(yaml.safe_dump(everything, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, start, tickets, candidates) -> tuple[Path, str, int]:
    """A comparison stopped in its first training: folder, what it said, exit status."""
    out = tmp_path_factory.mktemp("compare") / "out"
    process = start(
        "compare", tickets, "--text", "body", "--label", "topic", "--candidates", candidates,
        "--budget-steps", STEPS, "--documents", 10, "--repeats", 2, "--device", "cpu",
        "--out", out,
    )  # fmt: skip
    log = out / "candidates/linear/seed-0/run/log.jsonl"
    limit = time.monotonic() + 240
    while not (log.is_file() and '"event": "checkpoint"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=180)
    return out, said, process.returncode


@pytest.fixture(scope="module")
def finished(interrupted) -> package.Comparison:
    """The same comparison, gone on with."""
    from longarc.cli.main import main

    out = interrupted[0]
    assert main(["compare", "--resume", "--out", str(out)]) == 0
    return package.open_comparison(out)


def test_an_interruption_says_how_to_go_on(interrupted):
    out, said, status = interrupted
    assert status == 130
    assert f"longarc compare --resume --out {out}" in said
    slot = out / "candidates/linear/seed-0"
    assert not (slot / "training.json").exists()
    assert not (out / "candidates/probe").exists()
    assert json.loads((slot / "spent.json").read_text())["processes"] == 1


def test_the_interrupted_training_goes_on_from_its_checkpoint(finished):
    slot = finished.path / "candidates/linear/seed-0"
    starts = [r for r in records_of(slot / "run") if r["event"] == "start"]
    assert starts[-1]["steps"] == STEPS
    assert starts[-1]["resumed_from"] >= 1
    assert records_of(slot / "run")[-1]["step"] == STEPS
    spent = json.loads((slot / "training.json").read_text())
    assert spent["processes"] == 2
    assert spent["steps"] == STEPS


def test_what_is_finished_is_not_repeated(longarc, finished):
    """Neither a training nor a turn of prediction; the page is drawn anew."""

    def times() -> dict[Path, float]:
        kept = [p for p in finished.path.rglob("*") if p.is_file() and p.parent != finished.path]
        return {p: p.stat().st_mtime for p in [*kept, finished.path / "reading.json"]}

    before = times()
    status, out, _ = longarc("compare", "--resume", "--out", finished.path, "--json")
    assert status == 0
    assert json.loads(out)["candidates"] == finished.found["candidates"]
    assert times() == before


def test_a_candidate_that_failed_is_a_row_that_says_why(finished, tmp_path):
    """Beside real ones, whose figures stay as they are."""
    slot = Slot(tmp_path / "broken")
    slot.path.mkdir()
    write_json(slot.failure, {"why": "out of memory"})
    slots = {name: [finished.folder.slot(name, 0)] for name in ("linear", "probe")}
    made = [Candidate(name, row["options"]) for name, row in zip(
        slots, finished.found["candidates"], strict=True
    )]  # fmt: skip
    reading = read(finished.folder.reading)["candidates"]
    found = rows([Candidate("broken", {}), *made], {"broken": [slot], **slots}, reading,
                 finished.path)  # fmt: skip
    assert found[0]["why"] == "out of memory"
    assert found[0]["macro_f1"] is None
    assert not found[0]["front"]
    assert found[1:] == finished.found["candidates"]


def test_without_room_for_all_each_turn_has_its_own_process(finished, tmp_path, monkeypatch):
    """Which is started for the first turn as well, and reports what all others do."""
    said = io.StringIO()
    found = measure_reading(
        {"probe": finished.folder.slot("probe", 0).run},
        finished.folder.documents,
        count=10,
        repeats=1,
        logs={"probe": tmp_path / "probe.txt"},
        needs=Needs(memory=1e12),
        reporter=Reporter(Console(file=said, width=300)),
    )
    assert "0 of 1 processes fit at once" in said.getvalue()
    assert "and one may need 1,000,000,000,000): one is started anew" in said.getvalue()
    together = read(finished.folder.reading)["candidates"]["probe"]
    assert found["probe"].keys() == together.keys() | {"alone"}
    assert found["probe"]["documents_per_second"]["n"] == 1


def test_figures_over_seeds_are_means(finished):
    """The same run taken for three seeds has its own figures, and two different ones their mean."""
    slots = {name: finished.folder.slot(name, 0) for name in ("linear", "probe")}
    one, other = (row["macro_f1"]["value"] for row in finished.found["candidates"])
    pairs = {"thrice": [slots["linear"]] * 3, "both": list(slots.values())}
    thrice, both = rows([Candidate(n, {}) for n in pairs], pairs, {}, finished.path)
    assert thrice["macro_f1"] == finished.found["candidates"][0]["macro_f1"]
    assert both["by_seed"] == [one, other]
    assert both["macro_f1"]["value"] == pytest.approx((one + other) / 2)


def test_a_step_is_timed_and_nothing_is_left(tickets, tiny_model, tmp_path):
    config = TrainConfig(
        data=str(tickets), text="body", label="topic", model=str(tiny_model), precision="fp32",
        device="cpu", out=str(tmp_path / "run"), learning_rate="auto", recipe="auto",
    )  # fmt: skip
    assert 0 < seconds_per_step(config) < 10
    assert not list(tmp_path.iterdir())


def test_differences_to_the_best_are_paired(finished):
    """By macro-F1 of both on the same resampled documents, with scikit-learn."""
    best, other = sorted(
        finished.found["candidates"], key=lambda row: row["against_best"] is not None
    )
    assert best["against_best"] is None
    columns = []
    for row in (best, other):
        table = pyarrow.parquet.read_table(finished.path / row["runs"][0] / "predictions.parquet")
        columns.append([r for r in table.to_pylist() if r["split"] == "test"])
    truth, first, second = (
        np.array([r[name] for r in column])
        for column, name in (
            (columns[0], "label"),
            (columns[0], "prediction"),
            (columns[1], "prediction"),
        )
    )
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, len(truth), len(truth)) for _ in range(200)]
    options = {"average": "macro", "zero_division": 0}
    differences = [
        f1_score(truth[d], second[d], labels=np.unique(truth[d]), **options)
        - f1_score(truth[d], first[d], labels=np.unique(truth[d]), **options)
        for d in drawn
    ]
    told = other["against_best"]
    assert told["value"] == pytest.approx(other["macro_f1"]["value"] - best["macro_f1"]["value"])
    ends = np.percentile(differences, [2.5, 97.5])
    assert [told["low"], told["high"]] == pytest.approx(ends, abs=0.06)


def test_each_candidate_has_its_figures(finished):
    linear, probe = finished.found["candidates"]
    assert finished.failed == {}
    for row in (probe, linear):
        metrics = json.loads((finished.path / row["runs"][0] / "metrics.json").read_text())
        told = metrics["test"]["model"]["macro_f1"]
        assert row["macro_f1"] == pytest.approx(told, abs=2e-4)
        speed = row["prediction_documents_per_second"]
        assert speed["n"] == 2
        assert speed["min"] <= speed["median"] <= speed["max"]
        assert row["training_peak_mib"] > 100
        assert row["prediction_peak_mib"] > 100
        assert row["minutes"] > 0
    assert linear["training_documents_per_second"] > 0
    assert (probe["steps"], linear["steps"]) == (0, STEPS)
    assert probe["training_documents_per_second"] is None
    assert finished.front
    assert set(finished.front) <= {"probe", "linear"}


def test_the_linear_baseline_is_that_of_a_training_and_fitted_once(finished, trained):
    """The same table, splits and seed as of a run of longarc train; in no candidate's own run."""
    runs = [finished.path / f"candidates/{name}/seed-0/run" for name in ("linear", "probe")]
    for run in runs:
        baselines = json.loads((run / "metrics.json").read_text())["test"]["baselines"]
        assert "tfidf-svm" not in baselines
    assert [(run.parent / "baseline.json").is_file() for run in runs] == [True, False]
    same = json.loads((trained / "metrics.json").read_text())["test"]["baselines"]["tfidf-svm"]
    assert finished.found["baseline"] == {"name": "TF-IDF + linear SVM", **same["macro_f1"]}


def test_a_baseline_that_fails_leaves_the_candidate(finished, tickets, tmp_path):
    """That is trained, and whose table is gone when the baseline is to be fitted."""
    folder = CompareFolder(tmp_path / "out")
    shutil.copytree(finished.path / "candidates", folder.path / "candidates")
    shutil.copy(finished.folder.settings, folder.settings)
    slot = folder.slot("linear", 0)
    for file in (slot.training, slot.baseline):
        file.unlink()
    job = read(slot.job)
    job["config"] |= {"data": str(tmp_path / "gone.csv"), "out": str(slot.run)}
    _train(slot, job, read(slot.spent), time.monotonic())
    assert slot.finished
    assert "gone.csv does not exist" in read(slot.baseline)["why"]
    again = _opened(CompareConfig(**folder.read_settings()["options"] | {"out": str(folder.path)}),
                    None, None, Reporter(None))  # fmt: skip
    linear, probe = again.candidates
    assert again._baseline() == {"name": "TF-IDF + linear SVM", **read(slot.baseline)}
    assert (again._done(linear, 0), again._done(probe, 0)) == (False, True)
    again._prepare(slot, linear, 0)
    assert not slot.baseline.exists()


def test_the_folder_is_what_the_page_and_the_table_say(finished):
    assert finished.page.is_file()
    page = finished.page.read_text(encoding="utf-8")
    assert finished.found["sentence"].replace("'", "&#39;") in page
    assert 'href="candidates/linear/seed-0/run/report.html"' in page
    assert "<script" not in page
    with (finished.path / "table.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["candidate"] for row in written] == ["linear", "probe"]
    frame = finished.to_pandas()
    assert list(frame.columns) == list(written[0])
    assert frame["macro_f1"][1] == float(written[1]["macro_f1"])
    assert repr(finished) == f"Comparison({str(finished.path)!r})"


def test_what_all_candidates_used_is_cited_once(longarc, finished):
    status, printed, err = longarc("cite", finished.path, "--json")
    assert (status, err) == (0, "")
    said = json.loads(printed)
    parts = {(part["part"], part["name"]) for part in said["parts"]}
    assert len(parts) == len(said["parts"])
    for run in (row["runs"][0] for row in finished.found["candidates"]):
        status, printed, _ = longarc("cite", finished.path / run, "--json")
        mine = json.loads(printed)
        assert parts >= {(part["part"], part["name"]) for part in mine["parts"]}
        for key in (key for part in mine["parts"] for key in part["keys"]):
            assert said["bibtex"].count(f"{{{key},\n") == 1
    assert ("attention", "linear") in parts
    assert ("linear classifier", "TF-IDF + LinearSVC") in parts
    assert said["parts"][-1]["part"] == "software"
    assert said["bibtex"] == finished.citations
    status, printed, _ = longarc("cite", finished.path)
    assert printed.endswith(said["bibtex"])


def test_a_second_resume_with_other_options_is_refused(longarc, finished):
    command = ("compare", "--resume", "--out", finished.path, "--budget-steps", STEPS + 1)
    status, _, err = longarc(*command)
    assert status == 1
    assert f"budget_steps: {STEPS} then, {STEPS + 1} now" in err


def test_a_comparison_is_only_replaced_if_asked(longarc, finished, trained, tickets, candidates):
    common = ("compare", tickets, "--candidates", candidates, "--budget-steps", 1, "--out")
    status, _, err = longarc(*common, finished.path)
    assert status == 1
    assert "--overwrite" in err
    status, _, err = longarc(*common, trained, "--overwrite")
    assert status == 1
    assert "never overwritten" in err
    with pytest.raises(RunError, match="holds no finished comparison"):
        package.open_comparison(trained)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--candidates", "{a: {}, b: {los: focal}}", "--budget-steps", 1), "candidate 'b'"),
        (("--candidates", "{a: {}, b: {}}"), "no budget named"),
        (("--candidates", "atention", "--budget-steps", 1), "Did you mean attention"),
        (("--budget-steps", 1), "no candidates named"),
        (
            ("--candidates", "tail", "--budget-steps", 1, "--label", "nothing"),
            "no column 'nothing'",
        ),
        (("--candidates", "tail", "--budget-steps", 1, "--resume"), "no comparison to go on with"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(longarc, tickets, tmp_path, words, message):
    out = tmp_path / "out"
    status, printed, err = longarc("compare", tickets, *words, "--out", out)
    assert status == 1
    assert message in err
    assert printed == ""
    assert not out.exists()


def test_without_a_table_only_the_packaged_texts_will_do(longarc, tmp_path):
    words = ("--candidates", "tail", "--budget-steps", 1, "--out", tmp_path / "out")
    status, _, err = longarc("compare", *words)
    assert status == 1
    assert "expected DATA" in err


def test_an_option_that_is_not_there_is_answered_with_the_near_one(longarc, tickets):
    status, _, err = longarc("compare", tickets, "--budgt-steps", 1)
    assert status == 2
    assert "--budget-steps" in err
    status, _, err = longarc("compare", tickets, "--max-length", 16)
    assert status == 2
    assert "--options '{\"max_length\": …}'" in err


def test_a_comparison_is_no_run_and_is_not_resumed_and_replaced_at_once(longarc, tmp_path):
    (tmp_path / "compare.yaml").write_text("out: x")
    status, _, err = longarc("report", tmp_path)
    assert (status, f"{tmp_path}/candidates/NAME/seed-0/run" in err) == (1, True), err
    status, _, err = longarc("compare", "--resume", "--overwrite", "--out", tmp_path)
    assert (status, "Drop one of them" in err) == (1, True), err
