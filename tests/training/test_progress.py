from __future__ import annotations

import io
from contextlib import suppress

import pytest
from rich.console import Console

from longarc.training import progress
from longarc.training.progress import Reporter, clock


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_where_nobody_watches_a_line_every_fifteen_seconds(now):
    out = console(terminal=False)
    with Reporter(out).task("fine-tuning", total=100) as advance:
        for done in range(1, 41):
            now[0] = done
            advance(1, "loss 0.5")
    assert out.file.getvalue().splitlines() == [
        "fine-tuning 15/100, about 1 min 25 s left, loss 0.5",
        "fine-tuning 30/100, about 1 min 10 s left, loss 0.5",
    ]


def test_a_terminal_shows_a_bar():
    out = console(terminal=True)
    with Reporter(out).task("reading", total=2) as advance:
        advance(1, "half")
        advance.bar.refresh()
    assert "reading" in out.file.getvalue()
    assert "1/2" in out.file.getvalue()


def test_without_a_total_there_is_a_count_and_no_estimate(now):
    out = console(terminal=False)
    with Reporter(out).task("reading") as advance:
        now[0] = 20
        advance(7)
    assert out.file.getvalue() == "reading 7\n"


def test_silence(capsys):
    reporter = Reporter(None)
    reporter.say("hello")
    with reporter.task("reading", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""


def test_phases_add_up_even_when_one_fails(now):
    reporter = Reporter(None)
    with reporter.timed("evaluation"):
        now[0] = 2.0
    with suppress(ValueError), reporter.timed("evaluation"):
        now[0] = 5.0
        raise ValueError
    assert reporter.seconds == {"evaluation": 5.0}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (90000, "25 h 0 min")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text
