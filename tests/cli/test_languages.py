"""Chinese, Japanese and Arabic from a table to a report: lengths, baseline, views, direction."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from longarc.data.augment import TextViews, special_ids
from longarc.models.loading import resolve_model
from longarc.report.explanations import write_explanations

# Two subjects in each language: what it does, where, and when, put together without spaces where
# the script has none.
PARTS = {
    "Chinese": ("", "。", {
        "天气": (
            ("今天", "明天", "周末", "夜里"),
            ("北京", "上海", "山区"),
            ("有大雨", "会下雪", "刮大风"),
        ),
        "财务": (
            ("本月", "上季度", "去年", "年底"),
            ("公司", "银行", "客户"),
            ("利润增加", "支付发票", "贷款到期"),
        ),
    }),
    "Japanese": ("", "。", {
        "天気": (
            ("今日は", "明日は", "週末は", "夜には"),
            ("東京で", "山間部で", "海沿いで"),
            ("雨が降る", "雪が積もる", "風が強い"),
        ),
        "会計": (
            ("今月は", "先月は", "昨年は", "年末に"),
            ("会社の", "銀行の", "取引先の"),
            ("請求書を払う", "利益が増える", "借入を返す"),
        ),
    }),
    "Arabic": (" ", ".", {
        "الطقس": (
            ("اليوم", "غدا", "مساء", "فجرا"),
            ("في المدينة", "على الجبل", "قرب البحر"),
            ("تهطل الأمطار", "تهب الرياح", "يسقط الثلج"),
        ),
        "المالية": (
            ("هذا الشهر", "في العام الماضي", "قبل أيام", "بعد أسبوع"),
            ("دفعت الشركة", "راجع البنك", "طلب العميل"),
            ("قيمة الفاتورة", "أقساط القرض", "كشف الحساب"),
        ),
    }),
}  # fmt: skip
LANGUAGES = tuple(PARTS)


def documents(language: str) -> tuple[list[str], list[str]]:
    """36 texts of each of two subjects, and their labels."""
    joint, stop, subjects = PARTS[language]
    texts, labels = [], []
    for label, parts in subjects.items():
        for chosen in itertools.product(*parts):
            texts.append(joint.join(chosen) + stop)
            labels.append(label)
    return texts, labels


def write_table(path: Path, language: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(zip(*documents(language), strict=True))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("minilm"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_check_counts_tokens(language, longarc, tmp_path, tokenizer):
    """A text without a space is not one word: its length is what the model will read."""
    table = write_table(tmp_path / "table.csv", language)
    status, out, _ = longarc(
        "check", table, "--text", "text", "--label", "label", "--max-length", "8", "--json"
    )
    assert status == 0
    texts, labels = documents(language)
    counts = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    said = json.loads(out)
    lengths = said["lengths"]
    assert lengths["quantiles"]["100"] == max(counts)
    assert sum(part["count"] for part in lengths["histogram"]) == len(texts)
    assert lengths["truncated_documents"] == np.mean([n > 8 for n in counts])
    assert {one["name"] for one in said["labels"]} == set(labels)
    code = "spelled-script" if language == "Arabic" else "unknown-script"
    scripts = {f["code"]: f["count"] for f in said["findings"] if f["code"].endswith("-script")}
    assert scripts == {code: len(texts)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_training_and_its_report(language, longarc, tmp_path, tiny_model):
    """The linear baseline learns from such texts, and every text and label keeps its direction."""
    table = write_table(tmp_path / "table.csv", language)
    status, _, _ = longarc(
        "train", table, "--model", tiny_model, "--epochs", "1", "--max-length", "16",
        "--out", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    baseline = metrics["test"]["baselines"]["tfidf-svm"]
    assert baseline["accuracy"]["value"] >= 0.9  # half by chance; no word is shared by subjects
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    texts, labels = documents(language)
    for label in set(labels):
        assert f"<bdi>{label}</bdi>" in page
    shown = [text for text in texts if text in page]
    for text in shown:
        assert f'<blockquote dir="auto">{text}' in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_views_are_of_tokens(language, tokenizer):
    """Crops are runs of tokens, deletion and shuffling move whole ones; no character breaks."""
    texts, _ = documents(language)
    ids = tokenizer("".join(texts[:8]))["input_ids"]
    special = special_ids(tokenizer)
    first, second = TextViews(min_tokens=4, special=special)(ids, index=0)
    text = " ".join(map(str, ids))
    for view in (first, second):
        inner = view[1:-1]
        assert 4 <= len(inner) <= 0.5 * len(ids) + 1
        assert " ".join(map(str, inner)) in text
        assert "\ufffd" not in tokenizer.decode(view)
    shuffled, _ = TextViews(crop=None, shuffle=3, special=special)(ids, index=0)
    assert sorted(shuffled) == sorted(ids)
    assert shuffled != ids
    kept, _ = TextViews(crop=None, delete=0.25, special=special)(ids, index=0)
    assert len(ids) - len(kept) == round(0.25 * (len(ids) - 2))


@pytest.mark.parametrize("language", LANGUAGES)
def test_explanations_show_documents_in_their_direction(language, tmp_path):
    texts, labels = documents(language)
    entry = {
        "text": texts[0], "name": f"logit of {labels[0]}", "initial": 0.0, "final": 0.3,
        "contributions": 0.3, "decay": 0.0, "elsewhere": 0.0, "afterwards": 0.0, "residual": 0.0,
        "relative_residual": 0.0, "quadrature": "gauss", "tolerance": 1e-6,
        "within_tolerance": True, "by_class": {labels[0]: 0.4, labels[-1]: -0.1},
        "supporting": [{"document": 1, "label": labels[0], "value": 0.4, "text": texts[1]}],
        "opposing": [{"document": 40, "label": labels[-1], "value": -0.1, "text": texts[40]}],
    }  # fmt: skip
    page = tmp_path / "page.html"
    write_explanations(page, [entry], title="Explained")
    written = page.read_text(encoding="utf-8")
    assert f'<p dir="auto">{texts[0]}</p>' in written
    for text, label in ((texts[1], labels[1]), (texts[40], labels[40])):
        assert f'<td dir="auto">{text}</td>' in written
        assert f"<bdi>{label}</bdi>" in written
    assert not re.search(rf"<td>[^<]*{re.escape(texts[1])}", written)
