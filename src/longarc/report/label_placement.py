"""Names beside circles, so that none lies on another name, on a circle or outside the drawing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 3.0
"""Pixels between a circle and its name."""


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, from its left upper corner; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover.

        >>> Box(0, 0, 10, 10).overlap(Box(8, 5, 10, 10))
        10.0
        """
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return float(max(across, 0) * max(down, 0))


@dataclass(frozen=True)
class Circle:
    """A circle of pixels."""

    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        """The square around it."""
        return Box(self.x - self.radius, self.y - self.radius, 2 * self.radius, 2 * self.radius)


@dataclass(frozen=True)
class Label:
    """Where a name lies, and whether it is so far off that a line has to lead to it."""

    box: Box
    led: bool


def text_width(text: str, size: float = 12.0, *, bold: bool = False) -> float:
    """About how many pixels a name is wide in Arial, a little more rather than less.

    >>> text_width("mm"), text_width("ll"), text_width("文"), text_width("")
    (21.2, 7.5, 12.5, 0.0)
    """
    ems = sum(_ems(character) for character in text)
    return round(1.04 * size * ems * (1.08 if bold else 1.0), 1)


def _ems(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in "mwMW@%":
        return 0.85
    if character in "iljI|.,:;' ()[]ftr-":
        return 0.3 if character in "iljI|.,:;' " else 0.34
    return 0.68 if character.isupper() else 0.56


def place_labels(
    circles: Sequence[Circle],
    widths: Sequence[float],
    *,
    width: float,
    height: float,
    line: float = 14.0,
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """A place for the name of each circle.

    Names are placed one after the other, those with the least room first, each at the nearest place
    in a fixed order of sides where it covers nothing: no circle, no name, no obstacle, and no edge.
    Where all sides are taken, it moves away step by step, and a line leads to it. Only if the
    drawing is full does it go where it covers least.

    Args:
        circles: in pixels of a drawing of ``width`` × ``height``.
        widths: pixels of each name.
        line: pixels of a line of text.
        obstacles: what should stay uncovered besides; a name lies on one rather than far away.
    """
    taken = [circle.box for circle in circles]

    def crowd(i: int) -> float:
        own = circles[i]
        near = Box(own.x - 90, own.y - 40, 180, 80)
        return -sum(near.overlap(box) for j, box in enumerate(taken) if j != i)

    placed: dict[int, Label] = {}
    for i in sorted(range(len(circles)), key=crowd):
        best: tuple[tuple[float, float], Label] | None = None
        for label in _places(circles[i], widths[i], line, width, height):
            box = label.box
            hard = sum(box.overlap(other) for other in taken)
            hard += sum(box.overlap(other.box) for other in placed.values())
            soft = sum(box.overlap(other) for other in obstacles)
            # A name that needs a line is worth avoiding one bar, and the less, the farther it is.
            away = 40 + 0.3 * _distance(box, circles[i]) ** 0.5 if label.led else 0.0
            cost = (round(hard, 6), round(soft + away, 6))
            if best is None or cost < best[0]:
                best = (cost, label)
            if cost == (0, 0):
                break
        if best is not None:
            placed[i] = best[1]
    return [placed[i] for i in range(len(circles))]


def _places(circle: Circle, across: float, line: float, width: float, height: float) -> list[Label]:
    """Boxes inside the drawing, the preferred ones first."""
    found = []
    reach = circle.radius + GAP
    for far in (0.0, 10.0, 22.0, 36.0, 54.0, 76.0, 100.0, 130.0, 165.0, 205.0, 250.0):
        out = reach + far
        slant = 0.7071 * out
        for x, y in (
            (circle.x + out, circle.y - line / 2),
            (circle.x - out - across, circle.y - line / 2),
            (circle.x - across / 2, circle.y - out - line),
            (circle.x - across / 2, circle.y + out),
            (circle.x + slant, circle.y - slant - line),
            (circle.x + slant, circle.y + slant),
            (circle.x - slant - across, circle.y - slant - line),
            (circle.x - slant - across, circle.y + slant),
        ):
            if 0 <= x <= width - across and 0 <= y <= height - line:
                found.append(Label(Box(x, y, across, line), led=far > 10))
    rows = int(height // line)
    grid = [
        Label(Box(x, row * line, across, line), led=True)
        for row in range(rows)
        for x in range(0, max(1, int(width - across) + 1), 12)
    ]
    grid.sort(key=lambda label: _distance(label.box, circle))
    return found + grid


def _distance(box: Box, circle: Circle) -> float:
    across = box.x + box.width / 2 - circle.x
    down = box.y + box.height / 2 - circle.y
    return across * across + down * down
