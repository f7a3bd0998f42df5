"""The imbalance study: nothing is left out, its claims hold, and they could fail."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from longarc.objectives.losses.registry import LOSSES, LossInfo
from longarc.studies.imbalance import identities, study
from longarc.studies.imbalance.rare_class import GRID, OTHERS, P, Y

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result():
    return study.imbalance()


def test_every_claim_holds(result):
    assert len(result.findings) >= 18
    assert [f.claim for f in result.findings if not f.holds] == []
    assert all(f.how and f.claim.endswith(".") for f in result.findings)


def test_every_loss_is_in_the_table_for_each_kind_of_labels(result):
    expected = {
        (name, labels)
        for name, info in LOSSES.items()
        for labels, fits in (("one", info.single_label), ("several", info.multi_label))
        if fits
    }
    assert {(row["loss"], row["labels"]) for row in result.table} == expected
    assert len(result.table) == len(expected)


def test_every_loss_is_drawn_once(result):
    drawn = [name for family in study.FAMILIES for name in family.losses]
    assert sorted([*drawn, "cross-entropy"]) == sorted(LOSSES)
    assert [figure.name for figure in result.figures] == [f.name for f in study.FAMILIES]
    for figure, family in zip(result.figures, study.FAMILIES, strict=True):
        for svg in (figure.panel.wide, figure.panel.narrow):
            root = ElementTree.fromstring(str(svg))
            said = [e.text for e in root.iter() if e.tag.endswith("}text")]
            assert {*family.losses, "cross-entropy", "0.2", "0.8"} <= set(said)


def test_the_table_has_the_weights_of_the_formulas(result):
    """Two rows worked out by hand: focal (γ = 2) and logit-adjusted (π = 0.9, 0.1)."""
    rows = {(row["loss"], row["labels"]): row for row in result.table}
    focal = rows["focal", "one"]
    assert focal["y=1, p=0.1"] == pytest.approx(0.81 * (1 + 2 * 0.1 * 2.302585 / 0.9), rel=1e-6)
    assert focal["y=0, p=0.1"] == pytest.approx(focal["y=1, p=0.9"])
    # Odds of 1 become 1/9 with the prior: p 0.1, so (1 − 0.1)/(1 − 0.5) and 0.1/0.5.
    adjusted = rows["logit-adjusted", "one"]
    assert adjusted["y=1, p=0.5"] == pytest.approx(1.8)
    assert adjusted["y=0, p=0.5"] == pytest.approx(0.2)


def test_the_batch_is_one_in_ten():
    assert float(Y.mean()) == pytest.approx(0.1)
    assert len(P) == len(GRID) * (1 + OTHERS)
    assert torch.equal(P[Y == 1], GRID)


def test_a_new_loss_appears_by_itself(monkeypatch):
    newcomer = LossInfo(LOSSES["focal"].path, "new", single_label=True, multi_label=False)
    monkeypatch.setitem(LOSSES, "newcomer", newcomer)
    curves = study.all_curves()
    (curve,) = (c for c in curves if c.loss == "newcomer")
    focal = next(c for c in curves if c.loss == "focal" and not c.multi_label)
    assert curve.present == pytest.approx(focal.present)
    last = study.figures(curves)[-1]
    assert last.name == "others-1"
    assert "newcomer" in str(last.panel.wide)


def test_claims_can_fail():
    off = GRID + 1e-6
    assert not identities.equal("x", "y", identities._against("soft-accuracy", off, 1 - GRID)).holds
    assert identities.equal("x", "y", identities._against("soft-accuracy", GRID, 1 - GRID)).holds


def test_a_wrong_loss_is_found_out(monkeypatch):
    """With soft accuracy under the name of focal loss, the claims about focal loss do not hold."""
    from longarc.objectives.losses.focal import FocalLoss
    from longarc.objectives.losses.soft_accuracy import SoftAccuracyLoss

    def wrong(self, logits, target):
        return SoftAccuracyLoss.per_example(self, logits, target)

    monkeypatch.setattr(FocalLoss, "per_example", wrong)
    failed = [f.claim for f in identities.identities() if not f.holds]
    assert failed
    assert all(claim.startswith("Focal loss") for claim in failed)


def test_the_guide_has_every_claim(result):
    guide = " ".join((ROOT / "docs" / "studies.md").read_text(encoding="utf-8").split())
    assert [f.claim for f in result.findings if f"- {f.claim}" not in guide] == []
