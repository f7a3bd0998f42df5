"""What is wrong or noteworthy about the splits before a model is trained on them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace, flat
from longarc.data.lengths import LONGEST_TEXT, measure, summarise
from longarc.data.scripts import MULTILINGUAL, spelled_texts, unknown_texts
from longarc.data.splits import Splits
from longarc.errors import DataError

Level = Literal["error", "warning", "note"]

_ROWS_SHOWN = 10
_TRUNCATION_WARNING = 0.10  # share of tokens lost from which it is more than a note
_IMBALANCE = 100  # times as many examples of the largest class as of the smallest
_MAJORITY = 0.9
_SEPARATORS = (";", "|", ",")
_LENGTH_SAMPLE = 50_000_000  # characters, about ten seconds of tokenising

# UTF-8 that was read as Windows-1252 and written again: two characters for é, three for quotes.
# Also the mark that decoders leave for what they could not read.
_C1 = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_BROKEN = re.compile(f"\ufffd|[ÂÃ][{_C1}]|â[€‚„†]?[{_C1}][{_C1}]|ï»¿")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class Finding:
    """One thing found: ``count`` of it, and the first few ``examples`` as rows of the user's file.

    ``code`` is stable, for programs; ``message`` says what it means and what to do.
    """

    level: Level
    code: str
    message: str
    count: int
    examples: list[int]


@dataclass(frozen=True)
class CheckResult:
    """Rows of each split, findings, lengths in tokens (None without a tokenizer), the classes."""

    rows: dict[str, int]
    findings: list[Finding]
    lengths: dict[str, Any] | None
    labels: LabelSpace

    @property
    def errors(self) -> list[Finding]:
        """Findings that make training or its figures pointless."""
        return [finding for finding in self.findings if finding.level == "error"]

    def to_dict(self) -> dict[str, Any]:
        """What ``check.json`` holds."""
        groups = self.labels.groups
        return {
            "rows": self.rows,
            "findings": [vars(finding) for finding in self.findings],
            "lengths": self.lengths,
            "classes": {
                "count": len(groups),
                **{group: groups.count(group) for group in ("head", "mid", "tail")},
            },
            "labels": self.labels.to_dict()["labels"],
        }


def check_splits(
    splits: Splits, space: LabelSpace, *, tokenizer: Any = None, max_length: int | None = None
) -> CheckResult:
    """Look for what spoils training or its figures.

    Args:
        splits: what will be trained on and measured with.
        space: of the training split.
        tokenizer: a transformers tokenizer; without one lengths are not measured.
        max_length: tokens the model will see of a document; by default the tokenizer's limit.

    Raises:
        DataError: there is no text at all.

    >>> from longarc.data.splits import make_splits
    >>> labels = ["a", "b"] * 10
    >>> examples = Examples("t.csv", [f"n {i}" for i in range(19)] + [""], labels, [*range(1, 21)])
    >>> splits = make_splits(examples)
    >>> result = check_splits(splits, LabelSpace.from_labels(splits.train.labels))
    >>> [(finding.code, finding.examples) for finding in result.findings]
    [('empty-text', [20])]
    """
    named = splits.items()
    if not any(text.strip() for _, examples in named for text in examples.texts):
        raise DataError(
            f"All {sum(len(e) for _, e in named)} texts of {splits.train.source} are empty. Is it "
            "the right text column?"
        )
    findings = [
        *_texts(named), *_repeats(splits), *_leaks(splits), *_classes(splits, space),
        *_joined(splits.train, space),
    ]  # fmt: skip
    lengths = None
    if tokenizer is not None:
        if max_length is None and tokenizer.model_max_length < 10**9:  # a huge one means no limit
            max_length = int(tokenizer.model_max_length)
        lengths, found = _lengths(named, tokenizer, max_length)
        findings += found
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.level))
    return CheckResult({name: len(e) for name, e in named}, findings, lengths, space)


def _per_file(named: Sequence[tuple[str, Examples]]) -> Iterator[tuple[str, list[int], list[str]]]:
    """A suffix for messages, rows and texts for each file: rows only mean something in theirs."""
    sources = list(dict.fromkeys(examples.source for _, examples in named))
    for source in sources:
        pairs = sorted(
            pair
            for _, e in named
            if e.source == source
            for pair in zip(e.rows, e.texts, strict=True)
        )
        where = f" in {source}" if len(sources) > 1 else ""
        yield where, [row for row, _ in pairs], [text for _, text in pairs]


def _texts(named: Sequence[tuple[str, Examples]]) -> Iterator[Finding]:
    for where, rows, texts in _per_file(named):
        kinds: list[tuple[Level, str, str, Iterable[bool]]] = [
            ("warning", "empty-text", "empty texts: remove them, or fill them in",
             (not text.strip() for text in texts)),
            ("warning", "broken-encoding",
             "texts with broken characters (such as Ã© or \ufffd): the file was decoded wrongly "
             "before; export it again as UTF-8",
             (not text.isascii() and _BROKEN.search(text) is not None for text in texts)),
            ("note", "control-characters",
             "texts with control characters, which tokenizers drop",
             (_CONTROL.search(text) is not None for text in texts)),
            ("note", "long-text",
             f"texts of over {LONGEST_TEXT:,} characters: are they single documents?",
             (len(text) > LONGEST_TEXT for text in texts)),
        ]  # fmt: skip
        for level, code, message, flags in kinds:
            if found := [row for row, flag in zip(rows, flags, strict=True) if flag]:
                yield _finding(level, code, f"{len(found):,} {message}", found, where)


def _repeats(splits: Splits) -> Iterator[Finding]:
    train = splits.train
    rows_of: dict[str, list[int]] = defaultdict(list)
    labels_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row, text, label in zip(train.rows, train.texts, train.labels or [], strict=True):
        if key := text.strip():
            rows_of[key].append(row)
            labels_of[key].add(tuple(sorted(flat([label]))))
    repeated = sorted(row for rows in rows_of.values() for row in rows[1:])
    if repeated:
        yield _finding(
            "note",
            "duplicate-text",
            f"{len(repeated):,} training texts repeat an earlier one; they count double",
            repeated,
        )
    conflicts = [text for text, labels in labels_of.items() if len(labels) > 1]
    if conflicts:
        first = " and ".join(", ".join(names) for names in sorted(labels_of[conflicts[0]])[:2])
        yield _finding(
            "warning",
            "conflicting-labels",
            f"{len(conflicts):,} training texts occur with different labels (such as {first}): no "
            "model can learn both; decide for one, or use several labels",
            sorted(row for text in conflicts for row in rows_of[text]),
            count=len(conflicts),
        )


def _leaks(splits: Splits) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, examples in splits.items():
        leaked: dict[str, list[int]] = defaultdict(list)
        for row, text in zip(examples.rows, examples.texts, strict=True):
            key = text.strip()
            other = seen.setdefault(key, name)
            if other != name and key:
                leaked[other].append(row)
        for other, rows in leaked.items():
            most = other == "train" and len(rows) > len(examples) / 2
            yield _finding(
                "error" if most else "warning",
                "leak",
                f"{len(rows):,} of {len(examples):,} {name} texts are also in {other}: figures on "
                f"{name} will look too good; remove them from one side",
                rows,
                f" in {examples.source}",
            )


def _classes(splits: Splits, space: LabelSpace) -> Iterator[Finding]:
    for name, examples in splits.items()[1:]:
        labels = examples.labels or []
        if unseen := space.unseen(labels):
            known = any(name in space.index for name in flat(labels))
            rows = [
                row
                for row, label in zip(examples.rows, labels, strict=True)
                if any(name in unseen for name in flat([label]))
            ]
            yield _finding(
                "warning" if known else "error",
                "unseen-label",
                f"{sum(unseen.values()):,} {name} labels never occur in training "
                f"({_some(list(unseen))}): they cannot be predicted and count as errors",
                rows,
                f" in {examples.source}",
                count=sum(unseen.values()),
            )
        absent = len(space) - len(set(flat(labels)) & set(space.names))
        if absent:
            yield Finding(
                "note",
                f"class-not-in-{name}",
                f"{absent} of {len(space)} classes have no {name} text, so nothing is known of "
                "how well they are recognised",
                absent,
                [],
            )
    rare = {name for name, count in zip(space.names, space.counts, strict=True) if count <= 2}
    if rare:
        pairs = zip(splits.train.rows, splits.train.labels or [], strict=True)
        rows = [row for row, label in pairs if not rare.isdisjoint(flat([label]))]
        yield _finding(
            "warning",
            "rare-class",
            f"{len(rare)} of {len(space)} classes have only 1 or 2 training texts "
            f"({_some(sorted(rare))}): add examples, or merge classes",
            rows,
            count=len(rare),
        )
    spelt: dict[str, list[str]] = defaultdict(list)
    for name in space.names:
        spelt[" ".join(name.split()).casefold()].append(name)
    if alike := [names for names in spelt.values() if len(names) > 1]:
        yield Finding(
            "note",
            "similar-labels",
            f"{len(alike)} classes are spelt in several ways "
            f"({_some([' and '.join(names) for names in alike])}), and learnt as different ones",
            len(alike),
            [],
        )
    if space.multi_label:
        pairs = zip(splits.train.rows, splits.train.labels or [], strict=True)
        if none := [row for row, label in pairs if not label]:
            yield _finding(
                "note",
                "no-label",
                f"{len(none):,} of {len(splits.train):,} training texts have no label, and are "
                "learnt as having none of the classes",
                none,
            )
    ratio = space.counts[0] / space.counts[-1]
    share = 0.0 if space.multi_label else space.counts[0] / len(splits.train)
    if ratio >= _IMBALANCE or share >= _MAJORITY:
        advice = (
            f"always predicting {space.names[0]} would have an accuracy of {share:.0%}: go by "
            "balanced accuracy and macro-F1"
            if share >= _MAJORITY
            else "a loss for long tails, such as logit-adjusted, helps the rare classes"
        )
        yield Finding(
            "note",
            "imbalance",
            f"{space.names[0]} has {space.counts[0]:,} training texts and {space.names[-1]} "
            f"{space.counts[-1]:,}; {advice}",
            round(ratio),
            [],
        )


def _joined(train: Examples, space: LabelSpace) -> Iterator[Finding]:
    """Single labels such as "a;b" where "a" and "b" occur in others too: several in one string."""
    if space.multi_label:
        return
    for separator in _SEPARATORS:
        parts = {name: [p.strip() for p in name.split(separator)] for name in space.names}
        used = Counter(part for found in parts.values() for part in set(found))
        joined = {
            name
            for name, found in parts.items()
            if len(found) > 1 and all(part and used[part] > 1 for part in found)
        }
        if joined:
            labels = train.labels or []
            rows = [row for row, name in zip(train.rows, labels, strict=True) if name in joined]
            yield _finding(
                "note",
                "joined-labels",
                f"{len(joined)} of {len(space)} classes look like several labels in one string "
                f"({_some(sorted(joined))}): if a text can have several, train with "
                f"--label-separator '{separator}'",
                rows,
                count=len(joined),
            )


def _lengths(
    named: Sequence[tuple[str, Examples]], tokenizer: Any, max_length: int | None
) -> tuple[dict[str, Any], list[Finding]]:
    all_texts = [text for _, e in named for text in e.texts]
    order = np.random.default_rng(0).permutation(len(all_texts)).tolist()
    sizes = np.cumsum([min(len(all_texts[i]), LONGEST_TEXT) for i in order])
    chosen = sorted(order[: int(np.searchsorted(sizes, _LENGTH_SAMPLE)) + 1])
    places = [(e.source, row) for _, e in named for row in e.rows]
    places, texts = [places[i] for i in chosen], [all_texts[i] for i in chosen]
    measured = measure(texts, tokenizer)
    lengths = [length for length, _ in measured]
    findings = []
    if max_length is not None:
        sample = "" if len(texts) == len(all_texts) else f" (of a sample of {len(texts):,} texts)"
        findings += _truncation(lengths, places, max_length, sample)
    findings += _scripts(texts, [share for _, share in measured], places, tokenizer)
    return summarise(lengths, max_length), findings


def _truncation(
    lengths: list[int], places: list[tuple[str, int]], max_length: int, sample: str
) -> Iterator[Finding]:
    cut = [i for i, length in enumerate(lengths) if length > max_length]
    if not cut:
        message = f"at {max_length:,} tokens no text is cut{sample}"
        yield Finding("note", "truncation", message, 0, [])
    for source, where, found in _by_file(cut, places):
        of_file = [n for n, (s, _) in zip(lengths, places, strict=True) if s == source]
        summary = summarise(of_file, max_length)
        lost = summary["truncated_tokens"]
        message = (
            f"at {max_length:,} tokens {summary['truncated_documents']:.1%} of the texts{where} "
            f"are cut, and {lost:.1%} of all tokens are lost{sample}"
        )
        if lost > _TRUNCATION_WARNING:
            message += "; a larger --max-length keeps more"
        level: Level = "warning" if lost > _TRUNCATION_WARNING else "note"
        rows = _rows(found, places)
        yield Finding(level, "truncation", message, len(rows), rows[:_ROWS_SHOWN])


def _scripts(
    texts: list[str], shares: list[float], places: list[tuple[str, int]], tokenizer: Any
) -> Iterator[Finding]:
    for _, where, found in _by_file(unknown_texts(texts, shares), places):
        lacking = sum(shares[i] for i in found) / len(found)
        yield _finding(
            "warning",
            "unknown-script",
            f"{len(found):,} texts are in a script that the tokenizer does not know: "
            f"{lacking:.0%} of their letters are not in its vocabulary; choose a multilingual "
            f"model, such as --model {MULTILINGUAL}",
            _rows(found, places),
            where,
        )
    if spelled := spelled_texts(texts, tokenizer):
        for _, where, found in _by_file(spelled.texts, places):
            yield _finding(
                "warning",
                "spelled-script",
                f"{len(found):,} texts are read letter by letter: a word in "
                f"{spelled.script} script becomes {spelled.tokens:.1f} tokens of "
                f"{spelled.letters:.1f} letters, so the tokenizer does not know it; choose a "
                f"multilingual model, such as --model {MULTILINGUAL}",
                _rows(found, places),
                where,
            )


def _by_file(
    found: Iterable[int], places: list[tuple[str, int]]
) -> Iterator[tuple[str, str, list[int]]]:
    """A file, a suffix for messages where there are several, and which of the found are in it."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in found:
        groups[places[i][0]].append(i)
    several = len({source for source, _ in places}) > 1
    for source, members in groups.items():
        yield source, f" in {source}" if several else "", members


def _rows(found: Iterable[int], places: list[tuple[str, int]]) -> list[int]:
    return sorted(places[i][1] for i in found)


def _finding(
    level: Level,
    code: str,
    message: str,
    rows: list[int],
    where: str = "",
    count: int | None = None,
) -> Finding:
    rows_shown = ", ".join(map(str, rows[:3])) + (", …" if len(rows) > 3 else "")
    message = f"{message} (rows {rows_shown}{where})"
    return Finding(level, code, message, len(rows) if count is None else count, rows[:_ROWS_SHOWN])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
