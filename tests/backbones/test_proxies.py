"""Proxies from timm and from bare weights files: the same features as the networks written out, on any grid."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from conftest import close
from densevl.backbones import load_backbone
from densevl.backbones.positions import timm_tokens
from densevl.backbones.proxies import KINDS, known_proxies, load_proxy
from densevl.backbones.proxies.load import TIMM_NAMES
from densevl.backbones.proxies.state import load_timm, read_state
from densevl.backbones.proxies.timm_vit import TimmProxy
from densevl.errors import (
    DensevlError,
    ImageError,
    MissingExtraError,
    ModelError,
    OptionError,
    RecipeError,
    WeightsError,
)
from densevl.weights import hub

NORM = partial(nn.LayerNorm, eps=1e-6)
IMAGE = 32
SIZES = [(32, 32), (16, 48), (40, 24)]


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights in which every part has an effect."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        parameter.data = torch.randn_like(parameter) * spread + (0.5 if parameter.ndim == 1 else 0)
    return model.eval()


def small_vit(patch: int = 8, **settings) -> VisionTransformer:
    sizes = {"img_size": IMAGE, "patch_size": patch, "embed_dim": 96, "depth": 3, "num_heads": 3, "num_classes": 0}
    return shaken(VisionTransformer(**{**sizes, "norm_layer": NORM, "dynamic_img_size": True, **settings}))


def small_eva(**settings) -> Eva:
    sizes = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
    return shaken(Eva(**{**sizes, "use_rot_pos_emb": True, "dynamic_img_size": True, **settings}))


@pytest.fixture(scope="module")
def dino_files(tmp_path_factory) -> dict[int, Path]:
    """Bare weights in DINO's naming, by patch size."""
    folder = tmp_path_factory.mktemp("dino")
    for patch in (8, 4):
        save_file(small_vit(patch).state_dict(), folder / f"{patch}.safetensors")
    return {patch: folder / f"{patch}.safetensors" for patch in (8, 4)}


