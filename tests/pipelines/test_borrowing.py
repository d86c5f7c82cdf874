"""What a recipe borrows: taken as given, loaded by name, the paper's own if left out, refused where it has no use."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from conftest import PHOTOS, random_clip, wrap
from densevl import Recipe, Segmenter
from densevl.backbones import InferenceProtocol
from densevl.backbones.proxies import DinoiserHeads, Proxy
from densevl.errors import DensevlError, ModelError, OptionError, RecipeError
from densevl.images import read_image
from densevl.recipes import SelfAttention, get, names

BORROWING = [name for name in names() if "proxy" in get(name).reads and "sam" not in get(name).reads]
SMALL = InferenceProtocol(short_side=48, crop=32, stride=16)
LABELS = ["cat", "dog | puppy", "sky"]


class Colours(Proxy):
    """A proxy whose features are random filters of a patch; it counts how often it looks."""

    name, patch_size, embed_dim, mean, std = "colours", 4, 12, (0.5,) * 3, (0.25,) * 3

    def __init__(self) -> None:
        self.looks: list[tuple[int, ...]] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        self.looks.append(tuple(pixels.shape))
        filters = torch.randn(self.embed_dim, 3, 4, 4, generator=torch.Generator().manual_seed(7))
        return F.conv2d(pixels, filters, stride=self.patch_size)

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (self._tokens(pixels),) * 3


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


@pytest.fixture(scope="module")
def segments():
    rows, columns = (torch.arange(side) // 40 for side in read_image(PHOTOS / "cat.jpg").shape[:2])
    return rows[:, None] * 20 + columns + (rows[:, None] > 2)


def build(clip, recipe, **options) -> Segmenter:
    return Segmenter(clip, recipe, templates="photo", protocol=SMALL, **options)


@pytest.mark.parametrize("views", [None, "flip+scale"])
@pytest.mark.parametrize("name", BORROWING)
def test_every_recipe_that_borrows_runs_with_the_proxy_given(clip, segments, name, views) -> None:
    proxy = Colours()
    segment = build(clip, name, proxy=proxy, views=views)
    regions = segments if "regions" in get(name).reads else None
    result = segment(PHOTOS / "cat.jpg", LABELS, regions=regions)
    assert result.labels.shape == (300, 451)
    assert result.labels.min() >= 0
    assert result.meta["proxy"] == "colours"
    # once for each view of the whole image, never for each window
    assert len(proxy.looks) == (1 if views is None else 6)


@pytest.mark.parametrize("name", [name for name in names() if get(name).stitch is not None])
def test_recipes_that_stitch_set_the_blend_themselves(clip, name) -> None:
    given = {"proxy": Colours()} if "proxy" in get(name).reads else {}
    if "sam" in get(name).reads:
        pytest.importorskip("segment_anything")
        given["sam"] = "mini-sam"
    for protocol in (SMALL, {"blend": "pixel", "crop": 32, "stride": 16, "short_side": 48}):
        segment = Segmenter(clip, name, protocol=protocol, **given)
        assert segment.protocol.blend == "patch"
    assert SMALL.blend == "pixel"


def test_trident_takes_both_from_mini_sam(clip) -> None:
    pytest.importorskip("segment_anything")
    result = build(clip, "trident", proxy="mini-sam", sam="mini-sam")(PHOTOS / "cat.jpg", LABELS)
    assert (result.meta["proxy"], result.meta["sam"]) == ("mini-sam", "mini-sam")
    assert (result.labels == result.scores.argmax(0)).mean() > 0.999


def test_the_papers_own_is_loaded_when_none_is_given(clip, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "densevl.pipelines.borrowing.load_proxy", lambda name, device: asked.append((name, device)) or Colours()
    )
    assert build(clip, "proxyclip").proxy.name == "colours"
    assert build(clip, "naclip").proxy is None
    build(clip, "lposs", proxy="somewhere.safetensors")
    assert asked == [("dino_vitb8", "cpu"), ("somewhere.safetensors", "cpu")]


@pytest.mark.parametrize(
    ("recipe", "options", "error", "reason"),
    [
        (
            "proxyclip",
            {},
            ModelError,
            r"dino_vitb8.*not at hand: give another with proxy='mini-sam' \(--proxy mini-sam\)",
        ),
        ("trident", {"proxy": Colours()}, ModelError, r"sam_vit_b.*--sam mini-sam"),
        ("trident", {"proxy": Colours(), "sam": Colours()}, ModelError, "'colours' is not an encoder of SAM"),
        ("sclip", {"proxy": "mini-sam"}, RecipeError, "'sclip' borrows nothing from proxy='mini-sam'.*proxyclip"),
        ("proxyclip", {"proxy": Colours(), "sam": "mini-sam"}, RecipeError, "nothing from sam=.*trident"),
        ("proxyclip", {"proxy": "dino_vitb9"}, ModelError, "no proxy 'dino_vitb9'.*dino_vitb8"),
        (
            Recipe("mine", SelfAttention("kk")),
            {"sam": Colours()},
            RecipeError,
            "'mine' borrows nothing from sam='c",
        ),
    ],
    ids=["offline", "offline sam", "not a sam", "no use", "no use for sam", "mistyped", "own recipe"],
)
def test_what_cannot_be_borrowed_is_one_line(clip, monkeypatch, recipe, options, error, reason) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=reason) as caught:
        build(clip, recipe, **options)
    assert isinstance(caught.value, DensevlError)
    assert "\n" not in str(caught.value)


def test_the_proxy_may_look_at_each_window_as_the_papers_do(clip) -> None:
    once, each = Colours(), Colours()
    image = build(clip, "proxyclip", proxy=once)(PHOTOS / "cat.jpg", LABELS)
    window = build(clip, "proxyclip", proxy=each, proxy_scope="window")(PHOTOS / "cat.jpg", LABELS)
    assert (len(once.looks), image.meta["proxy_scope"]) == (1, "image")
    assert sum(batch for batch, *_ in each.looks) == 8  # windows
    assert window.meta["proxy_scope"] == "window"
    assert (image.scores != window.scores).any()
    with pytest.raises(OptionError, match=r"proxy_scope is 'windows' .*closest: window"):
        build(clip, "proxyclip", proxy=Colours(), proxy_scope="windows")


def test_compat_runs_a_recipe_as_its_authors_published_it(clip) -> None:
    ours, theirs = (build(clip, "cliper", compat=compat)(PHOTOS / "cat.jpg", LABELS) for compat in (False, True))
    assert (ours.meta["compat"], theirs.meta["compat"]) == (False, True)
    assert theirs.meta["recipe"] == repr(get("cliper").as_published())
    assert (ours.scores != theirs.scores).any()


def test_heads_trained_on_clips_own_tokens_are_a_proxy(clip) -> None:
    shapes = {"obj_proj.weight": (16, 32, 3, 3), "obj_proj.bias": (16,)}
    shapes |= {"bkg_decoder.weight": (1, 32, 1, 1), "bkg_decoder.bias": (1,)}
    heads = DinoiserHeads({name: 0.1 * torch.randn(*shape) for name, shape in shapes.items()})
    for scope in ("image", "window"):  # they look at windows in any case: there is nothing else they know
        result = build(clip, "dinoiser", proxy=heads, proxy_scope=scope)(PHOTOS / "cat.jpg", LABELS)
        assert result.meta["proxy"] == "dinoiser-heads"
    with pytest.raises(RecipeError, match="borrows nothing from proxy='dinoiser-heads'"):
        build(clip, "sclip", proxy=heads)
