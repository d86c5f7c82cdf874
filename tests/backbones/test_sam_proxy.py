"""The SAM encoder as a proxy: the package's own features, cut to the image, and the parts of its last attention."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from conftest import close
from densevl.backbones.proxies import load_proxy
from densevl.backbones.proxies.build import build_sam_encoder
from densevl.backbones.proxies.sam import MEAN, STD, SamProxy
from densevl.errors import ImageError, MissingExtraError, ModelError, WeightsError
from densevl.proposals.sam.mini_sam import WEIGHTS, SamConfig, build_sam
from densevl.shipped import is_shipped

modeling = pytest.importorskip("segment_anything.modeling", reason="a SAM proxy needs the extra 'sam'")

SIDE = 64


def small_encoder(**settings) -> nn.Module:
    """Five cells a window on a grid of 8, so windows are padded; every part has an effect."""
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "out_chans": 24}
    windows = {"window_size": 5, "global_attn_indexes": (1, 3), "use_rel_pos": True}
    norm = partial(nn.LayerNorm, eps=1e-6)
    encoder = modeling.ImageEncoderViT(**{**sizes, **windows, "norm_layer": norm, **settings})
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3)
    return encoder.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A SAM checkpoint with parts that the proxy does not need."""
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    state = {f"image_encoder.{key}": value for key, value in small_encoder().state_dict().items()}
    torch.save({**state, "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 24)}, path)
    return path


def test_a_checkpoint_gives_the_packages_own_features(checkpoint) -> None:
    proxy, pixels = load_proxy(checkpoint, device="cpu"), torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        want = small_encoder()(pixels)
    close(proxy.encode(pixels), want)
    assert (proxy.mean, proxy.std, proxy.embed_dim, proxy.patch_size) == (MEAN, STD, 24, 8)


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (24, 64)])
def test_a_smaller_image_is_padded_with_zeros_and_cut_out_again(checkpoint, size) -> None:
    proxy, pixels = load_proxy(checkpoint, device="cpu"), torch.randn(2, 3, *size)
    square = torch.zeros(2, 3, SIDE, SIDE)
    square[..., : size[0], : size[1]] = pixels
    h, w = size[0] // 8, size[1] // 8
    for kind in ("tokens", "q", "k", "v", "q+k"):
        want = proxy.encode(square, kind)[..., :h, :w]
        close(proxy.encode(pixels, kind), want)
        alone = torch.cat([proxy.encode(image[None], kind) for image in pixels])
        close(proxy.encode(pixels, kind), alone)


@pytest.mark.parametrize("settings", [{}, {"use_rel_pos": False}])
def test_the_last_attention_can_be_put_together_again(settings) -> None:
    proxy, pixels = SamProxy(small_encoder(**settings), name="small"), torch.randn(2, 3, 40, SIDE)
    parts = proxy.last_attention(pixels)
    assert (parts.grid, parts.covered) == ((8, 8), (5, 8))
    block, (h, w) = proxy.encoder.blocks[-1], parts.grid
    logits = parts.q @ parts.k.transpose(-2, -1) / parts.q.shape[-1] ** 0.5
    if parts.rel is None:
        assert not block.attn.use_rel_pos
    else:
        rows, columns = (part.unflatten(0, (2, 2)) for part in parts.rel.split([h, w], dim=-1))
        logits = logits + (rows[..., :, None] + columns[..., None, :]).flatten(-2)
    mixed = (logits.softmax(-1) @ parts.v).transpose(1, 2).flatten(2).unflatten(1, parts.grid)
    tokens = proxy.encode(pixels)
    with torch.no_grad():
        x = F.pad(pixels, (0, 0, 0, SIDE - 40))
        x = proxy.encoder.patch_embed(x) + proxy.encoder.pos_embed
        for earlier in proxy.encoder.blocks[:-1]:
            x = earlier(x)
        x = x + block.attn.proj(mixed)
        want = proxy.encoder.neck((x + block.mlp(block.norm2(x))).permute(0, 3, 1, 2))[..., :5, :]
    close(tokens, want)
    joined = parts.v.transpose(1, 2).flatten(2).unflatten(1, parts.grid).permute(0, 3, 1, 2)[..., :5, :]
    close(proxy.encode(pixels, "v"), joined)


@pytest.mark.parametrize(
    ("given", "fitted"), [((224, 224), (64, 64)), ((100, 200), (32, 64)), ((200, 90), (64, 32)), ((3, 900), (8, 64))]
)
def test_photos_fill_the_square_along_their_long_side(checkpoint, given, fitted) -> None:
    proxy = load_proxy(checkpoint, device="cpu")
    assert proxy.prepare(torch.randn(1, 3, *given), (0.5,) * 3, (0.5,) * 3).shape[-2:] == fitted


@pytest.mark.skipif(not is_shipped(WEIGHTS), reason="this checkout holds no mini-sam")
def test_mini_sam_is_a_proxy_with_its_own_statistics() -> None:
    proxy = load_proxy("mini-sam", device="cpu")
    config = SamConfig()
    assert proxy.mean == pytest.approx([value / 255 for value in config.mean])
    got = proxy.from_clip(torch.randn(1, 3, 60, 120), (0.5,) * 3, (0.5,) * 3, "q+k")
    assert got.shape == (1, config.width, config.grid // 2, config.grid)


def test_a_file_of_mini_sams_kind_says_its_sizes_itself(tmp_path) -> None:
    config = SamConfig(image=32, width=32, depth=2, channels=32)
    sam = build_sam(config)
    save_file(sam.state_dict(), tmp_path / "own.safetensors", {"sam_config": config.to_json()})
    proxy, pixels = load_proxy(tmp_path / "own.safetensors", device="cpu"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        close(proxy.encode(pixels), sam.image_encoder(pixels))


def test_what_does_not_fit_is_refused_in_one_line(checkpoint, tmp_path) -> None:
    proxy = load_proxy(checkpoint, device="cpu")
    last_in_windows = SamProxy(small_encoder(global_attn_indexes=(1,)), name="windows")
    save_file({"image_encoder.neck.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    cases = [
        (lambda: proxy.encode(torch.zeros(1, 3, 72, 64)), ImageError, "up to 64 pixels"),
        (lambda: proxy.last_attention(torch.zeros(1, 3, 60, 64)), ImageError, "multiples of 8"),
        (lambda: last_in_windows.last_attention(torch.zeros(1, 3, 64, 64)), ModelError, "attends in windows"),
        (lambda: load_proxy("sam_vit_b", checkpoint, "cpu"), WeightsError, "32 wide, not 768"),
        (lambda: load_proxy(checkpoint, None, "cpu", position_rule="size"), ModelError, "neither a position rule"),
        (lambda: load_proxy(tmp_path / "other.safetensors", None, "cpu"), WeightsError, "not a SAM checkpoint"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything.modeling", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[sam\]"):
        build_sam_encoder({}, tmp_path / "sam.pth")
