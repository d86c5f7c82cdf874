"""Region operators on a random CLIP: what they must equal, and what they must survive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import open_clip
import pytest
import timm
import torch
from torch.nn import functional as F

from conftest import TINY, close, random_clip, wrap
from densevl.errors import ModelError, OptionError, RecipeError
from densevl.inference import WindowGrid
from densevl.proposals.base import Proposals
from densevl.recipes import BoxAttention, Hints
from densevl.regions.operators import queries
from densevl.regions.operators.names import OPERATORS, parse
from densevl.regions.operators.queries import _bumps, cls_bias, cls_mask, cls_tower, look
from region_weights import write_files

SIDE = 32

Run = Callable[..., torch.Tensor]

ON_VITS = [name for name in OPERATORS if name != "adapter"]  # that one is of test_adapter


@pytest.fixture(scope="module")
def operators(tmp_path_factory) -> dict[str, Run]:
    """All of them, those that need weights with a file of random ones."""
    files = write_files(tmp_path_factory.mktemp("weights"))
    return {
        name: partial(known.run, weights=files[name]) if known.weights else known.run
        for name, known in ((name, OPERATORS[name]) for name in ON_VITS)
    }


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.manual_seed(1))


def squares(size: int = SIDE) -> Proposals:
    masks = np.zeros((4, size, size), bool)
    masks[0, 4:20, 6:22] = True
    masks[1, 9:15, 9:15] = True
    masks[2, -1, -1] = True
    return Proposals.from_masks(masks)  # the last one is empty


@pytest.mark.parametrize("name", ON_VITS)
def test_features_are_unit_rows_and_zeros_for_an_empty_mask(name, operators, tiny, pixels) -> None:
    found = operators[name](tiny, pixels, squares())
    assert found.shape == (4, tiny.embed_dim)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.tensor([1.0, 1, 1, 0]))


@pytest.mark.parametrize("name", ON_VITS)
def test_no_masks_give_no_rows(name, operators, tiny, pixels) -> None:
    assert operators[name](tiny, pixels, Proposals.empty((SIDE, SIDE))).shape == (0, tiny.embed_dim)


@pytest.mark.parametrize("name", ON_VITS)
def test_masks_of_a_larger_photo_land_in_the_same_place(name, operators, tiny, pixels) -> None:
    small = squares().select(slice(0, 2))
    large = Proposals.from_masks(small.masks().repeat(3, axis=1).repeat(3, axis=2))
    run = operators[name]
    torch.testing.assert_close(run(tiny, pixels, large), run(tiny, pixels, small), atol=5e-3, rtol=0)


@pytest.mark.parametrize("stride", [None, SIDE // 2], ids=["one window", "a mask half in two of them"])
@pytest.mark.parametrize("threshold", [0.5, 0.9], ids=["patches half covered", "patches covered alike"])
def test_rounding_does_not_decide_what_a_mask_sees(stride, threshold, tiny, monkeypatch) -> None:
    pixels = torch.randn(1, 3, SIDE, 2 * SIDE)
    masks = np.zeros((2, SIDE, 2 * SIDE), bool)
    masks[0, 4:20, 24:40] = True  # a row of patches half covered, one whole
    masks[1, 4:12, 28:36] = True  # a quarter of four patches
    windows = None if stride is None else WindowGrid.place(SIDE, 2 * SIDE, SIDE, stride, tiny.patch_size)

    def look() -> torch.Tensor:
        return cls_mask(tiny, pixels, Proposals.from_masks(masks), windows=windows, threshold=threshold)

    def rounded(share: Callable[..., torch.Tensor], *given: object) -> torch.Tensor:
        exact = share(*given)
        return exact * (1 + 3e-6 * torch.randn_like(exact))

    want = look()
    for name in ("window_cover", "window_areas"):
        monkeypatch.setattr(queries, name, partial(rounded, getattr(queries, name)))
    for _ in range(3):
        close(look(), want)


@pytest.mark.parametrize("name", ["cls_mask", "crop"])
def test_a_mask_of_everything_gives_the_image_embedding(name, tiny, pixels) -> None:
    found = OPERATORS[name].run(tiny, pixels, Proposals.from_masks(np.ones((1, SIDE, SIDE), bool)))
    close(found, F.normalize(tiny.encode_image(pixels), dim=-1))


@pytest.mark.parametrize("start", [0, 3, 6])
def test_copies_that_see_everything_end_as_cls(start, tiny) -> None:
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.manual_seed(2))
    tokens = 1 + (SIDE // tiny.patch_size) ** 2
    found = look(cls_tower(tiny, "cls_mask"), pixels, torch.zeros(3, 2, tokens), start=start)
    close(found, tiny.encode_image(pixels)[:, None].expand(-1, 2, -1))


def test_copies_have_no_place_in_a_tower_with_rotary_positions() -> None:
    """CLS has none either; were the copies turned like patches, they could not end as CLS does."""
    vision = {"image_size": 64, "timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token"}
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
    with mock.patch.object(open_clip.timm_model.timm, "create_model", partial(timm.create_model, **sizes)):
        model = open_clip.CustomTextCLIP(24, {**vision, "timm_proj": None}, TINY["text_cfg"])
    backbone = wrap(model.eval().requires_grad_(False))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.manual_seed(4))
    found = look(cls_tower(backbone, "cls_mask"), pixels, torch.zeros(1, 2, 17))
    close(found, backbone.encode_image(pixels)[:, None].expand(-1, 2, -1))


def test_a_copy_ignores_what_lies_outside_its_mask_in_the_first_block_on(tiny, pixels) -> None:
    """With a tower of one block, pixels outside the mask cannot reach a copy that does not see CLS."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 1}}
    shallow = wrap(random_clip(config=config))
    other = pixels.clone()
    other[..., 16:] = 0
    left = np.zeros((1, SIDE, SIDE), bool)
    left[..., :16] = True
    masks = Proposals.from_masks(left)
    first, second = (cls_mask(shallow, p, masks, see_cls=False) for p in (pixels, other))
    torch.testing.assert_close(first, second)
    assert (cls_mask(shallow, other, Proposals.from_masks(~left), see_cls=False) - second).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"see_cls": False}, {"threshold": 0.9}, {"soft": 1.0}, {"start": 5}])
