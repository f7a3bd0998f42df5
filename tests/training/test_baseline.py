import importlib.util
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from longarc.data.labels import LabelSpace
from longarc.data.lengths import LONGEST_TEXT
from longarc.errors import DataError, ModelError, RunError
from longarc.training.baseline import LinearBaseline, is_unspaced


def fitted(texts, labels, **options):
    space = LabelSpace.from_labels(labels)
    return LinearBaseline().fit(texts, space.encode(labels), space=space, **options), space


@pytest.fixture(scope="module")
def licenses():
    """Real licence texts and their families by name, at most 4,000 characters each."""
    found = importlib.util.find_spec("licensedcode")
    folder = Path(next(iter(found.submodule_search_locations))) / "data" / "licenses"
    families = ("gpl-", "lgpl-", "bsd-", "apache-", "cc-by-", "mit-", "x11-", "epl-")
    rows = []
    for path in sorted(folder.glob("*.LICENSE")):
        family = next((f for f in families if path.name.startswith(f)), None)
        text = path.read_text(encoding="utf-8").split("---\n", 2)[-1].strip()
        if family and text:
            rows.append((text[:4000], family.strip("-")))
    texts, labels = zip(*rows, strict=True)
    return list(texts), list(labels)


def test_real_licences_are_told_apart_as_by_the_textbook_pipeline(licenses):
    texts, labels = licenses
    held_out = np.arange(len(texts)) % 4 == 0
    train = [t for t, out in zip(texts, held_out, strict=True) if not out]
    known = [k for k, out in zip(labels, held_out, strict=True) if not out]
    test = [t for t, out in zip(texts, held_out, strict=True) if out]
    truth = [k for k, out in zip(labels, held_out, strict=True) if out]
    baseline, space = fitted(train, known)
    predicted = baseline.predict(test)
    assert predicted.shape == (len(test),)
    assert predicted.dtype == np.int64

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    svm = LinearSVC(class_weight="balanced", random_state=0)
    svm.fit(vectorizer.fit_transform(train), space.encode(known))
    expected = svm.predict(vectorizer.transform(test))
    # Tolerance, marks and the bound on features are all that differs.
    assert np.mean(predicted == expected) > 0.97
    most_frequent = max(truth.count(name) for name in set(truth)) / len(truth)
    assert np.mean(predicted == space.encode(truth)) > most_frequent + 0.2


def test_multi_label_predictions(licenses):
    texts, labels = licenses
    sets = [[k, "long"] if len(t) > 2000 else [k] for t, k in zip(texts, labels, strict=True)]
    sets[0] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline, space = fitted(texts, sets)
        predicted = baseline.predict(texts)
    assert predicted.shape == (len(texts), len(space))
    assert set(np.unique(predicted)) == {0, 1}
    assert np.mean(predicted == space.encode(sets)) > 0.98


def test_a_label_of_all_documents_and_one_of_none_need_no_warning():
    space = LabelSpace(("all", "some", "none"), (3, 2, 1), multi_label=True)
    codes = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline = LinearBaseline().fit(["red fox", "red hen", "blue sea"], codes, space=space)
    assert baseline.predict(["red fox", "blue sea"]).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_seed_repeats(licenses):
    texts, labels = licenses
    first, _ = fitted(texts[:80], labels[:80], seed=3)
    second, _ = fitted(texts[:80], labels[:80], seed=3)
    np.testing.assert_array_equal(first.weight, second.weight)


def test_classes_of_one_example():
    texts = ["apple pie", "apple tart", "apple cake", "steel hammer", "wool sock"]
    baseline, space = fitted(texts, ["food", "food", "food", "tool", "cloth"])
    assert space.decode(baseline.predict(["hammer", "sock", "pie"])) == ["tool", "cloth", "food"]


@pytest.mark.parametrize("texts", [["", "", ""], ["?", "! !", "a"], ["   ", "\n", "\t"]])
def test_without_a_word_the_most_frequent_class_is_predicted(texts):
    baseline, space = fitted(texts, ["b", "a", "b"])
    assert space.decode(baseline.predict(["anything", ""])) == ["b", "b"]
    several, space = fitted(texts, [["b", "c"], ["b"], []])
    assert space.decode(several.predict(["anything", ""])) == [["b"], ["b"]]


def test_one_class_only_in_the_labels():
    space = LabelSpace(("a", "b"), (2, 1), multi_label=False)
    baseline = LinearBaseline().fit(["one word", "two words"], [1, 1], space=space)
    assert baseline.predict(["word"]).tolist() == [1]


def test_no_documents_to_predict():
    baseline, _ = fitted(["red fox", "blue sea"], ["a", "b"])
    assert baseline.predict([""]).shape == (1,)
    assert baseline.margins([]).shape == (0, 2)


CHINESE = {
    "weather": [
        "今天天气很好阳光明媚",
        "明天天气预报说有大雨",
        "这里的天气总是多云",
        "北方天气寒冷多雪",
    ],
    "food": [
        "这家餐厅的面条很好吃",
        "我最喜欢吃四川火锅",
        "早餐吃了包子和豆浆",
        "晚餐做了红烧肉和米饭",
    ],
}
THAI = {
    "weather": ["วันนี้อากาศดีมาก", "พรุ่งนี้อากาศจะร้อนมาก", "อากาศหนาวมากในเดือนนี้"],
    "food": ["ฉันชอบกินข้าวผัด", "อาหารร้านนี้อร่อยมาก", "เขากินก๋วยเตี๋ยวทุกวัน"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "queries"),
    [
        (CHINESE, ["天气晴朗", "想吃面条"]),
        (THAI, ["อากาศเย็นสบาย", "กินข้าวกับเพื่อน"]),
    ],
)
def test_scripts_without_spaces(groups, queries):
    texts = [text for group in groups.values() for text in group]
    labels = [name for name, group in groups.items() for _ in group]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baseline, space = fitted(texts, labels)
    assert baseline.vectorizer.analyzer == "char_wb"
    assert space.decode(baseline.predict(queries)) == ["weather", "food"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["the weather is fine"], False),
        (["погода хорошая", "καλός καιρός"], False),
        (["오늘 날씨가 좋습니다"], False),
        (["आज मौसम अच्छा है"], False),
        (["今天天气很好"], True),
        (["日本語のテキスト と code"], True),
        (["ខ្ញុំចូលចិត្តអាហារ"], True),
        (["a report that quotes 天气 once"], False),
        (["", "123 !?"], False),
        ([], False),
    ],
)
def test_rule_for_scripts_without_spaces(texts, expected):
    assert is_unspaced(texts) is expected


