"""The contract: packed masks come back as they went in, whatever form they had, or one line says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from densevl.proposals import ProposalError, Proposals, packing

SIZES = [(1, 1), (3, 5), (8, 8), (13, 37), (37, 13), (1, 70)]


def _drawn(size: tuple[int, int], count: int = 6, seed: int = 0) -> np.ndarray:
    """Random masks, among them an empty one, a full one, and the last pixel alone."""
    masks = np.random.default_rng(seed).random((count, *size)) > 0.6
    masks[0], masks[1], masks[2] = False, True, False
    masks[2, -1, -1] = True
    return masks


@pytest.mark.parametrize("size", SIZES)
def test_masks_come_back_whatever_the_bits_left_over(size) -> None:
    masks = _drawn(size)
    found = Proposals.from_masks(masks)
    assert found.packed.shape == (6, -(-size[0] * size[1] // 8))
    np.testing.assert_array_equal(found.masks(), masks)
    np.testing.assert_array_equal(found.mask(3), masks[3])
    np.testing.assert_array_equal(found.areas, masks.sum((1, 2)))
    for mask, box in zip(masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else [0] * 4
        np.testing.assert_array_equal(box, tight)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compressed", [True, False])
def test_rle_is_coco_s_and_comes_back(size, compressed: bool) -> None:
    masks = _drawn(size)
    entries = Proposals.from_masks(masks).to_rle(compressed=compressed)
    np.testing.assert_array_equal(Proposals.from_rle(entries).masks(), masks)
    theirs = entries if compressed else [coco.frPyObjects(entry, *size) for entry in entries]
    for mask, entry in zip(masks, theirs, strict=True):
        np.testing.assert_array_equal(coco.decode(entry), mask)


def test_a_string_of_long_runs_is_read_as_pycocotools_reads_it() -> None:
    mask = np.zeros((700, 900), np.uint8)
    mask[100:650, 3:890] = 1
    mask[200:220, 50:700] = 0
    entry = coco.encode(np.asfortranarray(mask))
    assert isinstance(entry["counts"], bytes)
    np.testing.assert_array_equal(Proposals.from_rle([entry], (700, 900)).mask(0), mask)


@pytest.mark.parametrize(
    ("boxes", "areas", "cut"),
    [
        ([[0, 0, 4, 3]], [12], [[0, 0, 4, 3]]),
        ([[0.4, 0.4, 4.4, 3.4]], [12], [[0.4, 0.4, 4.4, 3.4]]),
        ([[0.6, 0.6, 4.6, 3.6]], [12], [[0.6, 0.6, 4.6, 3.6]]),
        ([[-5, -5, 3.4, 3.6]], [12], [[0, 0, 3.4, 3.6]]),
        ([[5, 4, 500, 400]], [5 * 4], [[5, 4, 10, 8]]),
        ([[3.6, 2.1, 3.9, 6]], [4], [[3.6, 2.1, 3.9, 6]]),
        ([[9.9, 7.9, 10, 8]], [1], [[9.9, 7.9, 10, 8]]),
        ([], [], np.zeros((0, 4))),
        ([1, 1, 2, 2], [1], [[1, 1, 2, 2]]),
    ],
    ids=["whole", "float low", "float high", "over the corner", "over the end", "thin",
         "in the last pixel", "none", "one alone"],
)  # fmt: skip
def test_boxes_take_the_pixels_whose_centre_they_hold(boxes, areas, cut) -> None:
    found = Proposals.from_boxes(boxes, (8, 10))
    assert found.areas.tolist() == areas
    np.testing.assert_allclose(found.boxes, cut, rtol=1e-6)


MASK = np.zeros((4, 5), bool)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Proposals.from_masks([MASK, MASK.T]), r"mask 1 is \(5, 4\), the image \(4, 5\): it looks transposed"),
        (lambda: Proposals.from_masks(MASK[None], (7, 7)), r"mask 0 is \(4, 5\), the image \(7, 7\)"),
        (lambda: Proposals.from_masks([]), "no masks and no image size"),
        (lambda: Proposals.from_masks([np.full((4, 5), 0.3)]), "mask 0 holds values from 0.3 to 0.3"),
        (lambda: Proposals.from_masks([np.arange(20).reshape(4, 5)]), r"split it \(labels == 3\)"),
        (lambda: Proposals.from_masks([MASK], quality=[1.5]), "quality spans 1.5 to 1.5"),
        (lambda: Proposals.from_masks([MASK], quality=[np.nan]), "quality spans nan"),
        (lambda: Proposals.from_masks([MASK], quality=[1, 1]), r"quality of shape \(2,\) for 1 masks"),
        (lambda: Proposals.from_boxes([[0, 0, np.nan, 1]], (4, 5)), r"box 0 is \(0, 0, nan, 1\)"),
        (lambda: Proposals.from_boxes([[3, 0, 1, 1]], (4, 5)), "x1 is below x0"),
        (lambda: Proposals.from_boxes([[3, 0, 1]], (4, 5)), r"boxes of shape \(1, 3\)"),
        (
            lambda: Proposals.from_rle([{"size": [4, 5], "counts": [20]}], (5, 4)),
            r"RLE 0 is of \(4, 5\), the",
        ),
        (lambda: Proposals.from_rle([{"size": [4, 5], "counts": [3, 4]}]), "its runs add up to 7 pixels"),
        (lambda: Proposals.from_rle([{"size": [4, 5], "counts": [-3, 23]}]), "RLE 0"),
        (lambda: Proposals.from_rle([{"size": [4, 5], "counts": "0~~"}]), "RLE 0 is not"),
        (lambda: Proposals.from_rle([{"size": [4, 5], "counts": "0T"}]), "RLE 0 is not"),
        (lambda: Proposals.from_rle([{"size": [4, 5]}]), "RLE 0 is not"),
        (lambda: Proposals.from_rle([MASK]), "RLE 0 is not"),
        (lambda: Proposals.from_rle([]), "no RLE and no image size"),
        (lambda: Proposals.from_segments(np.full((4, 5), 0.5)), "not whole numbers"),
        (lambda: Proposals.from_packed(np.zeros((2, 9), np.uint8), (4, 5)), "do not fit an image of 4x5"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(make, said: str) -> None:
    with pytest.raises(ProposalError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Proposals.from_masks(np.zeros((0, 4, 5), bool)),
        lambda: Proposals.from_masks([], (4, 5)),
        lambda: Proposals.from_boxes([], (4, 5)),
        lambda: Proposals.from_rle([], (4, 5)),
        lambda: Proposals.from_segments(np.zeros((4, 5), int)),
        lambda: Proposals.empty((4, 5)),
        lambda: Proposals.from_masks([MASK, ~MASK]).select([]),
    ],
)
def test_no_masks_are_no_trouble(make) -> None:
    found = make()
    assert len(found) == 0
    assert found.size == (4, 5)
    assert found.masks().shape == (0, 4, 5)
    assert found.boxes.shape == (0, 4)
    assert found.to_rle() == []
    assert not found.segment_map().any()


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda m: [x.astype(np.uint8) * 255 for x in m]])
def test_masks_come_as_lists_arrays_or_tensors(form) -> None:
    masks = _drawn((5, 6))
    np.testing.assert_array_equal(Proposals.from_masks(form(masks)).masks(), masks)


def test_one_mask_alone_is_one_proposal() -> None:
    assert Proposals.from_masks(~MASK).areas.tolist() == [20]


def test_smaller_masks_lie_on_top_and_of_equal_ones_the_first() -> None:
    masks = np.zeros((4, 6, 6), bool)
    masks[0, 2:4, 2:4] = True
    masks[1, 1:5, 1:5] = True
    masks[2, 2:4, 3:5] = True
    expected = np.zeros((6, 6), int)
    expected[1:5, 1:5], expected[2:4, 3:5], expected[2:4, 2:4] = 2, 3, 1
    np.testing.assert_array_equal(Proposals.from_masks(masks).segment_map(), expected)


def test_a_map_of_segments_comes_back() -> None:
    segments = np.random.default_rng(0).integers(0, 7, (9, 11))
    found = Proposals.from_segments(segments)
    np.testing.assert_array_equal(found.segment_map() > 0, segments > 0)
    for index, mask in enumerate(found.masks()):
        np.testing.assert_array_equal(mask, segments == index + 1)


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], np.array([True, False, True, False, False, False]), []])
def test_a_part_keeps_its_quality_and_boxes(index) -> None:
    masks = _drawn((7, 9))
    found = Proposals.from_masks(masks, quality=np.linspace(0, 1, 6))
    part = found.select(index)
    at = np.arange(6)[index] if len(np.arange(6)[index] if not isinstance(index, list) else index) else []
    np.testing.assert_array_equal(part.masks(), masks[at] if len(at) else masks[:0])
    np.testing.assert_array_equal(part.quality, found.quality[at] if len(at) else [])


def test_five_thousand_masks_stay_packed() -> None:
    boxes = np.random.default_rng(0).random((5000, 2)) * 90
    found = Proposals.from_boxes(np.hstack([boxes, boxes + 9]), (100, 100))
    assert found.packed.nbytes == 5000 * 1250
    assert found.areas.min() >= 64
    assert found.segment_map().max() <= 5000
    assert Proposals.from_rle(found.select(slice(0, 50)).to_rle()).areas.tolist() == found.areas[:50].tolist()


def test_counting_needs_no_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = np.random.default_rng(0).integers(0, 256, (3, 19)).astype(np.uint8)
    new = packing.popcount(packed)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    np.testing.assert_array_equal(packing.popcount(packed), new)
