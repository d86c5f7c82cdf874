"""Every family of image tower open_clip can build, small and with random weights, held against the library's own."""

from __future__ import annotations

import copy
import hashlib
import re
from functools import partial
from unittest import mock

import open_clip
import pytest
import timm
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIPVisionCfg
from timm.models.vitamin import VitCfg
from torch import nn

from conftest import TINY, close, wrap
from densevl import Explainer
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.towers import NativeViT, PooledResNet, TimmViT, WholeTower, tower_of
from densevl.errors import ImageError, ModelError, RecipeError
from densevl.recipes import Recipe, SelfAttention
from densevl.recipes.catalogue import names
from recipe_hints import hints

TEXT = TINY["text_cfg"]
NATIVE = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
CONV = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
FAST = {"embed_dims": (16, 16, 32, 32), "layers": (1, 1, 1, 1)}
STEM = VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8, head_type="1d")
COCA = {"width": 16, "heads": 2, "layers": 1, "context_length": 20, "vocab_size": 49408, "attn_pooler_heads": 2}
CUSTOM = {
    "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True,
    "ls_init_value": 0.1,
}  # fmt: skip


def _timm(arch: str, pool: str, proj: str | None, size: int = 64, **small: object) -> dict:
    """A vision config of timm, and the arguments that make the named architecture small."""
    vision = {"image_size": size, "timm_model_name": arch, "timm_pool": pool, "timm_proj": proj}
    return {"vision": vision, "small": small}


FAMILIES = {
    "native": {"vision": NATIVE},
    "native, custom blocks": {"vision": NATIVE | CUSTOM},
    "average after norm": {"vision": NATIVE | {"pool_type": "avg"}},
    "CLIPA": {"vision": NATIVE | {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "CoCa": {
        "vision": NATIVE | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "coca": True,
    },
    "CoCa, average": {
        "vision": NATIVE
        | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True, "pool_type": "avg"},
        "coca": True,
    },
    "CoCa without pooler": {"vision": NATIVE | {"output_tokens": True}, "coca": True},
    "ResNet": {"vision": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}},
    "SigLIP": _timm("vit_base_patch16_siglip_224", "map", "none", **SMALL),
    "MobileCLIP-B": _timm("vit_base_mci_224", "token", None, depth=2, img_size=64),
    "MobileCLIP2-L": _timm("vit_large_patch14_clip_224", "token", None, 56, **SMALL | {"img_size": 56}),
    "ViTamin": _timm("vitamin_small_224", "", "linear", **SMALL, embed_cfg=STEM),
    "average of timm": _timm("vit_medium_patch16_gap_256", "", "linear", **SMALL),
    "registers": _timm("vit_medium_patch16_reg4_gap_256", "avg", "linear", **SMALL),
    "EVA01": _timm("eva_giant_patch14_224", "token", None, 56, **SMALL | {"img_size": 56}),
    "EVA02": _timm("eva02_base_patch16_clip_224", "token", None, **SMALL),
    "EVA02, joint projection": _timm("eva02_large_patch14_clip_224", "token", None, 56, **SMALL | {"img_size": 56}),
    "PE": _timm("vit_pe_core_tiny_patch16_384", "map", None, **SMALL, attn_pool_num_heads=2),
    "PE without CLS": _timm("vit_pe_core_gigantic_patch14_448", "map", None, 56, **SMALL | {"img_size": 56},
                            attn_pool_num_heads=2),
    "mixed rope": _timm("vit_base_patch16_rope_mixed_224", "token", "linear", **SMALL),
    "relative positions": _timm("vit_relpos_medium_patch16_cls_224", "", "linear", **SMALL),
    "ConvNeXt": _timm("convnext_tiny", "", "linear", **CONV),
    "ConvNeXt, MLP": _timm("convnext_tiny", "", "mlp", **CONV),
    "MobileCLIP-S": _timm("fastvit_mci0", "avg", None, **FAST),
    "MobileCLIP2-S3": _timm("fastvit_mci3", "avg", None, 128, layers=(1, 1, 1, 1, 1), embed_dims=(16, 16, 32, 32, 32)),
    "Swin": _timm("swin_base_patch4_window7_224", "", "linear", embed_dim=16, depths=(1, 2, 2, 1), img_size=64,
                  num_heads=(2, 2, 2, 2), window_size=2),
}  # fmt: skip
WHOLE = ["ResNet", "ConvNeXt", "ConvNeXt, MLP", "MobileCLIP-S", "MobileCLIP2-S3", "Swin"]
FIXED = ["relative positions", "Swin"]
TAKEN_APART = [name for name in FAMILIES if name not in [*WHOLE, "relative positions"]]
ALONE = [  # one token alone is something their own pool takes
    "CoCa", "ResNet", "SigLIP", "ViTamin", "PE", "PE without CLS", "ConvNeXt", "ConvNeXt, MLP", "MobileCLIP-S",
    "MobileCLIP2-S3", "Swin",
]  # fmt: skip


