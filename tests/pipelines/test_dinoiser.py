"""CLIP-DINOiser as its authors run it: both heads from their file, what they call background included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import random_clip, wrap
from densevl import RegionClassifier, Segmenter
from densevl.backbones.proxies import DinoiserHeads
from densevl.errors import DensevlError
from oracle_graph import dinoiser_scores

PHOTO = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
LABELS = ["cat", "dog", "sky"]


def tensors(width: int = 32) -> dict[str, torch.Tensor]:
    draw = torch.manual_seed(6)
    shapes = {"obj_proj.weight": (16, width, 3, 3), "obj_proj.bias": (16,)}
    shapes |= {"bkg_decoder.weight": (1, width, 1, 1), "bkg_decoder.bias": (1,)}
    made = {
        name: torch.randn(*shape, generator=draw) * (4.0 if "bkg" in name else 0.1) for name, shape in shapes.items()
    }
    return {**made, "bkg_decoder.bias": made["bkg_decoder.bias"] - 6}  # some patches are objects, some are not


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"epoch": 5, "model_state_dict": tensors()}, path)
    return path


def segmenter(file, **more) -> Segmenter:
    settings = {"protocol": {"short_side": None, "crop": None}, "templates": "photo", "use_cache": False, **more}
    return Segmenter(wrap(random_clip()), "dinoiser", proxy=str(file), **settings)


def test_what_is_neither_sure_nor_an_object_is_background_after_resizing(file, monkeypatch) -> None:
    monkeypatch.setattr("densevl.pipelines.segmentation.foreground.SURE", 0.773)  # of random words none has 0.99
    segment = segmenter(file, background="foreground")
    found = segment(PHOTO, LABELS)
    pixels = segment.backbone.normalize(PHOTO)[None]
    heads = DinoiserHeads(tensors())
    dense = segment.backbone.encode_dense(pixels, "dinoiser", hints=segment._hints(None, PHOTO))
    text = segment.embed_text(segment_labels(), segment.background).vectors
    front = heads.foreground(segment.backbone.tower, pixels)[0].double().logit()
    features = dense.features[0].double().flatten(1).T
    p = dinoiser_scores(features, text)
    sure = p.max(1).values >= 0.773
    nothing = (~sure & (front.flatten().sigmoid() <= 0.5)).double()
    assert 0 < nothing.mean() < 1
    columns = torch.cat([nothing[:, None], p], dim=1).T.reshape(1, 4, 8, 12)
    full = F.interpolate(columns, size=(64, 96), mode="bilinear", align_corners=False)[0]
    nowhere = (full[0] >= full[1:].amax(dim=0)).numpy()
    np.testing.assert_array_equal(found.labels == -1, nowhere)
    plain = segmenter(file)(PHOTO, LABELS)
    np.testing.assert_array_equal(found.labels[~nowhere], plain.labels[~nowhere])
    assert (plain.labels >= 0).all()


def segment_labels():
    from densevl.vocabulary import LabelSet

    return LabelSet.parse(LABELS)


def test_windows_each_have_their_own_look(file) -> None:
    windows = {"short_side": None, "crop": 32, "stride": 16}
    result = segmenter(file, background="foreground", protocol=windows)(PHOTO, LABELS)
    assert 0 < (result.labels == -1).mean() < 1
    assert "no object by the heads" in result.meta["background"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: Segmenter(wrap(random_clip()), background="foreground"), "heads of CLIP-DINOiser: take recipe"),
        (lambda file: Segmenter(wrap(random_clip()))(PHOTO, LABELS, background="foreground"), "take recipe 'dinoiser'"),
        (lambda file: segmenter(file)(PHOTO, LABELS, background="foregroud"), "closest: foreground"),
        (
            lambda file: RegionClassifier(wrap(random_clip()), "pool", recipe="dinoiser", proxy=str(file)).policy(
                "foreground"
            ),
            "is for pixels",
        ),
    ],
)
def test_without_heads_it_is_one_clear_line(make, said, file) -> None:
    with pytest.raises(DensevlError, match=said) as caught:
        make(file)
    assert "\n" not in str(caught.value)


def test_heads_of_another_width_are_refused(tmp_path) -> None:
    torch.save(tensors(48), tmp_path / "last.pt")
    with pytest.raises(DensevlError, match="width 48, this one has 32"):
        segmenter(tmp_path / "last.pt")(PHOTO, LABELS)
