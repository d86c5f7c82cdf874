"""R15: parity with the papers' own code on a tiny random CLIP; see data/golden/README.md for what each array is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DATA
from densevl.inference import WindowGrid, decode, slide, window_scores
from densevl.refine import Pamr

GOLDEN = DATA / "golden"
PHOTO = {"224": "astronaut_224x224", "336x448": "coffee_336x448", "301x517": "chelsea_301x517"}


@pytest.fixture(scope="module")
def backbone(golden_clip):
    return golden_clip


def _pixels(size: str) -> torch.Tensor:
    rgb = np.asarray(Image.open(GOLDEN / f"{PHOTO[size]}.png")).astype("float32")
    normal = (rgb - np.float32([122.771, 116.746, 104.094])) / np.float32([68.501, 66.632, 70.323])
    return torch.from_numpy(normal).permute(2, 0, 1)[None]


@pytest.mark.parametrize("recipe", ["vanilla", "maskclip", "maskclip_value", "sclip"])
@pytest.mark.parametrize("size", ["224", "336x448"])
def test_features_equal_the_authors_code(backbone, recipe, size) -> None:
    golden = np.load(GOLDEN / "features.npz")
    dense = backbone.encode_dense(_pixels(size), recipe)
    np.testing.assert_allclose(dense.features[0].flatten(1).T, golden[f"{recipe}_{size}"], atol=2e-5, rtol=0)
    if f"{recipe}_cls_{size}" in golden:
        np.testing.assert_allclose(dense.cls[0], golden[f"{recipe}_cls_{size}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "key", "options"),
    [
        ("sclip", "slide_224", {}),
        ("sclip", "slide_336x448", {}),
        ("sclip", "slide_301x517", {}),
        ("sclip", "slide_336x448_to480x640", {"size": (480, 640)}),
        ("maskclip", "slide_301x517", {}),
        ("maskclip", "slide448_301x517", {"crop": 448, "stride": 224, "position_rule": "scale_factor"}),
        ("maskclip_value", "slide_336x448", {}),
        ("maskclip_value", "slide448_301x517", {"crop": 448, "stride": 224}),
    ],
)
def test_sliding_windows_equal_the_authors_code(backbone, recipe, key, options) -> None:
    golden = np.load(GOLDEN / "slide.npz")
    text = torch.from_numpy(np.load(GOLDEN / "features.npz")["text"])
    got = slide(backbone, _pixels(key.split("_")[1]), text, recipe=recipe, **options)[0].numpy()
    np.testing.assert_allclose(got[:, ::24, ::24], golden[f"{recipe}_{key}_logits_s24"], atol=5e-6, rtol=0)
    want = golden[f"{recipe}_{key}_argmax"]
    near_tie = np.unpackbits(golden[f"{recipe}_{key}_near_tie"])[: want.size].reshape(want.shape).astype(bool)
    assert ((got.argmax(0) == want) | near_tie).all()


def test_pamr_equals_the_authors_code(backbone) -> None:
    golden = np.load(GOLDEN / "pamr.npz")
    text = torch.from_numpy(np.load(GOLDEN / "features.npz")["text"])
    pixels = _pixels("336x448")
    got = Pamr(pixels)(slide(backbone, pixels, text, recipe="sclip"))[0].numpy()
    np.testing.assert_allclose(got[:, ::24, ::24], golden["logits_s24"], atol=5e-6, rtol=0)
    near_tie = np.unpackbits(golden["near_tie"])[: 336 * 448].reshape(336, 448).astype(bool)
    assert ((got.argmax(0) == golden["argmax"]) | near_tie).all()


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("syn", {"scale": 40.0}),
        ("voc", {"scale": 65.0, "threshold": 0.1, "min_share": 0.1}),
        ("thd", {"scale": 40.0, "threshold": 0.35}),
    ],
)
def test_decision_equals_the_authors_code(backbone, key, options) -> None:
    golden = np.load(GOLDEN / "decide.npz")
    index = torch.from_numpy(golden["syn_index"])
    windows = WindowGrid.place(336, 448, 224, 112, 16)
    scores, _ = window_scores(
        backbone, _pixels("336x448"), torch.from_numpy(golden["syn_text"]), windows, recipe="sclip"
    )
    decided = decode(scores, windows.plan(336, 448), index - 1, **options)  # class 0 is background: -1 here
    assert (decided.labels[0].numpy() + 1 == golden[f"{key}_pred"]).all()
    np.testing.assert_allclose(decided.confidence[0, ::8, ::8], golden[f"{key}_prob_s8"], atol=5e-5, rtol=0)