def _build(name: str) -> OpenClipBackbone:
    family = FAMILIES[name]
    torch.manual_seed(0)
    text = TEXT | ({"embed_cls": True, "output_tokens": True} if "coca" in family else {})
    config = {"embed_dim": 24, "vision_cfg": dict(family["vision"]), "text_cfg": text}
    small = partial(timm.create_model, **family.get("small", {}))
    with mock.patch.object(open_clip.timm_model.timm, "create_model", small):
        if "coca" in family:
            model = open_clip.CoCa(**config, multimodal_cfg=COCA)
        else:
            model = open_clip.CustomTextCLIP(**config | {"embed_dim": 32 if name == "SigLIP" else 24})
    return wrap(_filled(model))


def _filled(model: nn.Module) -> nn.Module:
    """Random weights under which every part has an effect: no scale, shift or position stays at its default."""
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        with torch.no_grad():
            if key.endswith(("running_mean", "running_var")):
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
            elif "logit" in key or not isinstance(tensor, nn.Parameter):
                continue
            elif any(part in key for part in ("pos", "token", "latent", "query", "class_emb")) and tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape) * 0.3)
            elif tensor.ndim < 2:
                tensor += 0.2 * torch.randn(tensor.shape)
            else:
                tensor.copy_(torch.randn(tensor.shape) * (1.2 / tensor[0].numel() ** 0.5))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbones() -> dict[str, OpenClipBackbone]:
    """Built when first asked for."""

    class Lazy(dict):
        def __missing__(self, name: str) -> OpenClipBackbone:
            self[name] = _build(name)
            return self[name]

    return Lazy()


