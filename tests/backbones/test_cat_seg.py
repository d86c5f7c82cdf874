"""CAT-Seg from random tensors in the form of its file, against its formulas written out in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close, random_clip
from densevl import Segmenter, load_backbone
from densevl.backbones.decoders import aggregation
from densevl.errors import DensevlError, RecipeError
from oracle_upsampling import random_state

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
E, D, C, G, HEADS = 24, 64, 16, 8, 4
HEAD, CLIP = "sem_seg_head.predictor.transformer.", "sem_seg_head.predictor.clip_model."


@cache
def state() -> dict[str, torch.Tensor]:
    """All tensors, as detectron2 names them."""
    draw, made = torch.manual_seed(3), {}

    def put(name: str, *shape: int, bias: bool = True) -> None:
        fan = max(1, int(np.prod(shape[1:])))
        made[f"{name}.weight"] = torch.randn(*shape, generator=draw) * (1.0 if len(shape) == 1 else 1.4 / fan**0.5)
        if bias:
            made[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=draw)

    put(HEAD + "conv1", C, 1, 7, 7)
    put(HEAD + "guidance_projection.0", G, E, 3, 3)
    put(HEAD + "text_guidance_projection.0", G, E)
    for index in (0, 1):
        at = f"{HEAD}layers.{index}."
        put(at + "swin_block.guidance_norm", G)
        for block in ("block_1", "block_2"):
            own = f"{at}swin_block.{block}."
            for name, shape in {
                "norm1": (C,), "norm2": (C,), "attn.q": (C, C + G), "attn.k": (C, C + G), "attn.v": (C, C),
                "attn.proj": (C, C), "mlp.fc1": (4 * C, C), "mlp.fc2": (C, 4 * C),
            }.items():  # fmt: skip
                put(own + name, *shape)
        own = f"{at}attention."
        for name, shape in {
            "norm1": (C,), "norm2": (C,), "MLP.0": (4 * C, C), "MLP.2": (C, 4 * C),
            "attention.q": (C, C + G), "attention.k": (C, C + G), "attention.v": (C, C),
        }.items():  # fmt: skip
            put(own + name, *shape)
        made[own + "padding_tokens"] = torch.randn(1, 1, C, generator=draw)
        made[own + "padding_guidance"] = torch.randn(1, 1, G, generator=draw)
    for index, (before, after, own, tap) in enumerate(((C, 32, 4, 6), (32, 16, 4, 5))):
        put(f"{HEAD}decoder_guidance_projection.{index}.0", own, tap, 3, 3)
        at = f"{HEAD}decoder{index + 1}."
        made[at + "up.weight"] = torch.randn(before, before - own, 2, 2, generator=draw) / before**0.5
        made[at + "up.bias"] = 0.3 * torch.randn(before - own, generator=draw)
        put(at + "conv.double_conv.0", after, before, 3, 3, bias=False)
        put(at + "conv.double_conv.1", after)
        put(at + "conv.double_conv.3", after, after, 3, 3, bias=False)
        put(at + "conv.double_conv.4", after)
        made[f"upsample{index + 1}.weight"] = torch.randn(D, tap, 2 + 2 * index, 2 + 2 * index, generator=draw) / 8
        made[f"upsample{index + 1}.bias"] = 0.3 * torch.randn(tap, generator=draw)
    put(HEAD + "head", 1, 16, 3, 3)
    for key, value in random_clip(7, CONFIG).state_dict().items():
        if key.endswith("in_proj_weight"):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                made[f"{CLIP}{key.removesuffix('in_proj_weight')}{letter}_proj_weight"] = part.clone()
        elif key != "attn_mask":
            made[CLIP + key] = value.clone()
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("catseg") / "model_base.pth"
    torch.save({"model": state(), "iteration": 80000}, path)
    return path


@pytest.fixture(scope="module")
def backbone(file):
    return load_backbone("catseg", file)


def words(count: int = 3) -> torch.Tensor:
    return F.normalize(torch.randn(count, E, generator=torch.manual_seed(5)), dim=1)


def lin(x, s, at):
    return x @ s[at + "weight"].T + s[at + "bias"]


def norm(x, s, at):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * s[at + "weight"] + s[at + "bias"]


def tower(pixels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map, and the tokens after one and two of three blocks: (E, 24, 24), (D, 24, 24) twice."""
    visual = random_clip(7, CONFIG).visual.double()
    x = visual.conv1(pixels.double())[0].flatten(1).T
    table = visual.positional_embedding
    grid = F.interpolate(table[1:].T.reshape(1, D, 4, 4), size=(24, 24), mode="bicubic", align_corners=False)
    x = torch.cat([visual.class_embedding[None], x]) + torch.cat([table[:1], grid[0].flatten(1).T])
    x = visual.ln_pre(x)
    taps = []
    for block in visual.transformer.resblocks[:2]:
        x = block(x[None])[0]
        taps.append(x)
    last = visual.transformer.resblocks[2]
    value = F.linear(last.ln_1(x), last.attn.in_proj_weight[2 * D :], last.attn.in_proj_bias[2 * D :])
    y = last.attn.out_proj(value) + x[:1]  # CLS beside every patch, not the patch itself
    y = y + last.mlp(last.ln_2(y))
    dense = visual.ln_post(y) @ visual.proj
    return tuple(part[1:].T.reshape(-1, 24, 24) for part in (dense, *taps))


