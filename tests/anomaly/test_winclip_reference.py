"""WinCLIP's maps against a reading of the paper in double precision, on the CLIP of the golden arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import DATA
from densevl.pipelines.anomaly.detector import AnomalyDetector
from oracle_winclip import WinClip, bilinear


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    photo = np.array(Image.open(DATA / "golden" / "astronaut_224x224.png").convert("RGB"))
    rng = np.random.default_rng(0)
    others = [np.clip(photo + rng.normal(0, 30, photo.shape), 0, 255).astype(np.uint8)[:, ::step] for step in (1, -1)]
    damaged = photo.copy()
    damaged[60:110, 90:150] = 255 - damaged[60:110, 90:150]
    return [damaged, *others]


@pytest.mark.parametrize("shots", [0, 1])
def test_maps_and_scores_equal_the_papers_formulas(golden_clip, pictures, shots) -> None:
    pixels = [golden_clip.normalize(picture) for picture in pictures]
    plain = WinClip(golden_clip._model.visual.state_dict(), torch.zeros(2, 64), heads=2)
    # Words along what windows differ in most: of random ones every window of this random tower says the same.
    windows = torch.stack(list(plain.windows(plain.tokens(pixels[0]), 2).values()))
    axis = torch.linalg.svd(windows - windows.mean(0)).Vh[0]
    axis = F.normalize(axis - (axis @ windows.mean(0)) / windows.mean(0).square().sum() * windows.mean(0), dim=0)
    plain.words = torch.stack([-axis, axis])
    detect = AnomalyDetector(golden_clip)
    detect._prototypes = plain.words.float()
    if shots:
        detect.fit(pictures[1 : 1 + shots])
        grid, score = plain.few_shot(pixels[0], pixels[1 : 1 + shots])
    else:
        grid, score = plain.zero_shot(pixels[0])
    found = detect(pictures[0])
    assert grid.max() - grid.min() > 0.02
    assert np.abs(found.grid - grid.numpy()).max() < 2e-5
    assert np.abs(found.map - bilinear(grid, 224).numpy()).max() < 2e-5
    assert abs(found.score - float(score)) < 2e-5