def _pixels(backbone: OpenClipBackbone, grid: tuple[int, int] | None = None, batch: int = 2) -> torch.Tensor:
    patch = backbone.patch_size
    size = tuple(n * patch for n in grid) if grid else backbone.tower.image_size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 1e-3
    close(found, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_vanilla_is_encode_image(backbones, name) -> None:
    backbone = backbones[name]
    pixels = _pixels(backbone)
    dense = backbone.encode_dense(pixels, "vanilla")
    _close(dense.cls, backbone.encode_image(pixels))
    assert dense.features.shape == (2, backbone.embed_dim, *(n // backbone.patch_size for n in pixels.shape[2:]))
    assert not torch.allclose(backbone.encode_text(["a cat"]).norm(dim=-1), torch.ones(1), atol=1e-4)


@pytest.mark.parametrize("name", TAKEN_APART)
@pytest.mark.parametrize("grid", [None, (2, 5)])
def test_a_block_spelled_out_is_the_block(backbones, name, grid) -> None:
    backbone = backbones[name]
    pixels = _pixels(backbone, grid)
    apart = Recipe("spelled", SelfAttention("qk", temperature=1 + 1e-12), position_rule="size")
    spelled = backbone.encode_dense(pixels, apart)
    _close(spelled.features, backbone.encode_dense(pixels, "vanilla", position_rule="size").features)


@pytest.mark.parametrize("name", TAKEN_APART)
def test_every_projection_is_the_same_alone_and_together(backbones, name) -> None:
    tower = backbones[name].tower
    x_BND = tower.embed(_pixels(backbones[name], (3, 2)), "size")
    block = tower.view(tower.depth - 1, (3, 2))
    together = block.project(block.norm(x_BND), "qkv")
    for which in ("q", "k", "v", "qk", "kv", "qv"):
        for key, part in block.project(block.norm(x_BND), which).items():
            close(part, together[key])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FIXED])
@pytest.mark.parametrize("rule", ["size", "scale_factor"])
def test_any_grid_is_taken(backbones, name, rule) -> None:
    backbone = backbones[name]
    pixels = _pixels(backbone, (2, 5))
    dense = backbone.encode_dense(pixels, position_rule=rule)
    assert dense.features.shape == (2, backbone.embed_dim, 2, 5)
    assert torch.isfinite(dense.features).all()
    alone = backbone.encode_dense(pixels[1:], position_rule=rule)
    close(alone.features[0], dense.features[1])


@pytest.mark.parametrize("name", [name for name in FAMILIES if "small" in FAMILIES[name] and name not in FIXED])
def test_another_grid_is_what_timm_makes_of_it(backbones, name) -> None:
    backbone = backbones[name]
    pixels = _pixels(backbone, (3, 5))
    resized = copy.deepcopy(backbone._model.visual)
    resized.set_input_size(tuple(pixels.shape[2:]))
    _close(backbone.encode_dense(pixels, "vanilla", position_rule="size_antialias").cls, resized(pixels))


@pytest.mark.parametrize("name", FIXED)
def test_a_tower_of_one_size_says_so(backbones, name) -> None:
    with pytest.raises(ImageError, match="takes 64x64 only: use windows of that size, crop=64"):
        backbones[name].encode_dense(_pixels(backbones[name], (2, 6)))


@pytest.mark.parametrize("name", ALONE)
def test_a_patch_is_read_as_if_it_were_the_only_one(backbones, name) -> None:
    tower = backbones[name].tower
    with torch.no_grad():
        x_BND = tower.embed(_pixels(backbones[name]), "size")
        read_BNE = tower.read(x_BND)
        for index in {0, 1, x_BND.shape[1] - 1}:
            _close(read_BNE[:, index], tower.pool(x_BND[:, index : index + 1]))


def test_the_readout_of_cls_is_all_that_reads_it(backbones) -> None:
    for name in ("native", "native, custom blocks", "CoCa without pooler"):
        tower = backbones[name].tower
        x_BND = torch.randn(2, 5, 32)
        norm, matrix_DE = tower.cls_readout
        _close(norm(x_BND[:, 0]) @ matrix_DE, tower.pool(x_BND))
    assert all(getattr(backbones[name].tower, "cls_readout", None) is None for name in ("CoCa", "CLIPA", "SigLIP"))


@pytest.mark.parametrize("name", ["average after norm", "average of timm"])
def test_an_average_without_a_last_norm_is_the_average_of_what_is_read(backbones, name) -> None:
    dense = backbones[name].encode_dense(_pixels(backbones[name]), "vanilla")
    _close(dense.features.mean(dim=(2, 3)), dense.cls)


@pytest.mark.parametrize("name", [*WHOLE, "relative positions"])
def test_a_recipe_on_a_tower_that_cannot_be_taken_apart_is_refused_in_a_sentence(backbones, name) -> None:
    backbone = backbones[name]
    assert backbone.default_recipe == "vanilla"
    with pytest.raises(RecipeError) as caught:
        backbone.encode_dense(_pixels(backbone), "sclip")
    assert len(str(caught.value)) > 40
    assert "\n" not in str(caught.value)
    backbone.encode_dense(_pixels(backbone))  # what it takes by default


@pytest.mark.parametrize("name", FAMILIES)
def test_use_leaves_the_model_as_it_was(backbones, name) -> None:
    backbone = backbones[name]
    before = _everything(backbone._model)
    backbone.encode_dense(_pixels(backbone), "vanilla")
    if name not in FIXED:
        backbone.encode_dense(_pixels(backbone, (2, 3)))
    if name in TAKEN_APART:
        backbone.encode_dense(_pixels(backbone, (2, 3)), "clearclip")
    assert _everything(backbone._model) == before


def _everything(model: nn.Module) -> tuple:
    """Every tensor with its bytes, every plain attribute, every hook."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    digest = [(key, hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest()) for key, t in tensors]
    plain = [
        (key, attribute, repr(value))
        for key, module in model.named_modules()
        for attribute, value in sorted(vars(module).items())
        if isinstance(value, (bool, int, float, str, tuple))
    ]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return digest, plain, hooks


@pytest.mark.parametrize("name", ["SigLIP", "PE", "EVA02"])
def test_recipes_run_on_timm_towers(backbones, name) -> None:
    backbone = backbones[name]
    pixels = _pixels(backbone, (3, 4))
    vanilla = backbone.encode_dense(pixels, "vanilla").features
    for recipe in ("maskclip", "sclip", "naclip", "clip_surgery"):
        if recipe == "clip_surgery":
            with pytest.raises(RecipeError, match="blocks"):  # these towers are three blocks deep
                backbone.encode_dense(pixels, recipe)
            continue
        features = backbone.encode_dense(pixels, recipe).features
        assert features.shape == vanilla.shape
        assert not torch.allclose(features, vanilla, atol=1e-3)
    assert "sclip" in names()


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        (NATIVE | {"pool_type": "none"}, "gives all tokens instead of one embedding"),
        (NATIVE | {"attentional_pool": "parallel", "attn_pooler_heads": 2}, "gives all tokens"),
        (NATIVE | {"patch_size": [8, 4]}, "patches are 8x4, not square"),
    ],
)
def test_a_tower_without_dense_features_says_why(vision, reason) -> None:
    visual = open_clip.model._build_vision_tower(24, CLIPVisionCfg(**vision))
    with pytest.raises(ModelError, match=reason) as caught:
        tower_of(visual, "mine")
    assert "\n" not in str(caught.value)


def test_an_unknown_tower_is_named() -> None:
    with pytest.raises(ModelError, match="its image tower is a Linear"):
        tower_of(nn.Linear(2, 2), "mine")


@pytest.mark.parametrize(
    ("arch", "kind", "patch"),
    [
        ("ViT-B-32", NativeViT, 32),
        ("ViT-L-14-CLIPA-336", NativeViT, 14),
        ("coca_ViT-B-32", NativeViT, 32),
        ("RN50x4", PooledResNet, 32),
        ("ViT-B-16-SigLIP2-512", TimmViT, 16),
        ("PE-Core-T-16-384", TimmViT, 16),
        ("EVA02-B-16", TimmViT, 16),
        ("ViTamin-XL-384", TimmViT, 16),
        ("MobileCLIP-B", TimmViT, 16),
        ("vit_relpos_medium_patch16_cls_224", TimmViT, 16),
        ("convnext_large_d_320", WholeTower, 32),
        ("MobileCLIP2-S4", WholeTower, 64),
        ("swin_base_patch4_window7_224", WholeTower, 32),
    ],
)
def test_an_architecture_of_open_clip_is_recognised(arch, kind, patch) -> None:
    config = get_model_config(arch)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    tower = tower_of(visual, arch)
    assert isinstance(tower, kind)
    assert (tower.patch_size, tower.embed_dim) == (patch, config["embed_dim"])
    assert all(side % patch == 0 for side in tower.image_size)


def test_no_architecture_of_open_clip_names_a_tower_that_is_not_tried_here() -> None:
    """A newer open_clip may bring towers of another kind; this names them."""
    known = (
        "vit_base_patch", "vit_large_patch", "vit_so400m_patch", "vit_giantopt_patch", "vit_medium_patch16_gap",
        "vit_base_mci", "vit_pe_core", "vit_relpos", "eva_", "eva02_", "vitamin_", "convnext_", "fastvit_", "swin_",
    )  # fmt: skip
    used = {get_model_config(arch)["vision_cfg"].get("timm_model_name") for arch in open_clip.list_models()}
    assert {name for name in used if name and not name.startswith(known)} == set()


@pytest.mark.parametrize("recipe", names())
@pytest.mark.parametrize("name", ["SigLIP", "PE", "EVA02", "CLIPA", "CoCa", "registers"])
def test_any_recipe_runs_or_says_why(backbones, name, recipe) -> None:
    """Rotary positions, towers without CLS and pooled read-outs: no recipe may assume OpenAI's tower."""
    backbone = backbones[name]
    pixels = _pixels(backbone, (3, 4), batch=1)
    given = hints(recipe, pixels, backbone.embed_dim, backbone.patch_size)
    refused = "blocks.*, the tower has|works with the CLS token|split the CLS token|paired heads"
    try:
        dense = backbone.encode_dense(pixels, recipe, hints=given)
    except RecipeError as error:
        if not re.search(refused, str(error)):
            raise
        return
    assert dense.features.shape[:2] == (len(pixels), backbone.embed_dim)
    assert torch.isfinite(dense.features).all()


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("average after norm", "pooled from all patches"),
        ("SigLIP", "pooled from all patches"),
        ("CoCa", "pooled from all patches"),
        ("ResNet", "without blocks"),
        ("ConvNeXt", "without blocks"),
        ("EVA02", "not read from CLS by a norm and a matrix"),
    ],
)
def test_scores_of_towers_that_do_not_split_are_refused(backbones, family, said) -> None:
    with pytest.raises(ModelError, match=said):
        Explainer(backbones[family])


def test_a_tower_whose_heads_are_normed_is_refused(backbones) -> None:
    """What its heads give goes through a norm together, so it is no sum over them."""
    image = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    with pytest.raises(ModelError, match="is no sum over tokens and heads"):
        Explainer(backbones["native, custom blocks"])(image, "cat")
    assert Explainer(backbones["native"])(image, "cat").map.shape == (4, 4)
