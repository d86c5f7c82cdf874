"""The shipped SAM: it loads, it finds a simple shape, and what is missing is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from densevl.backbones.at_hand import ModelInfo, available, best_at_hand
from densevl.errors import MissingExtraError, ModelError, WeightsError
from densevl.proposals.sam import mini_sam
from densevl.proposals.sam.mini_sam import AUTOMATIC, WEIGHTS, SamConfig, build_sam, load_mini_sam
from densevl.shipped import is_shipped

segment_anything = pytest.importorskip("segment_anything", reason="mini-sam needs the extra 'sam'")
shipped = pytest.mark.skipif(
    not is_shipped(WEIGHTS), reason="this checkout holds no densevl/weights/mini_sam.safetensors"
)


def _drawn(side: int, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A plain ellipse with a lighter spot on a soft two-tone ground: uint8 (S, S, 3) and bool (S, S)."""
    y, x = np.mgrid[:side, :side] / side
    mask = ((y - 0.45) / 0.22) ** 2 + ((x - 0.55) / 0.3) ** 2 < 1
    ground = np.array([150, 190, 120]) + 12 * np.sin(25 * x + 9 * y)[..., None]
    image = np.where(mask[..., None], colour, ground)
    image[np.hypot(y - 0.38, x - 0.45) < 0.05] += 25
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@shipped
@pytest.mark.parametrize("colour", [(200, 40, 40), (40, 60, 170), (230, 200, 40)])
def test_one_point_finds_a_simple_shape(colour: tuple[int, int, int]) -> None:
    image, mask = _drawn(200, colour)
    predictor = segment_anything.SamPredictor(load_mini_sam())
    predictor.set_image(image)
    masks, quality, _ = predictor.predict(np.array([[110, 90]]), np.ones(1, int))
    assert _iou(masks[quality.argmax()], mask) > 0.6


@shipped
def test_automatic_masks_hold_the_shape() -> None:
    image, mask = _drawn(160, (200, 40, 40))
    generator = segment_anything.SamAutomaticMaskGenerator(load_mini_sam(), points_per_side=8, **AUTOMATIC)
    records = generator.generate(image)
    assert max(_iou(record["segmentation"], mask) for record in records) > 0.6


@shipped
def test_the_shipped_file_is_pinned_and_small() -> None:
    path = Path(mini_sam.__file__).parents[2] / WEIGHTS
    assert len(mini_sam.SHA256) == 64
    assert path.stat().st_size < 10_000_000


@shipped
def test_another_file_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_sam, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="is not the one densevl ships"):
        load_mini_sam()


@shipped
def test_it_is_listed_but_auto_never_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(info for info in available() if info.name == "mini-sam")
    assert row.ready
    assert not row.backbone
    monkeypatch.setattr("densevl.backbones.at_hand.available", lambda: [row, ModelInfo("last", True, "")])
    assert best_at_hand() == "last"


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_sam, "WEIGHTS", "weights/nowhere.safetensors")
    with pytest.raises(ModelError, match="no weights in this installation"):
        load_mini_sam()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything.modeling", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[sam\]"):
        build_sam(SamConfig())


def test_damaged_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bad, other, misfit = (tmp_path / f"{name}.safetensors" for name in ("bad", "other", "misfit"))
    bad.write_bytes(b"nothing")
    save_file({"a": torch.zeros(1)}, other)
    save_file({"a": torch.zeros(1)}, misfit, {"sam_config": SamConfig(depth=1).to_json()})
    for path, words in ((bad, "cannot be read"), (other, "is not a mini-sam"), (misfit, "does not fit its own header")):
        with pytest.raises(WeightsError, match=words):
            load_mini_sam(path)
