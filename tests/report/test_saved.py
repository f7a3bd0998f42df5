import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from longarc.errors import RunError
from longarc.report.saved import read_run


@pytest.fixture
def copy(run_folder, tmp_path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def test_everything_of_the_folder_is_read(run_folder):
    run = read_run(run_folder)
    assert run.name == "licences"
    assert run.splits == ["test", "validation"]
    assert list(run.systems("test")) == ["model", "tfidf-svm", "frozen-probe"]
    assert sum(run.group_sizes().values()) == len(run.space)
    assert run.rows() == json.loads((run_folder / "check.json").read_text())["rows"]
    assert len(run.predictions) == run.rows()["validation"] + run.rows()["test"]
    assert "probabilities" not in run.predictions[0]
    assert {"start", "train", "validation", "update", "end"} <= {r["event"] for r in run.log}


def test_optional_files_may_be_missing(copy):
    for name in ("check.json", "log.jsonl", "predictions.parquet"):
        (copy / name).unlink()
    run = read_run(copy)
    assert (run.check, run.log, run.predictions) == (None, [], [])
    assert list(run.rows()) == ["validation", "test"]


def test_unfinished_run_says_how_to_go_on(copy):
    (copy / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"no metrics.json.*longarc train --resume --out .*"):
        read_run(copy)


@pytest.mark.parametrize("name", ["config.yaml", "labels.json"])
def test_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(RunError, match=name):
        read_run(copy)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", b"a: [", "not valid YAML"),
        ("config.yaml", b"- a\n", "expected a mapping"),
        ("labels.json", b"{}", "is not a label space"),
        ("metrics.json", b'{"test": {"mod', "not valid JSON"),
        ("metrics.json", b"[]", "expected a JSON object, found list"),
        ("metrics.json", b"{}", "neither a `validation` nor a `test`"),
        ("metrics.json", b'{"test": {"baselines": {}}}', "lacks the metrics of `model`"),
        ("metrics.json", b"\xff\xfe{", "not UTF-8 at byte 0"),
        ("log.jsonl", b'{"event": \n{}\n', "line 1 is not valid JSON"),
        ("predictions.parquet", b"PAR1 and no more", "not the expected Parquet table"),
    ],
)
def test_damage_is_named_with_the_way_out(copy, name, content, reason):
    (copy / name).write_bytes(content)
    with pytest.raises(RunError, match=reason) as caught:
        read_run(copy)
    assert name in str(caught.value)
    assert "train" in str(caught.value)


def test_half_written_last_line_of_the_log_is_left_out(copy):
    whole = read_run(copy).log
    with (copy / "log.jsonl").open("a") as log:
        log.write('{"event": "tra')
    assert read_run(copy).log == whole


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(RunError, match="no run folder at"):
        read_run(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        read_run(tmp_path / "file")


def test_the_report_needs_no_torch(run_folder, tmp_path):
    """A subprocess, because the tests themselves have long imported torch."""
    program = (
        "import sys; from longarc.report.html import write_report;"
        "from longarc.report.card import model_card; from longarc.report.terminal import *;"
        f"write_report({str(run_folder)!r}, {str(tmp_path / 'r.html')!r});"
        f"model_card({str(run_folder)!r});"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_config_survives_a_round_trip(run_folder):
    assert read_run(run_folder).config == yaml.safe_load((run_folder / "config.yaml").read_text())
