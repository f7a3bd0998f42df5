"""The study of stretched positions: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from longarc.studies.positions import study
from longarc.studies.shared.masked_tokens import BLOCKS, MaskedTexts, accuracy, masked_texts
from longarc.studies.study import write_study

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    result = study.positions(quick=True)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
    return result


def test_what_holds_by_construction(result):
    first, *_, last = result.findings
    assert (first.measured, first.holds) == (0.0, True)
    assert last.holds
    rows = {row["positions"]: row for row in result.table}
    assert list(rows) == [
        "windows", "hierarchical, α = 0.2", "hierarchical, α = 0.4", "from position 2", "copy",
        "interpolate",
    ]  # fmt: skip
    assert rows["copy"]["code, cosine"] == pytest.approx(1.0, abs=1e-5)
    as_published = rows["hierarchical, α = 0.4"]["code, cosine"]
    assert as_published < 0.9
    assert as_published < rows["from position 2"]["code, cosine"] < 1
    for row in rows.values():
        blocks = [row[f"block {i + 1}"] for i in range(BLOCKS)]
        assert row["straight"] == pytest.approx(sum(blocks) / BLOCKS, abs=1e-6)
        assert all(0 <= share <= 1 for share in blocks)


def test_the_folder(result, tmp_path):
    page = write_study(result, tmp_path / "positions").read_text(encoding="utf-8")
    assert "of 8 claims hold" in page
    names = sorted(p.name for p in (tmp_path / "positions").glob("*.svg"))
    assert names == ["alphas.svg", "likeness.svg", "stages.svg"]
    for figure in result.figures:
        for svg in (figure.panel.wide, figure.panel.narrow):
            assert ElementTree.fromstring(str(svg)).tag.endswith("svg")
    assert "published, RoBERTa-base" in str(result.figures[0].panel.wide)


def way(name, alpha, codes, straight, trained=None):
    """Shares the same in every block; the texts differ a little, so that there is an error."""
    about = torch.tensor([[-0.01], [0.0], [0.01]])

    def shares(value):
        return None if value is None else (value + about).expand(3, BLOCKS)

    return study.Way(name, alpha, codes, shares(straight), shares(trained))


def verdicts(
    straight=0.3, trained=0.5, best=0.3, copied=0.3, second=0.3, codes=(0.9, 0.5), unchanged=0.0
):
    ways = [
        way("hierarchical", 0.2, codes[0], best),
        way("hierarchical", 0.4, codes[1], straight, trained),
        way(study.SECOND, None, 0.95, second, 0.5),
        way("copy", None, 1.0, copied, 0.5),
        way("interpolate", None, 0.8, 0.2),
    ]
    windows = torch.tensor([[0.4], [0.5], [0.6]]).expand(3, BLOCKS)
    found = study._findings(ways, windows, windows, unchanged)
    return [finding.holds for finding in found]


def test_verdicts_come_from_the_numbers():
    assert verdicts() == [True] * 8
    for change, place in (
        ({"unchanged": 1e-7}, 0),
        ({"straight": 0.5, "best": 0.5}, 1),  # nothing lost
        ({"trained": 0.2}, 2),
        ({"best": 0.35}, 3),
        ({"copied": 0.4}, 4),
        ({"second": 0.4}, 6),
        ({"codes": (0.5, 0.9)}, 7),
    ):
        assert [i for i, holds in enumerate(verdicts(**change)) if not holds] == [place], change
    assert not verdicts(straight=0.1, best=0.1, copied=0.1)[5]


def test_texts_and_windows_have_the_same_masks():
    texts = masked_texts(16, 4, seed=2)
    assert texts.tokens.shape == texts.masked.shape == (4, BLOCKS, 14)
    assert (texts.masked.sum(2) == 2).all()  # 15 % of 14
    ids, masked = texts.inputs()
    assert ids.shape == (4, BLOCKS * 14 + 2)
    first, last, mask = texts.special
    assert (ids[:, 0] == first).all()
    assert (ids[:, -1] == last).all()
    assert (ids[masked] == mask).all()
    assert torch.equal(
        ids[:, 1:-1][~masked[:, 1:-1]], texts.tokens.flatten(1)[~texts.masked.flatten(1)]
    )
    windows, among = texts.windows().inputs()
    assert windows.shape == (4 * BLOCKS, 16)
    assert torch.equal(windows[:, 1:-1].reshape(4, -1), ids[:, 1:-1])
    assert torch.equal(among[:, 1:-1].reshape(4, -1), masked[:, 1:-1])
    assert torch.equal(masked_texts(16, 4, seed=2).tokens, texts.tokens)


def test_accuracy_counts_the_masked_tokens():
    """A model that always says token 7."""

    class Always(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def bert(self, input_ids):
            states = torch.zeros(*input_ids.shape, 1)
            return type("Output", (), {"last_hidden_state": states})

        def cls(self, states):
            return torch.nn.functional.one_hot(torch.full((len(states),), 7), 9).float()

    tokens = torch.tensor([[[7, 7, 1], [7, 2, 1]], [[3, 3, 7], [7, 7, 7]]])
    masked = torch.tensor([[[1, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 1, 1]]]).bool()
    found = accuracy(Always(), MaskedTexts(tokens, masked, (4, 5, 6)))  # pyright: ignore
    assert found.tolist() == [[0.5, 0.0], [1.0, 1.0]]
