"""What is written in a recipe is honoured: each slot and each field changes the output, or it is refused when made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.inference import WindowGrid, window_scores
from densevl.inference.stitching import encode_stitched
from densevl.recipes import (
    AddCls,
    Affinity,
    BalancedMaps,
    BlockAttention,
    BlockInputs,
    BoxAttention,
    Contributions,
    CosineAttention,
    FeatureSurgery,
    Floor,
    Gaussian,
    Identity,
    JoinedFeatures,
    JoinedProjections,
    LabelFeedback,
    LabelPropagation,
    Layer,
    OtherBlocks,
    OwnCosines,
    PairedHeads,
    PooledRegions,
    Proxy,
    Recipe,
    RegionEmbedding,
    Regions,
    Relative,
    RepairByAttention,
    RepairByDensity,
    SamAttention,
    ScoredSources,
    ScoreFeedback,
    SecondStream,
    SelfAttention,
    Smooth,
    Softmax,
    Tap,
    Tokens,
    TwoPass,
    get,
    names,
)
from densevl.recipes.part import Part
from recipe_hints import hints

SIZE = (32, 64)  # two windows of 32, neither of the position grid's size when they are joined
TEXT = F.normalize(torch.randn(4, 24, generator=torch.Generator().manual_seed(3)), dim=-1)
FOREGROUND = torch.tensor([True, True, True, False])
DINO = Proxy("dino_vitb8")


def pixels_of(size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Noise that is loud to the left and quiet to the right, so that patches are alike and unlike."""
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(3, 0, size[1]) + torch.linspace(-2, 2, size[0])[:, None]


def outputs(tiny, recipe: Recipe) -> list[torch.Tensor]:
    """All that comes of a recipe: features, CLS, affinity, and scores over two windows."""
    pixels = pixels_of((32, 48))
    # a proxy of finer grid, so that working on it shows; not a square, so that swapping it shows
    dense = tiny.encode_dense(pixels, recipe, hints=hints(recipe, pixels, patch=4))
    found = [dense.features, dense.cls, dense.affinity, dense.score(TEXT, FOREGROUND)]
    pixels, crop = pixels_of(), None if "boxes" in recipe.reads else 32
    windows = WindowGrid.place(*SIZE, crop, 24, 8, "pixel" if recipe.stitch is None else "patch")
    given = hints(recipe, pixels, patch=4)
    scores, _ = window_scores(tiny, pixels, TEXT, windows, recipe=recipe, hints=given, foreground_T=FOREGROUND)
    found.append(scores)
    return [torch.empty(0) if one is None else one for one in found]


