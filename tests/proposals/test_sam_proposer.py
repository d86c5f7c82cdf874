"""Our automatic and prompted masks are the package's, and what is dropped early would have been dropped late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from densevl.proposals import ProposalError, Proposals
from densevl.proposals.sam.mini_sam import WEIGHTS, SamConfig, build_sam, load_mini_sam
from densevl.shipped import is_shipped

segment_anything = pytest.importorskip("segment_anything", reason="SAM needs the extra 'sam'")

from densevl.proposals.sam.automatic import SamProposer
from densevl.proposals.sam.crops import crops
from densevl.proposals.sam.image import SamImage

TINY = SamConfig(image=64, patch=8, width=32, depth=2, channels=32, decoder_mlp=32, mask_channels=4, iou_width=16)
shipped = pytest.mark.skipif(not is_shipped(WEIGHTS), reason="this checkout holds no mini-sam")


def _scene(height: int, width: int) -> np.ndarray:
    """Coloured discs on a soft ground, uint8 (H, W, 3)."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([130 + 40 * x, 160 + 20 * y, 120 + 0 * x], axis=-1)
    discs = ((0.2, 0.25, 0.1, (220, 40, 40)), (0.4, 0.6, 0.16, (40, 60, 180)), (0.7, 0.2, 0.12, (240, 210, 60)))
    for row, column, radius, colour in discs:
        image[np.hypot(y - row, x - column) < radius] = colour
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def random_sam() -> Any:
    """A SAM of random weights whose logits are spread about 0, so that every filter has something to do."""
    torch.manual_seed(0)
    sam = build_sam(TINY).eval().requires_grad_(False)
    for mlp in sam.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 60
    sam.mask_decoder.iou_prediction_head.layers[-1].weight *= 20
    return sam


def _theirs(sam: Any, image: np.ndarray, **settings: Any) -> list[dict[str, Any]]:
    records = segment_anything.SamAutomaticMaskGenerator(sam, **settings).generate(image)
    return sorted(records, key=lambda record: -record["predicted_iou"])


def _same(ours: Proposals, records: list[dict[str, Any]]) -> None:
    assert len(ours) == len(records)
    for index, record in enumerate(records):
        mask = ours.mask(index)
        either = (mask | record["segmentation"]).sum()
        assert (mask ^ record["segmentation"]).sum() <= 1e-3 * either
        assert ours.quality[index] == pytest.approx(np.clip(record["predicted_iou"], 0, 1), abs=1e-5)


LOOSE = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0}


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (131, 77), (20, 150), (7, 5)])
@pytest.mark.parametrize(
    "settings",
    [
        LOOSE,
        {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.0},
        {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.6},
        {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.6, "stability_score_offset": 0.3},
        {"pred_iou_thresh": 9.0},
    ],
    ids=["all", "by quality", "by stability", "by stability, near", "none"],
)
def test_the_same_masks_pass_the_filters(random_sam, size, settings) -> None:
    image = _scene(*size)
    ours = SamProposer(random_sam, points_per_side=5, points_per_batch=7, duplicates="none", **settings)(image)
    _same(ours, _theirs(random_sam, image, points_per_side=5, box_nms_thresh=2.0, **settings))


def test_the_filters_had_something_to_do(random_sam) -> None:
    image, counts = _scene(48, 64), []
    for settings in (LOOSE, {**LOOSE, "pred_iou_thresh": 0.1}, {**LOOSE, "stability_score_thresh": 0.6}):
        counts.append(len(SamProposer(random_sam, points_per_side=5, duplicates="none", **settings)(image)))
    assert counts[0] == 75
    assert 0 < counts[1] < 75
    assert 0 < counts[2] < 75


@pytest.mark.parametrize("area", [0, 30, 5000])
def test_small_regions_go_as_in_the_package(random_sam, area: int) -> None:
    pytest.importorskip("cv2")
    image = _scene(48, 64)
    settings = {**LOOSE, "points_per_side": 5, "min_mask_region_area": area}
    theirs = _theirs(random_sam, image, box_nms_thresh=2.0, **settings)
    assert len(theirs) == 75
    _same(SamProposer(random_sam, duplicates="none", **settings)(image), theirs)