def test_combining_marks_stay_in_their_words():
    baseline, _ = fitted(["आज मौसम अच्छा है", "हिन्दी भाषा"], ["a", "b"])
    words = set(baseline.vectorizer.vocabulary_)
    assert {"मौसम", "हिन्दी", "अच्छा"} <= words


def test_latin_words_are_scikit_learns(licenses):
    texts, labels = licenses
    baseline, _ = fitted(texts[:40], labels[:40])
    plain = TfidfVectorizer(ngram_range=(1, 2)).fit(texts[:40])
    assert baseline.vectorizer.vocabulary_ == plain.vocabulary_


def test_very_long_documents_are_read_in_part():
    long = "red fox " * (LONGEST_TEXT // 8) + "hidden " * 100_000
    start = time.process_time()
    baseline, _ = fitted([long, "blue sea"], ["a", "b"])
    assert time.process_time() - start < 10  # 0.5 s when this was written
    assert "hidden" not in baseline.vectorizer.vocabulary_
    assert baseline.predict([long, "sea"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("texts", "codes", "several", "message"),
    [
        ([], [], False, "no text to learn from"),
        (["a b", "c d"], [0], False, r"labels of 2 texts have shape \(1,\). Expected \(2,\)"),
        (["a b", "c d"], [0, 1], True, r"Expected \(2, 2\)"),
        (["a b", "c d"], [0, -1], False, "go from -1 to 0. Expected 0 to 1"),
        (["a b", "c d"], [0, 2], False, "go from 0 to 2. Expected 0 to 1"),
    ],
)
def test_refuses_labels_that_do_not_fit(texts, codes, several, message):
    space = LabelSpace(("a", "b"), (2, 2), multi_label=several)
    with pytest.raises(DataError, match=message):
        LinearBaseline().fit(texts, codes, space=space)


@pytest.mark.parametrize("several", [False, True])
def test_margins_are_scikit_learns(licenses, several):
    texts, labels = licenses
    sets = [[k, "long"] if len(t) > 2000 else [k] for t, k in zip(texts, labels, strict=True)]
    baseline, space = fitted(texts, sets if several else labels)
    codes = space.encode(sets if several else labels)
    features = baseline.vectorizer.transform(texts)
    svm = LinearSVC(class_weight="balanced", tol=1e-2, random_state=0)
    expected = (
        np.stack([svm.fit(features, c).decision_function(features) for c in codes.T], axis=1)
        if several
        else svm.fit(features, codes).decision_function(features)
    )
    np.testing.assert_allclose(baseline.margins(texts), expected, atol=1e-5)


def test_of_two_classes_the_difference_of_the_margins_is_scikit_learns():
    texts = ["ripe apple", "green apple", "steel hammer", "heavy hammer", "apple tart"]
    baseline, space = fitted(texts, ["b", "b", "a", "a", "b"])
    svm = LinearSVC(class_weight="balanced", tol=1e-2, random_state=0)
    features = baseline.vectorizer.transform(texts)
    expected = svm.fit(features, space.encode(["b", "b", "a", "a", "b"]))
    margins = baseline.margins(texts)
    np.testing.assert_allclose(
        margins[:, 1] - margins[:, 0], expected.decision_function(features), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["single", "several", "chinese", "wordless"])
def test_saved_and_loaded_it_decides_the_same(licenses, tmp_path, kind):
    texts, labels = licenses
    if kind == "several":
        labels = [[k, "long"] if len(t) > 2000 else [k] for t, k in zip(texts, labels, strict=True)]
    elif kind == "chinese":
        texts = [text for group in CHINESE.values() for text in group]
        labels = [name for name, group in CHINESE.items() for _ in group]
    elif kind == "wordless":
        texts, labels = ["?", "!", "-"], ["a", "b", "b"]
    baseline, _ = fitted(texts, labels)
    baseline.scaled(4).save(tmp_path / "linear")
    loaded = LinearBaseline.load(tmp_path / "linear")
    np.testing.assert_array_equal(loaded.predict(texts), baseline.predict(texts))
    np.testing.assert_allclose(
        loaded.margins(texts), 4 * baseline.margins(texts), rtol=1e-5, atol=1e-5
    )
    assert sorted(p.name for p in (tmp_path / "linear").iterdir()) == [
        "linear.json",
        "linear.safetensors",
    ]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_named(tmp_path, damage):
    baseline, _ = fitted(["red fox", "blue sea"], ["a", "b"])
    baseline.save(tmp_path / "linear")
    file = tmp_path / "linear" / "linear.json"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text()[:10] if damage == "cut" else '{"terms": []}')
    with pytest.raises(RunError, match=r"cannot read the linear classifier in .*train it again"):
        LinearBaseline.load(tmp_path / "linear")


def test_refuses_to_predict_before_fit():
    with pytest.raises(ModelError, match="Call fit before predict"):
        LinearBaseline().predict(["a"])