def groups(shift: int) -> torch.Tensor:
    """Which places meet: bool (576, 576)."""
    place = torch.arange(24)
    own = (place >= 12).long() if not shift else (place >= 6).long() + (place >= 18).long()
    ids = (own[:, None] * 3 + own).flatten()
    return ids[:, None] == ids


def plain(pixels, text) -> torch.Tensor:
    """Logits (T, 96, 96) of one window; text (T, E) of at most 256 words."""
    s = {key.removeprefix(HEAD): value.double() for key, value in state().items()}
    dense, *taps = tower(pixels)
    text = text.double()
    cost = torch.einsum("exy,te->txy", dense / dense.norm(dim=0), text / text.norm(dim=1, keepdim=True))
    x = F.conv2d(cost[:, None], s["conv1.weight"], s["conv1.bias"], padding=3).flatten(2).mT  # T, places, C
    place = F.conv2d(dense[None], s["guidance_projection.0.weight"], s["guidance_projection.0.bias"], padding=1)
    place, word = place[0].relu().flatten(1).T, lin(text, s, "text_guidance_projection.0.").relu()
    for index in (0, 1):
        at = f"layers.{index}.swin_block."
        guide = norm(place, s, at + "guidance_norm.")
        for block, shift in (("block_1.", 0), ("block_2.", 6)):
            own, seen = at + block, groups(shift)
            done = []
            for one in x:
                u = norm(one, s, own + "norm1.")
                both = torch.cat([u, guide], dim=1)
                heads = []
                for q, k, v in zip(
                    lin(both, s, own + "attn.q.").chunk(HEADS, 1),
                    lin(both, s, own + "attn.k.").chunk(HEADS, 1),
                    lin(u, s, own + "attn.v.").chunk(HEADS, 1),
                    strict=True,
                ):
                    share = (q @ k.T / (C // HEADS) ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
                    heads.append(share @ v)
                one = one + lin(torch.cat(heads, 1), s, own + "attn.proj.")
                inner = lin(norm(one, s, own + "norm2."), s, own + "mlp.fc1.")
                inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
                done.append(one + lin(inner, s, own + "mlp.fc2."))
            x = torch.stack(done)
        at = f"layers.{index}.attention."
        fill = s[at + "padding_tokens"][0].expand(256 - len(x), 576, C)
        z = torch.cat([x, fill])
        guide = torch.cat([word, s[at + "padding_guidance"][0].expand(256 - len(x), G)])
        u = norm(z, s, at + "norm1.")
        both = torch.cat([u, guide[:, None].expand(-1, 576, -1)], dim=-1)
        heads = []
        for q, k, v in zip(
            lin(both, s, at + "attention.q.").chunk(HEADS, -1),
            lin(both, s, at + "attention.k.").chunk(HEADS, -1),
            lin(u, s, at + "attention.v.").chunk(HEADS, -1),
            strict=True,
        ):
            alike = torch.einsum("tnd,snd->nts", F.elu(q[: len(x)]) + 1, F.elu(k) + 1)
            heads.append(torch.einsum("nts,snd->tnd", alike / (alike.sum(-1, keepdim=True) + 1e-6), v))
        z = x + torch.cat(heads, -1)
        z = z + lin(lin(norm(z, s, at + "norm2."), s, at + "MLP.0.").relu(), s, at + "MLP.2.")
        x = x + z
    x = x.mT.reshape(len(text), C, 24, 24)
    for index, tap in enumerate(taps):
        up = F.conv_transpose2d(
            tap[None], s[f"upsample{index + 1}.weight"], s[f"upsample{index + 1}.bias"], 2 + 2 * index
        )
        at = f"decoder_guidance_projection.{index}.0."
        guide = F.conv2d(up, s[at + "weight"], s[at + "bias"], padding=1).relu()
        at = f"decoder{index + 1}."
        x = F.conv_transpose2d(x, s[at + "up.weight"], s[at + "up.bias"], 2)
        x = torch.cat([x, guide.expand(len(x), -1, -1, -1)], dim=1)
        for conv, own in ((0, 1), (3, 4)):
            x = F.conv2d(x, s[f"{at}conv.double_conv.{conv}.weight"], padding=1)
            width = x.shape[1]
            parts = x.reshape(len(x), width // 16, -1)
            parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            scale, shift = (s[f"{at}conv.double_conv.{own}.{name}"][:, None, None] for name in ("weight", "bias"))
            x = (parts.reshape(x.shape) * scale + shift).relu()
    return F.conv2d(x, s["head.weight"], s["head.bias"], padding=1)[:, 0]


def test_it_is_the_paper_s_computation(backbone) -> None:
    pixels = torch.randn(2, 3, 192, 192, generator=torch.manual_seed(4))
    found = backbone.score(backbone.encode_dense(pixels), words())
    close(found[1].permute(2, 0, 1), plain(pixels[1:], words()).sigmoid().float())
    parts = backbone.in_parts(2, 100)
    close(parts.score(parts.encode_dense(pixels), words()), found)


def test_the_published_protocol_averages_four_windows_and_the_photo(file, backbone) -> None:
    one = backbone
    backbone = load_backbone("catseg-640", file)
    pixels = torch.randn(1, 3, 200, 320, generator=torch.manual_seed(4))
    full, whole = (F.interpolate(pixels, size=(side, side), mode="bilinear") for side in (640, 384))
    total, times = torch.zeros(2, 640, 640, dtype=torch.float64), torch.zeros(640, 640)

    def seen(window) -> torch.Tensor:
        p = one.score(one.encode_dense(F.interpolate(window, size=(192, 192), mode="bilinear")), words(2))
        logits = p.double().logit().permute(0, 3, 1, 2)  # of a window it is right, as the test before shows
        return F.interpolate(logits, size=(384, 384), mode="bilinear")[0].sigmoid()

    for top in (0, 256):
        for left in (0, 256):
            total[:, top : top + 384, left : left + 384] += seen(full[:, :, top : top + 384, left : left + 384])
            times[top : top + 384, left : left + 384] += 1
    wanted = (total / times + F.interpolate(seen(whole)[None], size=(640, 640), mode="bilinear")[0]) / 2
    found = backbone.score(backbone.encode_dense(pixels), words(2))
    close(found[0].permute(2, 0, 1), wanted.float())


def test_of_many_words_the_likeliest_are_told_apart(backbone, monkeypatch) -> None:
    monkeypatch.setattr(aggregation, "MOST", 3)
    dense = backbone.encode_dense(torch.randn(1, 3, 192, 192, generator=torch.manual_seed(4)))
    many = words(6)
    cost = F.normalize(dense.features[0], dim=0).flatten(1).T @ many.T
    kept = cost.amax(dim=0).argsort(descending=True)[:3].sort().values
    found = backbone.score(dense, many)[0]
    close(found[..., kept], backbone.score(dense, many[kept])[0])
    rest = [index for index in range(6) if index not in kept.tolist()]
    assert found[..., rest].max() < 1e-30


def test_a_photo_is_segmented_by_both_names(file) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    for name, protocol in (("catseg", {"short_side": 192, "crop": 192, "stride": 96}), ("catseg-640", {})):
        segment = Segmenter(name, weights=file, protocol=protocol)
        result = segment(photo, ["cat", "dog | puppy", "sky"])
        assert result.labels.shape == (90, 120)
        assert segment.facts()["templates"] == ["A photo of a {} in the scene"]
    assert segment.protocol.crop is None


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith(HEAD)}, "catseg", "is not CAT-Seg's"),
        (lambda s: {k: v for k, v in s.items() if "decoder2.up.bias" not in k}, "catseg", "do not fit each other"),
        (lambda s: {**s, HEAD + "conv1.weight": torch.zeros(5, 1, 7, 7)}, "catseg", "do not fit each other"),
        (lambda s: {k: v for k, v in s.items() if "visual.ln_post" not in k}, "catseg-640", "missing"),
    ],
)
def test_other_files_are_one_clear_line(change, name, said, tmp_path) -> None:
    torch.save({"model": change(state())}, tmp_path / "other.pth")
    with pytest.raises(DensevlError, match=said) as caught:
        load_backbone(name, tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["catseg", "catseg-640"])
def test_an_upsampler_of_features_that_lie_otherwise_than_scores_is_refused(name, file, tmp_path) -> None:
    tensors = {key: torch.randn(shape) for key, shape in random_state("anyup", 16, 12).items()}
    torch.save(tensors, tmp_path / "anyup.pth")
    segment = Segmenter(name, weights=file, refine="anyup", upsampler=tmp_path / "anyup.pth")
    with pytest.raises(RecipeError, match="needs features on the same grid"):
        segment(np.zeros((48, 64, 3), np.uint8), ["cat", "dog"])


def test_what_it_has_of_its_own_is_not_given(file) -> None:
    with pytest.raises(DensevlError, match="needs the authors' file"):
        load_backbone("catseg")
    with pytest.raises(DensevlError, match="leave them out"):
        load_backbone("catseg", file, activation="gelu")
    with pytest.raises(DensevlError, match=r"recipe 'sclip' does not apply|leave recipe out|leave the recipe out"):
        Segmenter("catseg", "sclip", weights=file)