def test_no_option_leaves_a_small_mask_without_a_patch_to_see(options, tiny, pixels) -> None:
    assert torch.isfinite(cls_mask(tiny, pixels, squares(), **options)).all()


def test_a_region_is_looked_at_in_the_windows_that_see_it(tiny) -> None:
    pixels = torch.randn(1, 3, SIDE, 3 * SIDE, generator=torch.manual_seed(3))
    windows = WindowGrid.place(SIDE, 3 * SIDE, SIDE, SIDE, tiny.patch_size)
    mask = np.zeros((1, SIDE, 3 * SIDE), bool)
    mask[0, 4:20, 2 * SIDE + 5 : 2 * SIDE + 20] = True
    found = cls_mask(tiny, pixels, Proposals.from_masks(mask), windows=windows)
    alone = cls_mask(tiny, pixels[..., 2 * SIDE :], Proposals.from_masks(mask[..., 2 * SIDE :]))
    close(found, alone)


def test_the_foveal_bias_comes_close_to_falip_run_box_by_box(tiny, pixels) -> None:
    boxes = torch.tensor([[8.0, 8, 31, 31]])
    own = tiny.encode_dense(pixels, "falip", hints=Hints(boxes=boxes)).cls
    plain = tiny.encode_image(pixels)
    shared = cls_bias(tiny, pixels, Proposals.from_boxes(boxes.numpy(), (SIDE, SIDE)), start=3)
    own, plain = F.normalize(own, dim=-1), F.normalize(plain, dim=-1)
    assert float((shared * own).sum()) > float((plain * own).sum())


