"""``longarc cite``: BibTeX of a run, as text and as JSON, and from Python."""

from __future__ import annotations

import json

from longarc.api import open_run


def test_text_json_and_python_say_the_same(longarc, trained):
    status, out, err = longarc("cite", trained)
    assert (status, err) == (0, "")
    assert "% loss: logit-adjusted: menon2021long, ren2020balanced" in out.splitlines()
    assert "@inproceedings{menon2021long," in out
    assert "% encoder: " in out
    assert out.rstrip().endswith("}")
    status, printed, _ = longarc("cite", trained, "--json")
    assert status == 0
    said = json.loads(printed)
    assert {"part": "loss", "name": "logit-adjusted", "note": None,
            "keys": ["menon2021long", "ren2020balanced"]} in said["parts"]  # fmt: skip
    assert said["bibtex"] in out
    assert open_run(trained).citations == said["bibtex"]


def test_a_folder_without_a_run_is_refused(longarc, tmp_path):
    status, out, err = longarc("cite", tmp_path)
    assert (status, out) == (1, "")
    assert "is not a run folder" in err