def differ(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def without(value: Any) -> Iterator[tuple[str, Any]]:
    """A value with one thing taken back to its default, for each thing that is not: in a part, or in parts of it."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            for what, changed in without(item):
                yield f"[{index}]{what}", (*value[:index], changed, *value[index + 1 :])
        return
    if not is_dataclass(value) or not isinstance(value, (Part, Recipe)):
        return
    for entry in fields(value):
        if not entry.compare or entry.name == "name":
            continue
        own = getattr(value, entry.name)
        if entry.default is not MISSING and own != entry.default:
            yield f".{entry.name}", (value, entry.name, entry.default)
        for what, changed in without(own):
            yield f".{entry.name}{what}", (value, entry.name, changed)


def build(change: Any) -> Any:
    """Make what `without` describes; raises RecipeError where it is refused."""
    if isinstance(change, tuple) and len(change) == 3 and isinstance(change[1], str) and is_dataclass(change[0]):
        value, name, inner = change
        return replace(value, **{name: build(inner)})
    return tuple(map(build, change)) if isinstance(change, tuple) else change


NO_EFFECT_HERE = {
    # all cosines of this random tower's ninth block are above 0.6; the parity tests pin the floor of 0.4
    ("sfp", ".attention.terms[2][1].rule.floor"),
    ("sfp", ".adds[0].attention.rule.floor"),
    # which region is none matters to the embedding of regions only where that one would be merged with another
    ("corrclip", ".adds[1].within.blank"),
    # the embedding of regions sees them alone; what belongs to none is one of them there
    ("corrclip_v2", ".adds[1].within.blank"),
    # of towers of 24 and 32 blocks; see test_blocks_of_deep_towers_are_the_authors
    ("corrclip", ".adds[0].deeper"),
    ("corrclip_v2", ".adds[0].deeper"),
}


def assert_honoured(tiny, recipe: Recipe) -> None:
    want = outputs(tiny, recipe)
    for what, change in without(recipe):
        try:
            less = build(change)
        except RecipeError:
            continue
        changed = differ(want, outputs(tiny, less))
        assert changed or (recipe.name, what) in NO_EFFECT_HERE, f"{what} of {recipe!r} changes nothing"


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("compat", [False, True], ids=["", "compat"])
def test_all_that_an_entry_says_is_honoured(tiny, name, compat) -> None:
    recipe = get(name)
    if compat and not recipe.published:
        pytest.skip("its authors' code makes no slip")
    assert_honoured(tiny, recipe.as_published() if compat else recipe)


LIKE = Affinity(Tap(9), Relative(3.0, 1.0, floor=0.8))
BORROWED = Affinity(DINO, Softmax(4.0))
FINE = Affinity(DINO, Relative(), grid="proxy")
WITHIN = Affinity(DINO, Softmax(4.0), Regions(merge=0.2))
NEAR = SelfAttention("kk", Gaussian(1.5), temperature=0.7)
POOLS: dict[str, list[Any]] = {
    "attention": [
        SelfAttention("qk"),
        Identity(),
        SelfAttention("qq") + SelfAttention("kk"),
        NEAR,
        CosineAttention("vv", iterations=1),
        CosineAttention("qk", 4.0, neighbourhood=Gaussian(1.0)),
        0.4 * NEAR + 0.6 * BlockAttention("qk", (6, 7)),
        BalancedMaps((1, 2, 3, 8)),
        BoxAttention(),
        LIKE,
        BORROWED,
        FINE,
        Affinity(DINO, Relative(), grid="proxy", swapped=True),
        WITHIN,
        Affinity(Tap(9, repaired=True), Softmax(8.0)),
        0.5 * LIKE + 0.5 * NEAR,
        PairedHeads(DINO, neighbourhood=Gaussian(2.0), rank=3),
        TwoPass(NEAR, LabelFeedback()),
        TwoPass(0.5 * NEAR + 0.5 * Identity(), LabelFeedback(literal=True)),
        TwoPass(BORROWED, ScoreFeedback()),
        TwoPass(SelfAttention("qq"), ScoreFeedback(sharpness=2.0)),
    ],
    "residual": [True, False, False],
    "ffn": [True, False, False],
    "blocks": [1, 1, 1, 1, 2, SecondStream(3)],
    "before": [
        (),
        (),
        (RepairByDensity(neighbours=4, share=0.2),),
        (RepairByAttention(), Smooth(Tap(9, repaired=True), Floor(0.1))),
        (Smooth(DINO, Floor(0.2)),),
    ],
    "after": [(), (), (AddCls(0.3),), (Smooth(Tap(4), Floor(0.1)), AddCls(0.2)), (Smooth(DINO, Softmax(3.0)),)],
    "adds": [
        (),
        (),
        (OtherBlocks((4, 5, 8)),),
        (OtherBlocks((4, 8), mean=True, attention=SelfAttention("vv"), after_norm=True),),
        (OtherBlocks((5,), attention=LIKE),),
        (BlockInputs((2, 3, 8)),),
        (RegionEmbedding(Regions(), 0.4),),
        (OtherBlocks((6,)), RegionEmbedding(Regions(merge=0.3), 0.4)),
    ],
    "joint": [(), (), (Smooth(DINO, Floor(0.2)),)],
    "readout": [
        Tokens(),
        Tokens(),
        Tokens(likeness=11),
        FeatureSurgery(heat=3.0),
        ScoredSources(50.0, 0.2),
        Contributions(),
        Layer(5),
        PooledRegions(),
    ],
    "stitch": [
        *(None, None, JoinedProjections(), JoinedFeatures()),
        *(JoinedFeatures(SamAttention(factor=0.5)), JoinedFeatures(OwnCosines())),
    ],
    "spread": [None, None, None, LabelPropagation(DINO, neighbours=9)],
    "position_rule": ["scale_factor", "size", "size_antialias", "bilinear", "bilinear_half", "square"],
}  # fmt: skip
COMBINATIONS, SLICES = 150, 10


def combinations() -> list[Recipe]:
    """Random recipes that are not refused; slots are drawn towards the default so that some survive."""
    draw, made = random.Random(0), []
    while len(made) < COMBINATIONS:
        slots = {slot: draw.choice(pool) for slot, pool in POOLS.items() if draw.random() < 0.45}
        try:
            made.append(Recipe(f"random_{len(made)}", **slots))
        except RecipeError:
            continue
    return made


@pytest.mark.parametrize("part", range(SLICES))
def test_random_combinations_run_and_are_honoured_or_refused(tiny, part) -> None:
    for recipe in combinations()[part::SLICES]:
        assert_honoured(tiny, recipe)


STITCHES = [JoinedProjections(), JoinedFeatures()]


@pytest.mark.parametrize("stitch", STITCHES, ids=lambda stitch: type(stitch).__name__)
@pytest.mark.parametrize("size", [(32, 48), (56, 40)], ids=str)
@pytest.mark.parametrize("name", names())
def test_one_window_over_the_image_is_as_good_as_not_stitching(tiny, name, size, stitch) -> None:
    bare = replace(get(name), stitch=None, spread=None, published={}, settings={})
    try:
        recipe = replace(bare, stitch=stitch)
    except RecipeError as error:
        pytest.skip(str(error))
    pixels = pixels_of(size)
    given = replace(hints(recipe, pixels), pixels=pixels)
    want = tiny.encode_dense(pixels, bare, hints=hints(bare, pixels))
    windows = WindowGrid.place(*size, None, 1, 8, "patch")
    stitched, _ = encode_stitched(tiny, pixels, windows, recipe, given, batch=4)
    for got in (stitched, tiny.encode_dense(pixels, recipe, hints=hints(recipe, pixels))):
        torch.testing.assert_close(got.features, want.features, atol=2e-5, rtol=0)
        torch.testing.assert_close(got.score(TEXT), want.score(TEXT), atol=2e-5, rtol=0)
        assert (got.cls is None) == (want.cls is None)
        if want.cls is not None:
            torch.testing.assert_close(got.cls, want.cls, atol=2e-5, rtol=0)


REFUSED = {
    # stitching that would be wrong is refused, with the reason in words
    "JoinedProjections": {
        "clip_surgery",
        "clip_feature_surgery",
        "gem",
        "falip",
        "sc_clip",
        "sfp",
        "clip_prs",
        "layer_9",
    },
    "JoinedFeatures": {"cliptrase", "cliper", "clip_prs", "falip", "textregion", "layer_9"},
}


@pytest.mark.parametrize("stitch", STITCHES, ids=lambda stitch: type(stitch).__name__)
def test_stitching_is_refused_where_it_cannot_be_right_and_nowhere_else(stitch) -> None:
    refused = set()
    for name in names():
        try:
            replace(get(name), stitch=stitch, spread=None, published={}, settings={})
        except RecipeError:
            refused.add(name)
    assert refused == REFUSED[type(stitch).__name__]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("compat", [False, True], ids=["", "compat"])
def test_scores_do_not_depend_on_the_windows_of_a_pass(tiny, name, compat) -> None:
    recipe = get(name).as_published() if compat else get(name)
    if "boxes" in recipe.reads:
        pytest.skip("a box is for one image as a whole")
    pixels = pixels_of((40, 72))
    blend = "pixel" if recipe.stitch is None else "patch"
    windows = WindowGrid.place(40, 72, 32, 16, 8, blend)
    given = hints(recipe, pixels)
    one, five = (
        window_scores(tiny, pixels, TEXT, windows, recipe=recipe, hints=given, batch=batch)[0] for batch in (1, 5)
    )
    torch.testing.assert_close(one, five, atol=2e-5, rtol=0)