def test_the_foveal_bias_is_a_gaussian_over_the_box_stretched_to_its_peak() -> None:
    touched = torch.zeros(4, 5, 7, dtype=torch.bool)
    touched[0, 1, 2] = touched[0, 3, 5] = True  # a box of 3 x 4, though few of its patches are touched
    touched[1, 4, 6] = True
    touched[2] = True  # the last one is nowhere
    found = _bumps(touched, BoxAttention(std=2.0, peak=0.3))
    y, x = torch.meshgrid(torch.arange(3.0) - 1, torch.arange(4.0) - 1.5, indexing="ij")
    bump = torch.exp(-(y**2 + x**2) / 8)
    torch.testing.assert_close(found[0, 1:4, 2:6], 0.3 * (bump - bump.min()) / (bump.max() - bump.min()))
    assert found[0].count_nonzero() == 8, "the corners are 0, and so is all outside"
    assert found[1].count_nonzero() == 1
    assert found[1, 4, 6] == pytest.approx(0.3)
    assert found[2].max() == pytest.approx(0.3)
    assert not found[3].any()


@pytest.mark.parametrize(
    "masks",
    [
        Proposals.from_boxes([[-9, -9, 12.5, 8.25], [20.2, 20.2, 20.6, 20.7]], (SIDE, SIDE)),
        Proposals.from_masks(np.arange(7)[:, None, None] < np.full((SIDE, SIDE), 6)),
    ],
    ids=["boxes over the edge, thin and of floats", "masks that are the same, and an empty one"],
)
@pytest.mark.parametrize("name", ON_VITS)
def test_odd_regions_are_finite(name, masks, operators, tiny, pixels) -> None:
    found = operators[name](tiny, pixels, masks)
    assert torch.isfinite(found).all()
    filled = torch.from_numpy(masks.areas > 0)
    torch.testing.assert_close(found.norm(dim=1), filled.float())


def test_five_thousand_masks(tiny, pixels) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, SIDE - 7, (5000, 2))
    masks = Proposals.from_boxes(
        np.concatenate([corners, corners + rng.integers(1, 7, (5000, 2))], axis=1), (SIDE, SIDE)
    )
    for name in ("pool", "roi", "cls_mask"):
        found = OPERATORS[name].run(tiny, pixels, masks)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5000))


@pytest.mark.parametrize(
    ("name", "options"),
    [("crop", {"fill": f}) for f in ("mean", "zero", "blur", "keep")]
    + [("crop", {"square": s}) for s in ("stretch", "pad", "context")]
    + [("crop", {"expand": (1.0, 1.5)})]
    + [("visual_prompt", {"style": s}) for s in ("circle", "contour", "blur", "grey", ("circle", "blur"))],
)
def test_every_option_of_crops_and_prompts_changes_something(name, options, tiny, pixels) -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    ellipse = Proposals.from_masks((((x - 18) / 9) ** 2 + ((y - 11) / 5) ** 2 < 1)[None])
    found = OPERATORS[name].run(tiny, pixels, ellipse, **options)
    difference = float((found - OPERATORS[name].run(tiny, pixels, ellipse)).abs().max())
    assert np.isfinite(difference)
    is_default = options in ({"fill": "mean"}, {"square": "stretch"}, {"style": "circle"})
    assert (difference < 1e-6) == is_default


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("cls_msk", OptionError, "closest: cls_mask"),
        ("pool+pool", OptionError, "each once"),
        ({}, OptionError, "at least one"),
        ({"pool": 0.0}, OptionError, "weight above 0"),
        ("alpha", ModelError, "Alpha-CLIP"),
        ("crop_prompted", ModelError, "OVSeg"),
    ],
)
def test_unusable_operators_are_refused_in_one_line(spec, error, match) -> None:
    with pytest.raises(error, match=match) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_operators_that_a_model_cannot_run_are_refused(tiny, pixels) -> None:
    with pytest.raises(OptionError, match="closest: mean"):
        OPERATORS["crop"].run(tiny, pixels, squares(), fill="men")
    with pytest.raises(OptionError, match="style is 'square'"):
        OPERATORS["visual_prompt"].run(tiny, pixels, squares(), style="square")
    with pytest.raises(ModelError, match="start 7 leaves no block"):
        cls_mask(tiny, pixels, squares(), start=7)
    with pytest.raises(RecipeError, match="classify_then_pool"):
        OPERATORS["pool"].run(tiny, pixels, squares(), recipe="textregion")
    averaged = wrap(random_clip(config={**TINY, "vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}}))
    with pytest.raises(ModelError, match="no image embedding from such a token"):
        cls_mask(averaged, pixels, squares())