@pytest.mark.parametrize("size", [(90, 120), (131, 77), (9, 11)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("downscale", [1, 2])
def test_crops_as_in_the_package(random_sam, size, layers: int, downscale: int) -> None:
    settings = {**LOOSE, "points_per_side": 4, "crop_n_layers": layers, "crop_n_points_downscale_factor": downscale}
    image = _scene(*size)
    theirs = _theirs(random_sam, image, box_nms_thresh=2.0, crop_nms_thresh=2.0, **settings)
    assert len(theirs) >= 48
    _same(SamProposer(random_sam, duplicates="none", **settings)(image), theirs)


@pytest.mark.parametrize("size", [(768, 1024), (64, 64), (333, 97)])
@pytest.mark.parametrize("overlap", [512 / 1500, 0.0, 0.7])
def test_crops_lie_where_the_package_s_lie(size, overlap: float) -> None:
    from segment_anything.utils.amg import generate_crop_boxes

    theirs, layers = generate_crop_boxes(size, 2, overlap)
    ours = crops(size, 2, overlap)
    assert [list(crop[:4]) for crop in ours] == theirs
    assert [crop.layer for crop in ours] == layers


@shipped
@pytest.mark.parametrize("size", [(120, 160), (200, 90)])
@pytest.mark.parametrize("more", [{}, {"min_mask_region_area": 40}, {"crop_n_layers": 1}], ids=str)
def test_mini_sam_gives_the_package_s_masks(size, more) -> None:
    pytest.importorskip("cv2")
    sam, image = load_mini_sam(), _scene(*size)
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.1, **more}
    ours = SamProposer(sam, duplicates="box", **settings)(image)
    assert len(ours) > 2
    _same(ours, _theirs(sam, image, **settings))


def test_a_callers_mixed_precision_changes_little(random_sam) -> None:
    image, settings = _scene(48, 64), {**LOOSE, "points_per_side": 3, "duplicates": "none"}
    whole = SamProposer(random_sam, **settings)(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = SamProposer(random_sam, **settings)(image)
    assert len(mixed) == len(whole)
    assert abs(mixed.areas.mean() / whole.areas.mean() - 1) < 0.05


def test_early_rejection_changes_nothing_where_every_mask_is_judged_at_full_size(random_sam) -> None:
    image = _scene(131, 77)
    settings = {**LOOSE, "points_per_side": 6, "duplicates": "none", "stability_score_thresh": 0.7}
    quick, exact = (SamProposer(random_sam, stability_margin=margin, **settings)(image) for margin in (0.05, 1))
    np.testing.assert_array_equal(quick.packed, exact.packed)


def test_what_fails_early_is_never_enlarged(random_sam, monkeypatch: pytest.MonkeyPatch) -> None:
    enlarged: list[int] = []
    true = SamImage.enlarged
    monkeypatch.setattr(SamImage, "enlarged", lambda self, x, f: enlarged.append(len(x)) or true(self, x, f))
    SamProposer(random_sam, points_per_side=5, pred_iou_thresh=0.1, stability_score_thresh=0.6)(_scene(48, 64))
    assert 0 < sum(enlarged) < 45


def test_enlarging_a_part_is_enlarging_the_whole(random_sam) -> None:
    image = SamImage.encode(random_sam, _scene(50, 83))
    logits = image.decode(np.array([[[20.0, 20.0]], [[60.0, 40.0]]])).logits
    logits = torch.cat([logits, logits - logits.amax(dim=(1, 2), keepdim=True) - 1])  # and some below all levels
    whole = random_sam.postprocess_masks(logits[:, None], image.covered, image.size)[:, 0]
    for large, (part, rows, columns) in zip(whole, image.enlarged(logits, -1.0), strict=True):
        torch.testing.assert_close(part, large[rows, columns], rtol=1e-4, atol=1e-4)
        outside = large.clone()
        outside[rows, columns] = -2
        assert outside.max() <= -1


@pytest.mark.parametrize("kind", ["points", "several points", "boxes"])
def test_prompts_give_what_the_package_s_predictor_gives(random_sam, kind: str) -> None:
    image = _scene(60, 90)
    predictor = segment_anything.SamPredictor(random_sam)
    predictor.set_image(image)
    proposer = SamProposer(random_sam, points_per_batch=2)
    encoded = proposer.encode(image)
    points = np.array([[20.0, 12.0], [50.5, 33.0], [80, 55]])
    if kind == "points":
        ours = proposer.prompt(encoded, points=points)
        each = [predictor.predict(point[None], np.ones(1, int)) for point in points]
        expected = [masks[quality.argmax()] for masks, quality, _ in each]
    elif kind == "several points":
        pairs, labels = np.stack([points, points + 5], axis=1), np.array([[1, 1], [1, 0], [0, 1]])
        ours = proposer.prompt(encoded, points=pairs, labels=labels)
        asked = zip(pairs, labels, strict=True)
        expected = [predictor.predict(pair, label, multimask_output=False)[0][0] for pair, label in asked]
    else:
        boxes = np.array([[5, 5, 40, 30], [10.5, 2.5, 80, 59], [0, 0, 90, 60]])
        ours = proposer.prompt(encoded, boxes=boxes)
        expected = [predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes]
    assert len(ours) == 3
    for mask, theirs in zip(ours.masks(), expected, strict=True):
        assert (mask ^ theirs).sum() <= 1e-3 * max(1, (mask | theirs).sum())


@pytest.mark.parametrize("form", [{"points": []}, {"boxes": []}, {"points": np.zeros((0, 2))}])
def test_no_prompts_no_masks(random_sam, form) -> None:
    assert len(SamProposer(random_sam).prompt(_scene(60, 90), **form)) == 0


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "give points or boxes, one of the two"),
        ({"points": [[1, 1]], "boxes": [[0, 0, 9, 9]]}, "one of the two"),
        ({"points": [[91, 5]]}, r"point \(91, 5\) of prompt 0 is outside the image of 90x60"),
        ({"points": [[float("nan"), 5]]}, "outside the image"),
        ({"points": [[1, 2, 3]]}, r"points of shape"),
        ({"points": [[1, 2]], "labels": [2]}, "a 0 or 1 for each point"),
        ({"points": [[1, 2]], "labels": [[1, 1]]}, "a 0 or 1 for each point"),
        ({"boxes": [[1, 2, 3]]}, "boxes of shape"),
        ({"boxes": [[5, 2, 3, 9]]}, "x1 is below x0"),
        ({"boxes": [[5, 2, 9, 9], [200, 5, 300, 9]]}, "box 1 is .* outside an image of 90x60"),
    ],
)
def test_wrong_prompts_are_one_line(random_sam, form, said: str) -> None:
    with pytest.raises(ProposalError, match=said):
        SamProposer(random_sam).prompt(_scene(60, 90), **form)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"points_per_side": 0}, "points_per_side is 0: at least 1"),
        ({"duplicates": "boxes"}, "no duplicates 'boxes'.*closest: box"),
        ({"pred_iou": 0.5}, "no setting 'pred_iou'.*closest: pred_iou_thresh"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1: 0 or more"),
    ],
)
def test_wrong_settings_are_one_line(random_sam, settings, said: str) -> None:
    with pytest.raises(ProposalError, match=said):
        SamProposer(random_sam, **settings)
