"""Names on the picture: where they fit, whatever is below them; and fonts that have their letters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from densevl.drawing import Captions, draw_key, draw_overlay, palette
from densevl.drawing.text import line

HEIGHT, WIDTH = 240, 320


def changed(labels: np.ndarray, names: list[str], alpha: float = 0.5, image: np.ndarray | None = None) -> np.ndarray:
    """Where names were drawn, bool (H, W)."""
    image = np.full((*labels.shape, 3), 128, np.uint8) if image is None else image
    plain, named = (draw_overlay(image, labels, names, alpha=alpha, legend=False, captions=on) for on in (False, True))
    return (plain != named).any(axis=-1)


def blob(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Class 0 in boxes (top, left, bottom, right), nothing elsewhere."""
    labels = np.full((HEIGHT, WIDTH), -1, np.int16)
    for top, left, bottom, right in boxes:
        labels[top:bottom, left:right] = 0
    return labels


SHAPES = {
    "a box": blob((40, 60, 200, 260)),
    "at the border": blob((0, 0, 60, 320)),
    "two parts": blob((10, 10, 50, 90), (80, 100, 230, 310)),
    "an L": blob((20, 20, 220, 60), (180, 20, 220, 300)),
    "a ring": blob((20, 20, 220, 300)),
    "a diamond": np.where(np.add.outer(abs(np.arange(HEIGHT) - 120), abs(np.arange(WIDTH) - 160)) < 90, 0, -1),
}
SHAPES["a ring"][70:170, 80:240] = -1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_name_stands_inside_the_largest_part_of_its_class_and_nowhere_else(shape: str) -> None:
    labels = SHAPES[shape].astype(np.int16)
    drawn = changed(labels, ["dog"])
    parts, count = ndimage.label(labels == 0)
    largest = parts == 1 + np.argmax(ndimage.sum_labels(labels == 0, parts, range(1, count + 1)))
    assert drawn.any()
    assert not (drawn & ~largest).any()
    rows, cols = np.nonzero(drawn)
    assert largest[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].all()  # the whole line of text


def test_a_name_stands_in_the_middle_of_a_box() -> None:
    rows, cols = np.nonzero(changed(SHAPES["a box"], ["dog"]))
    assert abs((rows.min() + rows.max()) / 2 - 119.5) <= 5
    assert abs((cols.min() + cols.max()) / 2 - 159.5) <= 3


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (blob((100, 100, 108, 300)), "dog"),
        (blob((0, 100, 240, 112)), "dog"),
        (blob((40, 60, 100, 120)), "a name that is far too long"),
        (blob((40, 60, 200, 260)), " "),
        (blob((40, 60, 200, 260)), "\U00012000"),
    ],
    ids=["too flat", "too narrow", "too long", "no name", "no font has it"],
)
def test_a_name_that_does_not_fit_is_left_to_the_legend(labels: np.ndarray, name: str) -> None:
    assert not changed(labels, [name]).any()


@pytest.mark.parametrize("colour", range(24))
def test_names_are_legible_on_every_colour(colour: int) -> None:
    labels = np.full((HEIGHT, WIDTH), colour, np.int16)
    names = [f"name {number}" for number in range(24)]
    drawn = draw_overlay(np.zeros((HEIGHT, WIDTH, 3), np.uint8), labels, names, alpha=1, legend=False)
    light = drawn.astype(float) @ (0.2126, 0.7152, 0.0722)
    where = (drawn != palette(24)[colour]).any(axis=-1)
    assert (light[where] > 250).sum() > 30  # white letters ...
    edge = ndimage.binary_dilation(light > 250, iterations=2) & (light < 60)
    assert edge.sum() > 60  # ... in a dark edge


def test_the_same_labels_give_the_same_picture_of_any_size() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (9, 900), (700, 1100)):
        labels = rng.integers(-1, 3, (height // 50 + 1, width // 50 + 1)).repeat(50, 0).repeat(50, 1)
        labels = labels[:height, :width].astype(np.int16)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        one, two = (draw_overlay(image, labels, ["a", "b", "c"]) for _ in range(2))
        assert (one == two).all()


def test_over_frames_a_name_stays_where_it_is_while_it_fits_there() -> None:
    place, names = Captions(), ["dog"]
    (first,) = place(blob((20, 20, 160, 220)), names)
    (second,) = place(blob((30, 30, 200, 300)), names)
    assert (first.y, first.x) == (second.y, second.x)
    (third,) = place(blob((150, 200, 235, 315)), names)
    assert (third.y, third.x) != (first.y, first.x)
    assert place(blob(), names) == []
    assert Captions()(blob((30, 30, 200, 300)), names) != [second]


@pytest.mark.parametrize(
    ("name", "text", "whole"),
    [
        ("dog", "dog", True),
        ("line\nbreak\ttab \ud800", "line break tab", True),
        ("car \U00012000", "car ?", False),
        ("\U00012000\U00012001", "", False),
        ("a\u200db", "a\u200db", True),
        ("", "", True),
    ],
)
def test_letters_that_no_font_has_are_told(name: str, text: str, whole: bool) -> None:
    found = line(name, 20)
    assert (found.text, found.whole) == (text, whole)


def test_a_class_of_whose_name_no_letter_can_be_drawn_goes_by_its_number() -> None:
    unknown, numbered = (
        draw_key(["dog", name], 100, 400) for name in ("\U00012000\U00012001", "class 1 (no font for its name)")
    )
    np.testing.assert_array_equal(unknown, numbered)
