"""Names beside circles: readable, inside, and near what they name."""

from __future__ import annotations

import math
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.report.label_placement import Box, Circle, place_labels, text_width

WIDTH, HEIGHT = 560.0, 380.0

circles = st.lists(
    st.builds(
        Circle,
        x=st.floats(0, WIDTH),
        y=st.floats(0, HEIGHT),
        radius=st.floats(2, 22),
    ),
    min_size=1,
    max_size=9,
)


def touches(circle: Circle, box: Box) -> bool:
    """Whether a box reaches into the circle, by the box's nearest point to the centre."""
    x = min(max(circle.x, box.x), box.x + box.width)
    y = min(max(circle.y, box.y), box.y + box.height)
    return math.hypot(circle.x - x, circle.y - y) < circle.radius - 1e-6


@settings(max_examples=60, deadline=None)
@given(found=circles, data=st.data())
def test_no_name_covers_anything_or_leaves_the_drawing(found, data):
    widths = [data.draw(st.floats(10, 150)) for _ in found]
    labels = place_labels(found, widths, width=WIDTH, height=HEIGHT)
    assert [label.box.width for label in labels] == widths
    for a, b in combinations(labels, 2):
        assert a.box.overlap(b.box) < 1e-6
    for label in labels:
        box = label.box
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= WIDTH + 1e-6
        assert box.y + box.height <= HEIGHT + 1e-6
        assert not any(touches(circle, box) for circle in found)


def test_a_lone_name_stands_to_the_right_and_at_the_edge_to_the_left():
    (label,) = place_labels([Circle(100, 100, 10)], [50], width=400, height=200)
    assert (label.box.x, label.box.y, label.led) == (113, 93, False)
    (label,) = place_labels([Circle(390, 100, 10)], [50], width=400, height=200)
    assert label.box.x + label.box.width == 377


def test_a_name_goes_round_a_bar_but_not_far_away_for_it():
    bar = Box(110, 99, 80, 2)
    (label,) = place_labels([Circle(100, 100, 10)], [50], width=400, height=200, obstacles=[bar])
    assert label.box.overlap(bar) == 0
    assert not label.led
    wall = [Box(0, y, 400, 1) for y in range(0, 200, 12)]
    (label,) = place_labels([Circle(100, 100, 10)], [50], width=400, height=200, obstacles=wall)
    assert abs(label.box.x - 113) < 20


def test_a_full_drawing_still_has_every_name():
    crowd = [Circle(30, 20, 15)] * 12
    labels = place_labels(crowd, [55.0] * 12, width=60, height=40)
    assert len(labels) == 12


def test_width_of_a_name_is_near_that_of_arial():
    """By Helvetica's advance widths: l 222, o, n, g and e 556, f 278, r 333, m 833."""
    em = 222 + 556 + 556 + 556 + 278 + 556 + 333 + 833 + 556 + 333
    assert 1.0 <= text_width("longformer", 12) / (12 * em / 1000) <= 1.1
