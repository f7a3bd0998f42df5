import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longarc.data.examples import Examples
from longarc.data.licenses import read_licenses
from longarc.errors import RunError
from longarc.report.html import _diagnosis, worst_errors, write_report
from longarc.report.measures import MACRO_F1, MULTI_LABEL, SINGLE_LABEL, TAIL, signed
from longarc.report.paired import against_best
from longarc.report.saved import read_run

PARTS = [
    "figures",
    "recall",
    "training",
    "calibration",
    "errors",
    "data",
    "classes",
    "configuration",
]


class Page(HTMLParser):
    """The page's text without its style and drawings, the ids of its sections, its tags."""

    def __init__(self, path: Path):
        super().__init__()
        self.sections, self.tags, self.texts, self._skip = [], set(), [], 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._skip += tag in ("svg", "style")
        if tag == "section":
            self.sections.append(dict(attributes)["id"])

    def handle_endtag(self, tag):
        self._skip -= tag in ("svg", "style")

    def handle_data(self, data):
        if not self._skip:
            self.texts.append(data)


@pytest.fixture
def copy(run_folder, tmp_path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def rewrite(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_full_run_has_every_part_in_order(copy):
    assert write_report(copy) == copy / "report.html"
    page = Page(copy / "report.html")
    assert page.sections == PARTS
    metrics = json.loads((copy / "metrics.json").read_text())
    for split in ("test", "validation"):
        for system in (metrics[split]["model"], *metrics[split]["baselines"].values()):
            f1 = system["macro_f1"]
            assert f"{f1['value']:.3f} {f1['low']:.3f}–{f1['high']:.3f}" in page.text
    assert "The model’s macro-F1" in page.text
    assert "licences.csv" in page.text
    assert "loss: auto" in page.text
    label = metrics["test"]["model"]["confused"][0]
    assert f"{label['label']} {label['prediction']} {label['count']}" in page.text


def test_the_page_asks_for_nothing(copy):
    page = Page(write_report(copy))
    assert not page.tags & {"script", "iframe", "object", "embed", "base", "form", "img"}
    assert (
        page.source.count("<link") == 1
    )  # the empty icon that keeps a browser from asking for one
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:|//)", page.source)
    assert "@import" not in page.source
    assert not re.search(r"url\((?!#)", page.source)


def test_worst_errors_are_wrong_and_sorted_by_confidence(run_folder):
    errors = worst_errors(read_run(run_folder), "test")
    assert len(errors) == 20
    assert all(e["label"] != e["prediction"] for e in errors)
    confidences = [e["confidence"] for e in errors]
    assert confidences == sorted(confidences, reverse=True)
    import pyarrow.parquet as pq

    rows = pq.read_table(run_folder / "predictions.parquet").to_pylist()
    wrong = [r for r in rows if r["split"] == "test" and r["label"] != r["prediction"]]
    assert confidences[0] == max(r["confidence"] for r in wrong)


def test_multi_label_shows_average_precision_and_no_pairs(multi_label_run, tmp_path):
    page = Page(write_report(multi_label_run, tmp_path / "report.html"))
    assert "mAP" in page.text
    assert "Exact match" in page.text
    assert "Average precision" in page.text
    assert "Most confused pairs" not in page.text
    assert page.sections == PARTS


def test_frozen_run_without_test_split_and_baseline(build_run, licences, tmp_path):
    few = licences.select(range(300))
    folder = build_run(tmp_path / "frozen", few, frozen=True, test_fraction=0, baseline=False)
    page = Page(write_report(folder))
    assert "No baseline was trained" in page.text
    assert "There is no test split" in page.text
    assert "the encoder was frozen" in page.text
    assert "Test," not in page.text


def test_each_optional_input_may_be_missing(copy):
    for name in ("check.json", "log.jsonl", "predictions.parquet"):
        (copy / name).unlink()

    def bare(metrics):
        for split in ("validation", "test"):
            model = metrics[split]["model"]
            for key in ("per_class", "confused", "reliability", "unseen_labels"):
                del model[key]
            model["calibration_error"] = {"value": None, "low": None, "high": None}
            metrics[split]["baselines"] = {}
        del metrics["seconds"]

    rewrite(copy / "metrics.json", bare)
    (copy / "config.yaml").write_text("{}\n")
    page = Page(write_report(copy))
    assert "no check.json" in page.text
    assert "no predictions.parquet" in page.text
    assert "no training step" in page.text
    assert "calibration" not in page.sections
    assert "recall" not in page.sections


def test_no_wrong_prediction_is_said(copy):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(copy / "predictions.parquet")
    right = table.set_column(
        table.schema.get_field_index("prediction"), "prediction", table["label"]
    )
    pq.write_table(right, copy / "predictions.parquet")
    assert isinstance(right, pa.Table)
    assert "No prediction on the test split is wrong." in Page(write_report(copy)).text


def test_unseen_labels_are_listed(copy):
    def unseen(metrics):
        metrics["test"]["model"]["unseen_labels"] = {"new & rare": 3}

    rewrite(copy / "metrics.json", unseen)
    assert "new & rare (3)" in Page(write_report(copy)).text.replace(" (", " (")


def test_440_classes_and_long_texts_stay_small(build_run, tmp_path):
    keys = read_licenses("key")
    texts = [text[:300] for text in keys.texts]
    folder = build_run(tmp_path / "keys", Examples(keys.source, texts, keys.labels, keys.rows),
                       epochs=1, baseline=False, label="key")  # fmt: skip
    path = write_report(folder)
    assert path.stat().st_size < 1_000_000
    page = Page(path)
    labels = json.loads((folder / "labels.json").read_text())["labels"]
    assert len(labels) > 430
    assert f"{len(labels)} classes" in page.text
    assert all(label["name"] in page.text for label in labels)


def test_the_worst_folder_stays_under_three_megabytes(copy):
    """5,000 classes with long names in a four-byte script, long texts, messages and options."""
    name = '𠜎<&"' * 100
    labels = [{"name": f"{i}{name}", "count": 5000 - i, "group": "tail"} for i in range(5000)]
    rewrite(copy / "labels.json", lambda v: v.update(labels=labels))

    def grow(metrics):
        for split in ("validation", "test"):
            model = metrics[split]["model"]
            model["per_class"] = [
                {"label": entry["name"], "group": "tail", "train_count": entry["count"],
                 "support": 1 + i % 90, "precision": 0.5, "recall": (i % 91) / 91, "f1": 0.5}
                for i, entry in enumerate(labels)
            ]  # fmt: skip
            model["confused"] = [{"label": name, "prediction": name, "count": 3}] * 500
            model["unseen_labels"] = {f"{i}{name}": 1 for i in range(3000)}

    rewrite(copy / "metrics.json", grow)
    finding = {"level": "note", "code": "x", "message": name * 100, "count": 1, "examples": []}
    rewrite(copy / "check.json", lambda v: v.update(findings=[finding] * 1000))
    with (copy / "config.yaml").open("a", encoding="utf-8") as config:
        config.write(f"note: '{name * 1000}'\n")
    with (copy / "log.jsonl").open("a") as log:
        for step in range(100, 20_000):
            log.write(json.dumps({"event": "train", "step": step, "loss": 1 / step,
                                  "learning_rate": 1e-5}) + "\n")  # fmt: skip
    assert write_report(copy).stat().st_size < 3_000_000


def test_where_the_file_goes(run_folder, tmp_path):
    out = tmp_path / "new" / "page.html"
    assert write_report(run_folder, out) == out
    assert out.is_file()
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(RunError, match="is a folder; expected a file"):
        write_report(run_folder, tmp_path)
    with pytest.raises(RunError, match="No run folder was given"):
        write_report([])


# Several runs


@pytest.fixture(scope="module")
def two_runs(run_folder, build_run, licences, tmp_path_factory) -> list[Path]:
    second = tmp_path_factory.mktemp("more") / "second run"
    build_run(second, licences, epochs=2, loss="logit-adjusted", seed=1)
    return [run_folder, second]


def test_comparison_shows_figures_and_only_what_differs(two_runs, tmp_path):
    write_report(two_runs[1])
    page = Page(write_report(two_runs, tmp_path / "comparison.html"))
    for folder in two_runs:
        f1 = json.loads((folder / "metrics.json").read_text())["test"]["model"]["macro_f1"]
        assert f"{f1['value']:.3f} {f1['low']:.3f}–{f1['high']:.3f}" in page.text
    assert "loss auto logit-adjusted" in page.text
    assert "seed 0 1" in page.text
    assert "batch_size" not in page.text
    assert "not trained and measured on the same data" not in page.text
    assert page.text.count("TF-IDF + linear SVM") == 1  # one baseline for the same data
    assert "second%20run/report.html" in page.source


def predictions_of(run: Path) -> list[dict]:
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    return [row for row in rows if row["split"] == "test"]


def test_runs_are_compared_document_by_document(two_runs, tmp_path):
    page = Page(write_report(two_runs, tmp_path / "comparison.html"))
    runs = {path.name: predictions_of(path) for path in two_runs}
    f1 = {
        path.name: json.loads((path / "metrics.json").read_text())["test"]["model"]["macro_f1"]
        for path in two_runs
    }
    best, other = sorted(f1, key=lambda name: -f1[name]["value"])
    right = {
        name: np.mean([row["label"] == row["prediction"] for row in rows])
        for name, rows in runs.items()
    }
    shown = page.text.split("Against the best")[1].split("Measure by measure")[0]
    assert f"How far each run is from {best}" in shown
    for gap in (right[other] - right[best], f1[other]["value"] - f1[best]["value"]):
        assert signed(100 * gap, 1) in shown
    assert "Left out" not in shown


def test_tails_are_compared_where_they_are_the_same_classes(two_runs, tmp_path):
    """A run on fewer documents has more classes in its tail."""
    fewer = Path(shutil.copytree(two_runs[1], tmp_path / "fewer"))
    rewrite(fewer / "labels.json", lambda v: [row.update(count=1) for row in v["labels"]])
    for other, there in ((two_runs[1], True), (fewer, False)):
        runs = [read_run(path) for path in (two_runs[0], other)]
        found = against_best(runs, ["one", "other"], "test", SINGLE_LABEL)
        assert (TAIL in found["measures"]) is there
        assert MACRO_F1 in found["measures"]


def test_only_runs_on_the_same_documents_are_paired(two_runs, tmp_path):
    """One that read a text otherwise is left out, and alone it leaves nothing to show."""
    other = Path(shutil.copytree(two_runs[1], tmp_path / "other texts"))
    table = pq.read_table(other / "predictions.parquet")
    column = table.schema.get_field_index("text_sha256")
    hashes = ["0" * 16, *table["text_sha256"].to_pylist()[1:-1], "0" * 16]
    pq.write_table(
        table.set_column(column, "text_sha256", pa.array(hashes)), other / "predictions.parquet"
    )
    alone = Page(write_report([two_runs[0], other], tmp_path / "a.html"))
    assert "Against the best" not in alone.text
    page = Page(write_report([*two_runs, other], tmp_path / "b.html"))
    assert re.search(r"Left out, as they have no predictions of these documents: \S", page.text)


def test_runs_with_several_labels_are_paired(multi_label_run, tmp_path):
    """Without its predictions of the first label, a run is that much worse, and surely."""
    worse = Path(shutil.copytree(multi_label_run, tmp_path / "worse"))
    table = pq.read_table(worse / "predictions.parquet")
    labels = [names[1:] for names in table["prediction"].to_pylist()]
    column = table.schema.get_field_index("prediction")
    changed = pa.array(labels, table.schema.field("prediction").type)
    pq.write_table(table.set_column(column, "prediction", changed), worse / "predictions.parquet")
    rewrite(worse / "metrics.json", lambda v: v["test"]["model"]["macro_f1"].update(value=0.0))
    runs = [read_run(path) for path in (worse, multi_label_run)]
    found = against_best(runs, ["worse", "whole"], "test", MULTI_LABEL)
    assert found["best"] == "whole"
    (row,) = found["rows"]
    truth, full = (
        [set(p[key]) for p in predictions_of(multi_label_run)] for key in ("label", "prediction")
    )
    less = [set(p["prediction"]) for p in predictions_of(worse)]
    exact = [np.mean([a == b for a, b in zip(truth, one, strict=True)]) for one in (less, full)]
    assert row["cells"]["accuracy"].value == pytest.approx(exact[0] - exact[1])
    assert row["cells"]["micro_f1"].is_certain
    assert row["cells"]["micro_f1"].points.startswith("−")


def test_comparison_warns_loudly_of_different_data(two_runs, tmp_path):
    other = Path(shutil.copytree(two_runs[1], tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub("data_sha256: .*", "data_sha256: 0000", config))
    page = Page(write_report([two_runs[0], other], tmp_path / "c.html"))
    assert "not trained and measured on the same data" in page.text
    (other / "config.yaml").write_text(re.sub("data_sha256: .*", "", config))
    page = Page(write_report([two_runs[0], other], tmp_path / "c.html"))
    assert "It is not known whether the runs were measured on the same documents" in page.text


def test_the_caption_tells_of_the_charts_that_are_there(run_folder, tmp_path):
    """A short training has no sharpness."""
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    kept = [
        r
        for r in map(json.loads, (copy / "log.jsonl").read_text().splitlines())
        if r["event"] not in ("update", "sharpness")
    ]
    update = {"event": "update", "step": 2, "update_ratio": 1e-4, "implicit_share": 0.01}
    sharp = {"event": "sharpness", "step": 2, "critical_sharpness": 3e3}
    for records, told in (([update], False), ([update, sharp], True)):
        lines = "".join(json.dumps(record) + "\n" for record in kept + records)
        (copy / "log.jsonl").write_text(lines, encoding="utf-8")
        page = Page(write_report([copy]))
        assert "How far a step moves the weights." in page.text
        assert ("a step that overshot" in page.text) == told


def test_what_cannot_be_compared_is_refused(two_runs, multi_label_run, tmp_path):
    with pytest.raises(RunError, match="say where the comparison goes"):
        write_report(two_runs)
    out = tmp_path / "c.html"
    with pytest.raises(RunError, match="single-label and properties is multi-label"):
        write_report([two_runs[0], multi_label_run], out)
    with pytest.raises(RunError, match="given twice"):
        write_report([two_runs[0], two_runs[0]], out)
    renamed = Path(shutil.copytree(two_runs[1], tmp_path / "renamed"))
    rewrite(renamed / "labels.json", lambda v: v["labels"][0].update(name="Lenient"))
    with pytest.raises(RunError, match="only in licences: Permissive; only in renamed: Lenient"):
        write_report([two_runs[0], renamed], out)
    untested = Path(shutil.copytree(two_runs[1], tmp_path / "untested"))
    rewrite(untested / "metrics.json", lambda v: v.pop("test"))
    tested = Path(shutil.copytree(two_runs[0], tmp_path / "tested"))
    rewrite(tested / "metrics.json", lambda v: v.pop("validation"))
    with pytest.raises(RunError, match="share no evaluated split"):
        write_report([tested, untested], out)
    assert not out.exists()


def test_links_between_two_drives_are_whole(tmp_path, monkeypatch):
    """Windows has no relative path from C: to D:, and Python says so by an error."""
    run = SimpleNamespace(diagnosis={"verdict": "it vanishes"}, folder=tmp_path)
    page = tmp_path / "diagnosis.html"
    assert _diagnosis(run, tmp_path / "a" / "page.html")["link"] == "../diagnosis.html"

    def relpath(path, start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    assert _diagnosis(run, tmp_path / "a" / "page.html")["link"] == page.as_uri()


def test_runs_of_one_name_are_told_apart(two_runs, tmp_path):
    twin = Path(shutil.copytree(two_runs[1], tmp_path / "elsewhere" / two_runs[0].name))
    page = Page(write_report([two_runs[0], twin], tmp_path / "c.html"))
    assert "elsewhere/licences" in page.text
    assert f"{two_runs[0].parent.name}/licences" in page.text
