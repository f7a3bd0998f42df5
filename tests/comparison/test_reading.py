"""Room for a process more, and the bar of a timing whose candidates are not equally fast."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from longarc.comparison.memory import available_mib
from longarc.comparison.reading import Needs, _Turns
from longarc.errors import RunError
from longarc.training.progress import Reporter


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_what_is_free_is_less_than_there_is():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < available_mib() < total


def test_room_is_asked_of_what_is_known():
    assert Needs().missing(0.0) == ""
    assert Needs(memory=1.0, gpu=2e4).missing(None) == ""
    assert Needs(gpu=2e4).missing(3e4) == ""
    assert Needs(gpu=2e4).missing(1.5e4) == (
        "15,000 MiB of the GPU's memory are left, and one may need 20,000"
    )


class Clockwork(_Turns):
    """Turns of known length, of which one run fails in its second; no process is started."""

    def _turn(self, name: str) -> dict[str, float]:
        if name == "fails" and self.seconds[name]:
            raise RunError("gone")
        return {"seconds": {"slow": 9.0, "fast": 1.0, "fails": 2.0}[name], "peak_mib": 5.0}


class Noting(Reporter):
    """What a task is told, beside its bar."""

    def __init__(self):
        super().__init__(None)
        self.told: list[tuple[float, str]] = []
        self.total: float | None = None

    @contextmanager
    def task(self, name, total=None):
        self.total = total

        def advance(units, remark):
            self.told.append((units, remark))

        yield advance


def test_the_bar_counts_a_turn_by_its_length():
    """So that what is left can be told: the slow one's turn is nine of twelve parts of a round."""
    turns = Clockwork(dict.fromkeys(("slow", "fast", "fails"), Path()), Path(), {})
    turns.usual = {"slow": 9.0, "fast": 1.0, "fails": 2.0}
    bar = Noting()
    turns.measure(3, bar)
    assert bar.total == pytest.approx(9)
    assert sum(units for units, _ in bar.told) == pytest.approx(9)  # with what failed left undone
    by_name = {remark.split(", ")[1]: units for units, remark in bar.told[:3]}
    assert by_name == pytest.approx({"slow": 2.25, "fast": 0.25, "fails": 0.5})
    assert [remark for _, remark in bar.told[:3]] == [
        "round 1 of 3, fast", "round 1 of 3, fails", "round 1 of 3, slow"
    ]  # fmt: skip
    assert turns.seconds == {"slow": [9.0] * 3, "fast": [1.0] * 3, "fails": [2.0]}
    assert turns.left == ["slow", "fast"]
    assert turns.found["fails"] == {"why": "gone"}
    assert turns.found["slow"] == {"peak_mib": 5.0}
