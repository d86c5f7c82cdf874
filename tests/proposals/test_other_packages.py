"""The adapters to MobileSAM, SAM-HQ and SAM 2, with stand-ins that take those packages' calls."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals import Proposals, others

SIZE = (20, 30)
PHOTO = np.zeros((*SIZE, 3), np.uint8)
LEFT, RIGHT = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
LEFT[:, :10], RIGHT[3:9, 20:] = True, True


class Model:
    """What the registries build: a module that is moved and set to eval."""

    def __init__(self, **given: Any) -> None:
        self.given, self.device, self.trains = given, None, True

    def eval(self) -> Model:
        self.trains = False
        return self

    def to(self, device: str) -> Model:
        self.device = device
        return self


class Generator:
    """A `SamAutomaticMaskGenerator`: the model first, then settings; records out."""

    made: ClassVar[list[Generator]] = []

    def __init__(self, model: Model, points_per_side: int = 32, pred_iou_thresh: float = 0.88) -> None:
        self.model, self.points_per_side = model, points_per_side
        Generator.made.append(self)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        assert image.dtype == np.uint8
        assert image.shape == PHOTO.shape
        facts = {"area": 1, "bbox": [0, 0, 1, 1], "stability_score": 0.9, "crop_box": [0, 0, 30, 20]}
        return [
            {"segmentation": LEFT, "predicted_iou": 0.7, "point_coords": [[1.0, 1.0]], **facts},
            {"segmentation": RIGHT, "predicted_iou": 1.01, "point_coords": [[25.0, 4.0]], **facts},
        ]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Stand-ins in place of the packages, and what was asked of them."""
    asked: dict[str, list[Any]] = {"sam2": []}

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def build_sam2(config_file: str, ckpt_path: str | None = None, device: str = "cuda", mode: str = "eval") -> Model:
        asked["sam2"].append((config_file, ckpt_path, device, mode))
        return Model()

    for name, kinds in (("mobile_sam", ["vit_t"]), ("segment_anything_hq", ["vit_tiny", "vit_b", "vit_l", "vit_h"])):
        module(name, sam_model_registry=dict.fromkeys(kinds, Model), SamAutomaticMaskGenerator=Generator)
    module("sam2")
    module("sam2.build_sam", build_sam2=build_sam2)
    module("sam2.automatic_mask_generator", SAM2AutomaticMaskGenerator=Generator)
    Generator.made.clear()
    return asked


def check(found: Proposals, qualities: list[float]) -> None:
    np.testing.assert_array_equal(found.masks(), [RIGHT, LEFT])
    np.testing.assert_allclose(found.quality, qualities, atol=5e-3)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: others.mobile_sam("mobile_sam.pt", device="cpu", points_per_side=8), "mobile-sam"),
        (lambda: others.sam_hq("sam_hq.pth", "vit_tiny", points_per_side=8), "sam-hq"),
        (lambda: others.sam2("sam2.pt", "sam2.1_hiera_t.yaml", points_per_side=8), "sam2"),
    ],
    ids=["mobile_sam", "sam_hq", "sam2"],
)
def test_generators_become_proposers(build, name, packages) -> None:
    propose = build()
    assert propose.name == name
    check(propose(PHOTO), [1.0, 0.7])
    (made,) = Generator.made
    assert made.points_per_side == 8
    if name == "sam2":
        assert packages["sam2"] == [("sam2.1_hiera_t.yaml", "sam2.pt", "cpu", "eval")]
    else:
        assert made.model.given == {"checkpoint": "mobile_sam.pt" if name == "mobile-sam" else "sam_hq.pth"}
        assert not made.model.trains
        assert made.model.device == "cpu"


def test_a_proposer_of_another_package_feeds_a_classifier(tiny) -> None:
    classify = RegionClassifier(tiny, proposals=others.mobile_sam("x.pt"), templates="photo")
    assert len(classify(PHOTO, ["cat", "dog"])) == 2
