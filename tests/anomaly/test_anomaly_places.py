"""Where an image is looked at: tiles of large images, the object before its background, places that lie alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close
from densevl.anomaly.memory.foreground import foreground, otsu, shows_object
from densevl.anomaly.tiling import stitch
from densevl.errors import OptionError
from densevl.pipelines.anomaly.detector import AnomalyDetector

RNG = np.random.default_rng(8)
LARGE = RNG.integers(90, 130, (96, 128, 3), np.uint8)
DAMAGED = LARGE.copy()
DAMAGED[52:60, 100:108] = 250


def scene(seed: int = 0, damaged: bool = False) -> np.ndarray:
    """A light disc on a dark ground, both noisy; the damage lies on the ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    rgb = np.full((128, 128, 3), 30) + 190 * ((y - 64) ** 2 + (x - 64) ** 2 < 46**2)[..., None]
    if damaged:
        rgb[:14, :14] = (250, 10, 10)
    return np.clip(rgb + rng.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("lost", [0, 2])
def test_overlapping_tiles_of_a_map_make_the_map(lost) -> None:
    whole = torch.randn(2, 9 - lost, 12 - lost, 3)
    corners = [(top, left) for top in (0, 2, 4) for left in (0, 3, 5, 7)]
    side = 5 - lost
    tiles = torch.stack([whole[:, top : top + side, left : left + side] for top, left in corners])
    close(stitch(tiles, corners, (9, 12), (5, 5)), whole)


@pytest.mark.parametrize("scoring", ["winclip", "dense", "streams", "dino", "patchcore"])
def test_tiles_give_a_map_of_the_whole_image(tiny, scoring) -> None:
    detect = AnomalyDetector(tiny, scoring, item="tile", size=96, tile=40).fit([LARGE])
    result = detect(DAMAGED)
    assert result.grid.shape == (12, 16)
    assert np.isfinite(result.map).all()
    if "memory" in result.parts and scoring != "winclip":  # 1e-3: an average of features is no unit row of one of them
        assert detect(LARGE).parts["memory"].max() < 1e-3


def test_a_tile_sees_what_an_image_of_its_size_sees(tiny) -> None:
    alone = AnomalyDetector(tiny, "dino", options={"augment": "none", "smooth": 0.0}, size=32).fit([LARGE[:32, :32]])
    tiled = AnomalyDetector(tiny, "dino", options={"augment": "none", "smooth": 0.0}, size=96, tile=32)
    tiled.memories, tiled.scorer.spread = alone.memories, alone.scorer.spread
    found = tiled(DAMAGED).grid
    # The first two rows and columns of patches lie in the first tile only.
    assert np.abs(found[:2, :2]).max() < 1e-6
    assert found[6, 12] > 1e-3


def test_tiles_do_not_change_images_that_fit_and_are_saved(tiny, tmp_path) -> None:
    small = LARGE[:32, :32]
    plain, tiled = (AnomalyDetector(tiny, tile=tile).fit([small]) for tile in (None, 40))
    assert np.array_equal(plain(small).grid, tiled(small).grid)
    tiled = AnomalyDetector(tiny, "dino", options={"augment": "none", "near": 2}, size=(96, 128), tile=40).fit(
        [LARGE, DAMAGED]
    )
    tiled.calibrate(0.1).save(tmp_path / "t")
    again = AnomalyDetector.load(tmp_path / "t", tiny)
    assert (again.tile, again.size) == (40, (96, 128))
    assert np.array_equal(again(DAMAGED).grid, tiled(DAMAGED).grid)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tile": 20}, OptionError, "multiple of the patch size, 8"),
        ({"tile": 16}, OptionError, "at least 24"),
        ({"tile": 40, "proxy": "mini-sam"}, OptionError, "leave the proxy out"),
        ({"size": (96, 100)}, OptionError, "multiples of the patch size, 8"),
        ({"size": (96,)}, OptionError, "height and width"),
    ],
)
def test_impossible_tiles_and_sizes_are_one_clear_line(tiny, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        AnomalyDetector(tiny, **settings)


def test_a_pair_of_sides_squeezes_as_the_papers_code_does(tiny) -> None:
    assert AnomalyDetector(tiny, size=(32, 32))(LARGE).grid.shape == (4, 4)
    assert AnomalyDetector(tiny, size=32)(LARGE).grid.shape == (4, 5)


def test_otsu_parts_two_groups() -> None:
    values = torch.cat([torch.randn(300) * 0.1, 5 + torch.randn(100) * 0.1])
    assert 0.5 < float(otsu(values)) < 4.7
    assert float(otsu(torch.ones(5))) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_the_object_is_found_and_a_texture_is_none(sign) -> None:
    generator = torch.Generator().manual_seed(0)
    disc = torch.zeros(2, 14, 14, dtype=torch.bool)
    disc[:, 3:11, 4:10] = True
    direction = F.normalize(torch.randn(6, generator=generator), dim=0)
    features = sign * disc[..., None] * direction * 4 + 0.3 * torch.randn(2, 14, 14, 6, generator=generator)
    mask = foreground(features)
    assert mask[disc].all()
    assert mask[:, 0].sum() == mask[:, -1].sum() == 0
    assert shows_object(mask).all()
    assert not shows_object(foreground(torch.randn(3, 14, 14, 6, generator=generator))).any()
    assert not shows_object(foreground(torch.zeros(1, 1, 1, 6))).any()


def test_damage_of_the_background_is_no_damage_of_the_object(tiny, tmp_path) -> None:
    normal, damaged = [scene(1), scene(2)], scene(3, damaged=True)
    plain_options = {"augment": "none", "smooth": 0.0}
    settings = {"scoring": "dino", "size": 128}
    plain = AnomalyDetector(tiny, options=plain_options, **settings).fit(normal)
    masked = AnomalyDetector(tiny, options={**plain_options, "foreground": True}, **settings).fit(normal)
    assert masked.scorer.masked
    assert plain(damaged).grid[0, 0] > 0.01
    assert masked(damaged).grid[0, 0] == 0
    assert masked(damaged).grid[8, 8] > 0
    assert len(masked.memories["layer7"]) < len(plain.memories["layer7"])
    masked.save(tmp_path / "masked")
    assert np.array_equal(AnomalyDetector.load(tmp_path / "masked", tiny)(damaged).grid, masked(damaged).grid)
    texture = AnomalyDetector(tiny, options={**plain_options, "foreground": True}, **settings).fit([LARGE])
    assert not texture.scorer.masked
    assert np.array_equal(
        texture(DAMAGED).grid, AnomalyDetector(tiny, options=plain_options, **settings).fit([LARGE])(DAMAGED).grid
    )


def test_four_shots_equal_brute_force(tiny) -> None:
    normal = [scene(seed) for seed in range(4)]
    detect = AnomalyDetector(tiny, "dino", options={"augment": "none", "smooth": 0.0}, size=64).fit(normal)
    memory = detect.memories["layer7"]
    assert memory.owner.unique().tolist() == [0, 1, 2, 3]
    pixels = next(detect._batches([scene(9, damaged=True)], 1))[2]
    query = F.normalize(detect.scorer.look(pixels, with_memory=True).levels["layer7"], dim=-1)
    every = (query.flatten(0, 2)[:, None] - memory.rows[None]).square().sum(-1) / 2
    assert np.array_equal(detect(scene(9, damaged=True)).parts["memory"].ravel(), (every.min(1).values / 2).numpy())


def test_near_compares_like_places_only(tiny) -> None:
    plain_options = {"augment": "none", "smooth": 0.0}
    settings = {"scoring": "dino", "size": 64}
    moved = np.roll(scene(1), 40, axis=1)
    near, far = (
        AnomalyDetector(tiny, options={**plain_options, "near": near}, **settings).fit([scene(1)]) for near in (0, 99)
    )
    every = AnomalyDetector(tiny, options=plain_options, **settings).fit([scene(1)])
    assert np.abs(far(moved).grid - every(moved).grid).max() < 1e-6
    assert near(scene(1)).grid.max() < 1e-6
    assert near(moved).grid.mean() > every(moved).grid.mean()