def written_out(state: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int, rule: str) -> dict[str, torch.Tensor]:
    """A DINO by its formulas, in float64: what each kind should be, (D, h, w); pixels (3, H, W)."""
    w = {key: value.double() for key, value in state.items()}
    kernel = w["patch_embed.proj.weight"]
    patch, width = kernel.shape[-1], kernel.shape[0]
    h, n = pixels.shape[1] // patch, IMAGE // patch
    x = F.unfold(pixels.double()[None], patch, stride=patch)[0].T @ kernel.flatten(1).T + w["patch_embed.proj.bias"]
    table = w["pos_embed"][0, 1:].T.reshape(1, width, n, n)
    g = len(x) // h
    if (h, g) != (n, n):
        if rule == "scale_factor":
            table = F.interpolate(table, scale_factor=((h + 0.1) / n, (g + 0.1) / n), mode="bicubic")
        else:
            table = F.interpolate(table, size=(h, g), mode="bicubic", antialias=True)
    x = torch.cat([w["cls_token"][0] + w["pos_embed"][0, :1], x + table.flatten(2)[0].T])

    def norm(x, name):
        return F.layer_norm(x, (width,), w[name + ".weight"], w[name + ".bias"], 1e-6)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    for block in range(3):
        b = f"blocks.{block}."
        q, k, v = linear(norm(x, b + "norm1"), b + "attn.qkv").split(width, dim=1)
        mixed = []
        for part in torch.arange(width).split(width // heads):
            logits = q[:, part] @ k[:, part].T / len(part) ** 0.5
            mixed.append(logits.softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(mixed, 1), b + "attn.proj")
        x = x + linear(F.gelu(linear(norm(x, b + "norm2"), b + "mlp.fc1")), b + "mlp.fc2")
    kinds = {"tokens": norm(x, "norm"), "q": q, "k": k, "v": v, "q+k": q + k}
    return {kind: value[1:].T.reshape(width, h, g).float() for kind, value in kinds.items()}


@pytest.mark.parametrize("rule", ["scale_factor", "size_antialias"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [8, 4])
def test_a_bare_file_equals_dino_written_out(dino_files, patch, size, rule) -> None:
    proxy = load_proxy(dino_files[patch], device="cpu", position_rule=rule)
    pixels = torch.randn(2, 3, *size)
    want = written_out(read_state(dino_files[patch]), pixels[1], 3, rule)
    for kind in KINDS:
        torch.testing.assert_close(proxy.encode(pixels, kind)[1], want[kind], atol=3e-5, rtol=1e-4)


VITS = {
    "cls": {},
    "registers in the table": {"reg_tokens": 2},
    "registers beside the table, as in DINOv2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.3},
    "no CLS": {"class_token": False, "global_pool": "avg"},
    "norm before, none behind, as in RADIO": {
        "reg_tokens": 7,
        "no_embed_class": True,
        "pre_norm": True,
        "final_norm": 0,
    },
    "no table": {"pos_embed": "none"},
}
EVAS = {
    "biases apart, as in EVA02": {"swiglu_mlp": True, "qkv_fused": False, "scale_mlp": True},
    "fused with q and v biases, table and rotation": {"qkv_fused": True},
    "no table, registers, as in DINOv3": {"use_abs_pos_emb": False, "num_reg_tokens": 4, "qkv_bias": False},
    "rotations of each block": {"rope_type": "mixed", "use_abs_pos_emb": False},
    "plain rope attention, as in PE": {"attn_type": "rope", "no_embed_class": True},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", [*VITS, *EVAS])
def test_every_kind_of_transformer_equals_its_own_forward(model, size) -> None:
    network = small_vit(**VITS[model]) if model in VITS else small_eva(**EVAS[model])
    proxy, pixels = TimmProxy(network, name=model), torch.randn(2, 3, *size)
    prefix, grid = network.num_prefix_tokens, (size[0] // 8, size[1] // 8)
    seen = {}
    attention = network.blocks[-1].attn
    taps = [attention.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))]
    with torch.no_grad():
        tokens = network.forward_features(pixels)
    taps[0].remove()
    want = tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    torch.testing.assert_close(proxy.encode(pixels), want, atol=2e-5, rtol=1e-4)
    weights = dict(attention.named_parameters())
    for index, kind in enumerate("qkv"):
        if attention.qkv is None:
            weight, bias = weights[f"{kind}_proj.weight"], weights.get(f"{kind}_proj.bias")
        else:
            weight = weights["qkv.weight"].chunk(3)[index]
            bias = weights["qkv.bias"].chunk(3)[index] if "qkv.bias" in weights else weights.get(f"{kind}_bias")
        want = F.linear(seen["x"][:, prefix:], weight, bias).unflatten(1, grid).permute(0, 3, 1, 2)
        torch.testing.assert_close(proxy.encode(pixels, kind), want, atol=2e-5, rtol=1e-4)


def test_a_batch_equals_one_by_one_and_the_model_is_untouched(dino_files) -> None:
    proxy = load_proxy(dino_files[8], device="cpu")
    before = {key: value.clone() for key, value in proxy.model.state_dict().items()}
    pixels = torch.randn(3, 3, 24, 40)
    for kind in KINDS:
        alone = torch.cat([proxy.encode(image[None], kind) for image in pixels])
        close(proxy.encode(pixels, kind), alone)
    assert not proxy.encode(pixels).requires_grad
    assert not proxy.model.training
    assert all(torch.equal(before[key], value) for key, value in proxy.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in proxy.model.modules())


def test_clip_pixels_are_renormalised_and_only_resized_where_they_do_not_fit(dino_files) -> None:
    proxy = load_proxy(dino_files[8], device="cpu")
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    rgb = torch.rand(1, 3, 24, 40)

    def normalised(image, mean, std):
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    own = proxy.encode(normalised(rgb, proxy.mean, proxy.std), "k")
    torch.testing.assert_close(proxy.from_clip(normalised(rgb, mean, std), mean, std, "k"), own, atol=1e-5, rtol=1e-4)
    odd = normalised(torch.rand(1, 3, 17, 40), mean, std)
    assert proxy.prepare(odd, mean, std).shape == (1, 3, 24, 40)
    assert proxy.from_clip(odd, mean, std).shape == (1, proxy.embed_dim, 3, 5)
    flat = torch.full((1, 3, 17, 41), 0.3)
    assert proxy.prepare(normalised(flat, mean, std), mean, std).std(dim=(-2, -1)).max() < 1e-6  # nothing is padded


def test_teacher_checkpoints_of_dino_load_like_bare_files(dino_files, tmp_path) -> None:
    state = read_state(dino_files[8])
    teacher = {**{f"backbone.{key}": value for key, value in state.items()}, "head.mlp.0.weight": torch.zeros(2, 2)}
    student = {f"module.{key}": value * 0 for key, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "checkpoint.pth")
    pixels = torch.randn(1, 3, 32, 32)
    got = load_proxy(tmp_path / "checkpoint.pth", device="cpu").encode(pixels)
    assert torch.equal(got, load_proxy(dino_files[8], device="cpu").encode(pixels))


def test_dinov2_naming_goes_through_timms_converter(tmp_path) -> None:
    model = small_vit(reg_tokens=4, no_embed_class=True, init_values=0.3)
    state = dict(model.state_dict())
    cls, offset = state.pop("cls_token"), torch.randn(1, 1, 96)
    published = {
        **state,
        "mask_token": torch.zeros(1, 96),
        "register_tokens": state["reg_token"],
        "cls_token": cls - offset,
        "pos_embed": torch.cat([offset, state["pos_embed"]], dim=1),
    }
    del published["reg_token"]
    torch.save(published, tmp_path / "dinov2.pth")
    other = small_vit(reg_tokens=4, no_embed_class=True, init_values=0.3)
    load_timm(shaken(other, 1), read_state(tmp_path / "dinov2.pth"), tmp_path / "dinov2.pth", "dinov2")
    for key, tensor in model.state_dict().items():
        close(other.state_dict()[key], tensor)


def test_a_timm_name_takes_a_file_and_timms_rule(tmp_path) -> None:
    network = shaken(timm.create_model("test_vit", num_classes=0, dynamic_img_size=True))
    save_file({**network.state_dict(), "head.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    proxy = load_proxy("test_vit", tmp_path / "w.safetensors", "cpu")
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        want = network.forward_features(pixels)[:, network.num_prefix_tokens :].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    torch.testing.assert_close(proxy.encode(pixels), want, atol=1e-5, rtol=1e-4)
    assert (proxy.position_rule, proxy.mean) == ("size_antialias", network.pretrained_cfg["mean"])


@pytest.mark.parametrize("grid", [(8, 8), (6, 9), (11, 4), (3, 3)], ids=str)
def test_radio_sees_the_positions_of_its_own_code_on_any_shape(grid) -> None:
    """RADIO cuts its table from a square; stretched to the grid instead, features differ by half on 336 x 448."""
    radio = pytest.importorskip("transformers.models.radio.modeling_radio", reason="transformers before 5.24")
    from transformers import RadioConfig

    settings = {"hidden_size": 32, "patch_size": 4, "max_img_size": 32, "num_cls_tokens": 1, "num_registers": 2}
    own = radio.RadioPatchEmbeddings(RadioConfig(**settings))
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter)
    network = small_vit(4, img_size=32, embed_dim=32, num_heads=2, reg_tokens=2, no_embed_class=True)
    state = {
        "pos_embed": own.position_embedding,
        "cls_token": own.cls_register_token[None, :1],
        "reg_token": own.cls_register_token[None, 1:],
        "patch_embed.proj.weight": own.patch_projection.weight.unflatten(1, (3, 4, 4)),
        "patch_embed.proj.bias": torch.zeros(32),
    }
    network.load_state_dict(state, strict=False)
    proxy = TimmProxy(network, name="radio", position_rule="square")
    pixels = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
    with torch.no_grad():
        patches = proxy.model.patch_embed(pixels).flatten(1, 2)
        close(timm_tokens(proxy.model, patches, grid, proxy.position_rule), own(pixels))


def test_short_names_exist_in_timm_and_dino_keeps_its_own_rule() -> None:
    pretrained = timm.list_models(pretrained=True)
    assert [name for name, _ in TIMM_NAMES.values() if name not in pretrained] == []
    assert {name for name, (_, rule) in TIMM_NAMES.items() if rule == "scale_factor"} == {
        *(f"dino_vit{size}{patch}" for size in "sb" for patch in (8, 16)),
        *(f"dinov2_vit{size}14" for size in "sblg"),
    }
    assert {name for name, (_, rule) in TIMM_NAMES.items() if rule == "square"} == {"radio_l", "radio_g"}
    assert TIMM_NAMES["radio_b"][1] == "square_aligned"
    assert {"dino_vitb8", "sam_vit_b", "mini-sam", "efficientnet-lite0"} <= set(known_proxies())


def test_efficientnet_gives_what_the_classes_of_photo_are_read_from() -> None:
    pytest.importorskip("timm")
    try:
        proxy, photo = load_proxy("efficientnet-lite0", device="cpu"), load_backbone("photo", device="cpu")
    except MissingExtraError as error:
        pytest.skip(str(error))
    pixels = torch.rand(1, 3, 384, 400, generator=torch.Generator().manual_seed(0)) * 2 - 1
    head = photo._net.fc
    logits = torch.einsum("kd,bdyx->bkyx", head.weight, proxy.encode(pixels)) + head.bias[:, None, None]
    close(logits, photo.encode_dense(pixels).features)
    small = proxy.from_clip(torch.rand(1, 3, 96, 48), (0.0,) * 3, (1.0,) * 3)
    assert small.shape == (1, proxy.embed_dim, 48, 24)  # the short side is enlarged to 384
    strip = proxy.from_clip(torch.rand(1, 3, 4, 400), (0.0,) * 3, (1.0,) * 3)
    assert strip.shape == (1, proxy.embed_dim, 1, 64)  # the long side to 1024 at most
    for kind in KINDS[1:]:
        with pytest.raises(ModelError, match="no attention"):
            proxy.encode(pixels, kind)
    for wrong in ({"heads": 2}, {"position_rule": "square"}):
        with pytest.raises(ModelError, match="heads"):
            load_proxy("efficientnet-lite0", device="cpu", **wrong)


def test_heads_are_64_wide_where_that_divides_the_width_else_32_else_asked_for(tmp_path) -> None:
    for width, heads, settings in [(128, 2, {}), (96, 3, {}), (40, 5, {"heads": 5})]:
        save_file(small_vit(embed_dim=width, num_heads=heads).state_dict(), tmp_path / "w.safetensors")
        assert load_proxy(tmp_path / "w.safetensors", device="cpu", **settings).model.blocks[0].attn.num_heads == heads
    with pytest.raises(WeightsError, match=r"width 40 cannot be split .* say heads="):
        load_proxy(tmp_path / "w.safetensors", device="cpu")


def _offline(monkeypatch) -> None:
    monkeypatch.setattr(hub, "why_unreachable", lambda _: "no route")
    monkeypatch.setattr(hub, "cached_file", lambda _: None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dino_vitb88", "closest: dino_vitb8"),
        ("dino_vits16", "hub cannot be reached .* weights=FILE"),
        ("beit_base_patch16_224", "Beit .* one input size"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer .* no one patch grid"),
        ("naflexvit_base_patch16_radio_v3", "NaFlexVit .* packed patches"),
        ("samvit_base_patch16_224", "windowed; take 'sam_vit_b'"),
        ("resnet18", "ResNet .* not a plain vision transformer"),
        ("sam_vit_b", "not on timm's hub"),
        ("nowhere.safetensors", "does not exist"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(name, words, monkeypatch) -> None:
    _offline(monkeypatch)
    with pytest.raises(ModelError, match=words) as error:
        load_proxy(name, device="cpu")
    assert "\n" not in str(error.value)


def test_wrong_settings_and_foreign_weights_are_refused_in_one_line(dino_files, tmp_path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "page.pth").write_text("<html>")
    torch.save([1], tmp_path / "list.pth")
    small = dino_files[8]
    cases = [
        (lambda: load_proxy(tmp_path / "other.safetensors"), WeightsError, "not a vision transformer in DINO's naming"),
        (lambda: load_proxy(tmp_path / "page.pth"), WeightsError, "web page"),
        (lambda: load_proxy(tmp_path / "list.pth"), WeightsError, "holds a list"),
        (
            lambda: load_proxy("test_vit", small, "cpu"),
            WeightsError,
            r"does not fit 'test_vit': patch_embed",
        ),
        (lambda: load_proxy("test_vit", small, "cpu", heads=3), ModelError, "own number of heads"),
        (lambda: load_proxy(small, device="nowhere"), OptionError, "device 'nowhere' cannot be used"),
        (lambda: load_proxy(small, device="cpu", position_rule="sizes"), RecipeError, "no position rule 'sizes'"),
        (lambda: TimmProxy(small_eva(), name="e", position_rule="size"), ModelError, "Eva model"),
        (lambda: TimmProxy(small_vit(dynamic_img_size=False), name="v"), ModelError, "dynamic_img_size=True"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_wrong_pixels_and_kinds_are_refused(dino_files) -> None:
    proxy = load_proxy(dino_files[8], device="cpu")
    for pixels in (
        torch.zeros(3, 32, 32),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 3, 33, 32),
        torch.zeros(0, 3, 8, 8),
    ):
        with pytest.raises(ImageError):
            proxy.encode(pixels)
    with pytest.raises(DensevlError, match="no 'kq'"):
        proxy.encode(torch.zeros(1, 3, 32, 32), "kq")
