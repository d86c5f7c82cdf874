"""Panoptic quality against brute force and torchmetrics; mask AP through both backends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as rle

from densevl.errors import DatasetError, EvaluationError
from densevl.evaluation.metrics.average_precision import average_precision
from densevl.evaluation.metrics.panoptic import UNIT, Segment, coco_ids, panoptic_counts, panoptic_quality


def _case(seed: int) -> tuple[np.ndarray, list[Segment], np.ndarray, list[Segment]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (4, 4)).repeat(3, 0).repeat(3, 1)
    found = truth.copy()
    found[rng.random(found.shape) < 0.25] = rng.integers(0, 6)
    category = rng.integers(0, 3, 7)
    crowds = rng.random(7) < 0.2
    described = [Segment(int(i), int(category[i]), bool(crowds[i])) for i in np.unique(truth) if i]
    changed = [
        Segment(int(i), int(category[i] if rng.random() < 0.8 else (category[i] + 1) % 3))
        for i in np.unique(found)
        if i
    ]
    return truth, described, found, changed


def _by_hand(truth, of_truth, found, of_found) -> np.ndarray:
    """COCO's rules, a pair of boolean masks at a time."""
    counts = np.zeros((4, 3))
    matched_t, matched_f = set(), set()
    void = truth == 0
    for t in of_truth:
        for f in of_found:
            a, b = truth == t.id, (found == f.id) & ~void
            both = (a & b).sum()
            if not t.crowd and t.category == f.category and both / (a | b).sum() > 0.5:
                counts[0, t.category] += both / (a | b).sum()
                counts[1, t.category] += 1
                matched_t.add(t.id)
                matched_f.add(f.id)
    for t in of_truth:
        counts[3, t.category] += t.id not in matched_t and not t.crowd
    for f in of_found:
        mask = found == f.id
        excused = void.copy()
        for t in of_truth:
            if t.crowd and t.category == f.category:
                excused |= truth == t.id
        counts[2, f.category] += f.id not in matched_f and not (mask & excused).sum() / mask.sum() > 0.5
    return counts


def test_panoptic_counts_equal_brute_force_on_500_random_cases() -> None:
    for seed in range(500):
        case = _case(seed)
        ours = panoptic_counts(*case, categories=3)
        expected = _by_hand(*case)
        np.testing.assert_array_equal(ours[1:], expected[1:])
        np.testing.assert_allclose(ours[0] / UNIT, expected[0], atol=1e-10)


def test_pq_equals_torchmetrics_where_it_is_installed() -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    import torch

    total = np.zeros((4, 3), np.int64)
    theirs = detection.PanopticQuality(things={0, 1, 2}, stuffs={9}, allow_unknown_preds_category=True)
    for seed in range(500):
        rng = np.random.default_rng(seed)
        truth = rng.integers(1, 5, (4, 4)).repeat(3, 0).repeat(3, 1)
        found = truth.copy()
        found[rng.random(found.shape) < 0.2] = int(rng.integers(1, 5))
        category = rng.integers(0, 3, 6)
        describe = [[Segment(int(i), int(category[i])) for i in np.unique(ids)] for ids in (truth, found)]
        total += panoptic_counts(truth, describe[0], found, describe[1], 3)
        theirs.update(*(torch.from_numpy(np.stack([category[ids], ids], -1)[None]) for ids in (found, truth)))
    ours = panoptic_quality(total)
    assert ours["PQ"] == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert ours["PQ"] <= ours["SQ"]


def test_identical_maps_have_quality_one_and_empty_ones_none() -> None:
    ids, segments = np.array([[1, 2]]), [Segment(1, 0), Segment(2, 1)]
    assert panoptic_quality(panoptic_counts(ids, segments, ids, segments, 2)) == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}
    assert math.isnan(panoptic_quality(np.zeros((4, 2), np.int64))["PQ"])
    assert panoptic_quality(panoptic_counts(ids, segments, ids, segments, 2), kept=[1])["PQ"] == 1.0


def test_ids_that_are_not_described_are_an_error() -> None:
    with pytest.raises(DatasetError, match="segment 3 of the truth is in the map and not described"):
        panoptic_counts(np.array([[3]]), [], np.array([[1]]), [Segment(1, 0)], 1)
    with pytest.raises(DatasetError, match="segment 2 of the found is described and not in the map"):
        panoptic_counts(np.array([[1]]), [Segment(1, 0)], np.array([[1]]), [Segment(1, 0), Segment(2, 0)], 1)


def test_coco_ids_read_three_channels() -> None:
    assert coco_ids(np.array([[[1, 2, 3]]], np.uint8))[0, 0] == 1 + 2 * 256 + 3 * 65536


def _coco(masks: list[np.ndarray]) -> dict:
    entries = []
    for number, mask in enumerate(masks):
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        code["counts"] = code["counts"].decode()
        x, y, w, h = (float(v) for v in rle.toBbox(code))
        common = {"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": float(mask.sum())}
        entries.append({**common, "bbox": [x, y, w, h], "segmentation": code})
    categories = [{"id": 1, "name": "thing"}]
    return {"images": [{"id": 1, "height": 40, "width": 40}], "categories": categories, "annotations": entries}


def _results(truth: dict, scores: list[float]) -> list[dict]:
    kept = ("image_id", "category_id", "segmentation")
    return [
        {**{key: entry[key] for key in kept}, "score": s} for entry, s in zip(truth["annotations"], scores, strict=True)
    ]


def _squares() -> list[np.ndarray]:
    masks = [np.zeros((40, 40), bool) for _ in range(3)]
    masks[0][2:12, 2:12], masks[1][20:34, 4:18], masks[2][5:30, 22:38] = True, True, True
    return masks


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_mask_ap_of_the_truth_itself_is_one(backend) -> None:
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    truth = _coco(_squares())
    table, _ = average_precision(truth, _results(truth, [0.9, 0.8, 0.7]), backend=backend)
    assert table["AP"] == pytest.approx(1.0)
    assert math.isnan(table["AP large"])  # no such object


def test_both_backends_agree_where_both_are_installed() -> None:
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(0)
    truth = _coco(_squares())
    noisy = _coco([np.roll(mask, rng.integers(-4, 5, 2), (0, 1)) for mask in _squares()])
    found = _results(noisy, [0.9, 0.3, 0.6])
    one, other = (average_precision(truth, found, backend=name)[0] for name in ("pycocotools", "faster"))
    assert one == pytest.approx(other, nan_ok=True)


def test_ap_without_results_is_zero_and_bad_requests_are_named() -> None:
    truth = _coco(_squares())
    assert average_precision(truth, [])[0]["AP"] == 0.0
    with pytest.raises(EvaluationError, match="closest: segm"):
        average_precision(truth, [], "segment")
    with pytest.raises(EvaluationError, match="image 7"):
        average_precision(truth, [{"image_id": 7, "category_id": 1, "score": 1.0, "bbox": [0, 0, 1, 1]}], "bbox")
