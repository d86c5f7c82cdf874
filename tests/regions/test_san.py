"""SAN from random tensors in the form of its file: the side network and the copies of CLS, written out plainly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import TINY, close, random_clip, wrap
from densevl.cli import app
from densevl.errors import ModelError, WeightsError
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.san import name_with_san
from densevl.regions.san import San
from region_weights import HEADS, QUERIES, START, C, D, san_state


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("san") / "san.pth"
    torch.save({"model": san_state(), "iteration": 60000}, path)
    return path


@pytest.fixture(scope="module")
def backbone():
    return wrap(random_clip())


def norm(x, s, at, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], s[at + ".weight"], s[at + ".bias"], eps)


def mlp(x, s, name):
    for index in range(3):
        at = f"side_adapter_network.mask_decoder.{name}.layers.{index}."
        x = x @ s[at + "weight"].flatten(1).T + s[at + "bias"]
        x = x.relu() if index < 2 else x
    return x


def plain(s, pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """One image, as the paper's figure has it: the whole attention of copies, CLS and patches in one matrix."""
    visual = random_clip(5).visual
    small = F.interpolate(pixels, scale_factor=0.5, mode="bilinear")
    h, w = small.shape[2] // 8, small.shape[3] // 8
    table = s["clip_visual_extractor.positional_embedding"]
    cells = F.interpolate(table[1:].T.reshape(1, D, 4, 4), size=(h, w), mode="bicubic")[0].flatten(1).T
    x = torch.cat([visual.class_embedding[None], visual.conv1(small)[0].flatten(1).T]) + torch.cat([table[:1], cells])
    x = visual.ln_pre(x)[None]
    taps = [x]
    for block in visual.transformer.resblocks[:START]:
        x = block(x)
        taps.append(x)

    side = "side_adapter_network."
    y = F.conv2d(pixels, s[side + "vit_model.patch_embed.proj.weight"], s[side + "vit_model.patch_embed.proj.bias"], 16)
    size = y.shape[2:]
    places = s[side + "vit_model.pos_embed"][0].T.reshape(1, C, 6, 6)
    places = F.interpolate(places, size=size, mode="bicubic")[0].flatten(1).T
    places = torch.cat([s[side + "query_pos_embed"][0], places])
    y = torch.cat([s[side + "query_embed"][0], y[0].flatten(1).T]) + places

    def fuse(y, index, tap):
        at = f"{side}fusion_layers.layer_{index}.input_proj."
        t = norm(tap[0, 1:], s, at + "0") @ s[at + "1.weight"].flatten(1).T + s[at + "1.bias"]
        t = F.interpolate(t.T.reshape(1, C, h, w), size=size, mode="bilinear")[0].flatten(1).T
        return torch.cat([y[:QUERIES], y[QUERIES:] + t])

    y = fuse(y, 0, taps[0])
    for index in range(3):
        at = f"{side}vit_model.blocks.{index}."
        u = norm(y, s, at + "norm1") @ s[at + "attn.qkv.weight"].T + s[at + "attn.qkv.bias"]
        q, k, v = u.reshape(-1, 3, 6, C // 6).permute(1, 2, 0, 3)
        a = ((q @ k.mT) / (C // 6) ** 0.5).softmax(-1) @ v
        y = y + a.transpose(0, 1).flatten(1) @ s[at + "attn.proj.weight"].T + s[at + "attn.proj.bias"]
        u = F.gelu(norm(y, s, at + "norm2") @ s[at + "mlp.fc1.weight"].T + s[at + "mlp.fc1.bias"])
        y = y + u @ s[at + "mlp.fc2.weight"].T + s[at + "mlp.fc2.bias"]
        if index == 0:
            y = fuse(y, 1, taps[START])
        if index < 2:
            y = y + places
    query, pix = mlp(y[:QUERIES], s, "query_mlp"), mlp(y[QUERIES:], s, "pix_mlp")
    logits = (query @ pix.T).reshape(QUERIES, *size)
    attn = mlp(y[QUERIES:], s, "attn_mlp").reshape(-1, HEADS, 8)
    bias = torch.einsum("qc,nac->aqn", query, attn).reshape(HEADS, QUERIES, *size)
    bias = bias * s[side + "mask_decoder.bias_scaling.weight"] + s[side + "mask_decoder.bias_scaling.bias"]
    bias = F.adaptive_max_pool2d(bias, (h, w)).flatten(2)

    total = QUERIES + 1 + h * w
    mask = torch.zeros(HEADS, total, total)
    mask[:, :, :QUERIES] = -1000
    mask[:, torch.arange(QUERIES), torch.arange(QUERIES)] = 0
    mask[:, :QUERIES, QUERIES] = -1000
    mask[:, :QUERIES, QUERIES + 1 :] = bias
    x = torch.cat([x[:, :1].expand(-1, QUERIES, -1), x], dim=1)
    for block in visual.transformer.resblocks[START:]:
        x = block(x, attn_mask=mask)
    return logits, visual.ln_post(x[0, :QUERIES]) @ visual.proj


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_it_is_the_paper_s_computation(size, file, backbone) -> None:
    pixels = torch.randn(1, 3, *size, generator=torch.manual_seed(4))
    logits, vectors = San(backbone, file).look(pixels)
    wanted_logits, wanted = plain(san_state(), pixels)
    close(logits[0], wanted_logits)
    close(vectors[0], wanted)


def test_a_photo_is_found_and_named(file, backbone) -> None:
    classify = RegionClassifier(backbone, "cls_bias", proposals=None, templates="photo")
    photo = np.random.default_rng(0).integers(0, 255, (70, 101, 3), np.uint8)
    san = San(backbone, file)
    result = name_with_san(classify, san, photo, ["cat", "dog | puppy"])
    assert result.regions.size == (70, 101)
    assert len(result) == QUERIES
    torch.testing.assert_close(san.void.norm(), torch.tensor(1.0))
    filled = result.regions.areas > 0
    np.testing.assert_array_less((result.scores.sum(axis=1) + result.nothing)[filled], 1 + 1e-5)
    assert result.semantic("sum").labels.shape == (70, 101)
    assert len(result.reclassify(["sky", "sea"])) == QUERIES


def test_the_command_names_as_the_function_does(file, tmp_path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.save(random_clip().state_dict(), tmp_path / "tiny.pt")
    photo = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 101, 3), np.uint8)).save(photo)
    own = "--model", tmp_path / "tiny.json", "--weights", tmp_path / "tiny.pt", "--decoder", file

    def run(*more: object):
        given = ("regions", photo, "--labels", "cat,dog | puppy", *own, "--out", tmp_path / "out", *more)
        return CliRunner().invoke(app, [str(part) for part in given])

    done = run()
    assert done.exit_code == 0, done.output
    classify = RegionClassifier(str(tmp_path / "tiny.json"), "cls_bias", weights=tmp_path / "tiny.pt", proposals=None)
    name_with_san(classify, San(classify.backbone, file), photo, ["cat", "dog | puppy"]).save(tmp_path / "want.json")
    got, want = (json.loads((tmp_path / name).read_text()) for name in ("out/x.json", "want.json"))
    assert got["regions"] == want["regions"]
    assert got["meta"]["image"] == str(photo)
    assert run("--operator", "crop").exit_code == run("--clip-share", "odise").exit_code == 2
    assert "has its own regions" in run("--proposals", "grid").output


def test_another_file_is_one_clear_line(tmp_path, backbone) -> None:
    state = san_state()
    torch.save({key: value for key, value in state.items() if "side" not in key}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is not SAN's"):
        San(backbone, tmp_path / "other.pth")
    torch.save({key: value for key, value in state.items() if "ln_post" not in key}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="2 missing"):
        San(backbone, tmp_path / "part.pth")
    with pytest.raises(ModelError, match="SAN needs a ViT of open_clip"):
        San(type("Other", (), {"name": "other"})(), tmp_path / "other.pth")
