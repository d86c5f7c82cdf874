"""Mask-Adapter from random tensors in the form of its file, against a loop over masks in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import TINY, close, random_clip, wrap
from densevl.errors import DensevlError
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals.base import Proposals
from densevl.regions.operators.names import OPERATORS

E, C, MAPS, SIDE = 24, 12, 3, 64


def convnext(seed: int = 0) -> nn.Module:
    """A tiny ConvNeXt CLIP: of the smallest that timm has, one in which every part has an effect."""
    torch.manual_seed(seed)
    vision = {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "mlp"}
    model = open_clip.CLIP(E, {**vision, "image_size": SIDE}, TINY["text_cfg"]).eval().requires_grad_(False)
    for parameter in model.visual.parameters():
        parameter += 0.2 * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5
    return model


def state(second: bool = False, scaled: bool = True) -> dict[str, torch.Tensor]:
    draw = torch.manual_seed(4)
    shapes = {
        "mask_downscaling.0": (4, 1, 3, 3),
        "mask_downscaling.1": (4,),
        "mask_downscaling.3": (16, 4, 3, 3),
        "mask_downscaling.4": (16,),
        "mask_downscaling.6": (E, 16, 1, 1),
        "fuse": (C, E, 1, 1),
        "norm": (C,),
        "final": (MAPS, C, 1, 1),
    }
    for index in (1, 2, 3):
        at = f"cnext{index}."
        shapes |= {
            at + "dwconv": (C, 1, 7, 7),
            at + "norm": (C,),
            at + "pwconv1": (4 * C, C),
            at + "pwconv2": (C, 4 * C),
        }
    made = {}
    for name, shape in shapes.items():
        made[f"{name}.weight"] = torch.randn(*shape, generator=draw) / max(1, np.prod(shape[1:])) ** 0.5
        made[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=draw)
    for index in (1, 2, 3):
        if second:
            made[f"cnext{index}.grn.gamma"] = torch.randn(1, 1, 1, 4 * C, generator=draw)
            made[f"cnext{index}.grn.beta"] = torch.randn(1, 1, 1, 4 * C, generator=draw)
        if scaled:
            made[f"cnext{index}.gamma"] = torch.randn(C, generator=draw)
    return made


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": {f"mask_adapter.{key}": value for key, value in tensors.items()}, "iteration": 1}, path)
    return path


def plain(s, model, photo, mask) -> torch.Tensor:
    """One mask, as the paper's figure has it, channel by channel where it matters."""
    s = {key: value.double() for key, value in s.items()}
    visual = model.visual.double()
    x = visual.trunk.forward_features(photo.double())

    def embed(place: torch.Tensor) -> torch.Tensor:
        return visual.head(visual.trunk.forward_head(place[None, :, None, None]))[0]

    h, w = x.shape[2:]
    joint = torch.stack([embed(x[0, :, i, j]) for i in range(h) for j in range(w)], dim=1).reshape(E, h, w)

    def norm(y, at, eps):
        mean, var = y.mean(0), y.var(0, unbiased=False)
        return (y - mean) / (var + eps).sqrt() * s[at + "weight"][:, None, None] + s[at + "bias"][:, None, None]

    def gelu(y):
        return y * 0.5 * (1 + torch.erf(y / 2**0.5))

    m = mask.double()[None]
    for index in (0, 3):
        m = F.conv2d(m[None], s[f"mask_downscaling.{index}.weight"], s[f"mask_downscaling.{index}.bias"], 2, 1)[0]
        m = gelu(norm(m, f"mask_downscaling.{index + 1}.", 1e-6))
    m = torch.einsum("chw,ec->ehw", m, s["mask_downscaling.6.weight"][:, :, 0, 0])
    m = m + s["mask_downscaling.6.bias"][:, None, None]
    y = torch.einsum("ehw,ce->chw", joint + m, s["fuse.weight"][:, :, 0, 0]) + s["fuse.bias"][:, None, None]
    for index in (1, 2, 3):
        at = f"cnext{index}."
        kernel = s[at + "dwconv.weight"]
        z = torch.cat([F.conv2d(y[None, c : c + 1], kernel[c : c + 1], padding=3)[0] for c in range(C)])
        z = norm(z + s[at + "dwconv.bias"][:, None, None], at + "norm.", 1e-6)
        z = gelu(torch.einsum("chw,dc->dhw", z, s[at + "pwconv1.weight"]) + s[at + "pwconv1.bias"][:, None, None])
        if at + "grn.gamma" in s:
            g = (z**2).sum(dim=(1, 2)).sqrt()
            g = g / (g.mean() + 1e-6)
            gamma, beta = s[at + "grn.gamma"].flatten(), s[at + "grn.beta"].flatten()
            z = gamma[:, None, None] * z * g[:, None, None] + beta[:, None, None] + z
        z = torch.einsum("dhw,cd->chw", z, s[at + "pwconv2.weight"]) + s[at + "pwconv2.bias"][:, None, None]
        y = y + (z * s[at + "gamma"][:, None, None] if at + "gamma" in s else z)
    y = norm(y, "norm.", 1e-5)
    maps = torch.einsum("chw,mc->mhw", y, s["final.weight"][:, :, 0, 0]) + s["final.bias"][:, None, None]
    weights = torch.log(1 / (1 + torch.exp(-maps.flatten(1)))).softmax(-1)
    found = torch.stack([embed((row * x[0].flatten(1)).sum(1)) for row in weights]).mean(0)
    return found / found.norm()


@pytest.mark.parametrize(("second", "scaled"), [(False, True), (True, False), (False, False)])
def test_it_is_the_paper_s_computation(second, scaled, tmp_path) -> None:
    tensors = state(second, scaled)
    file = write(tmp_path / "adapter.pth", tensors)
    model = convnext()
    patch = wrap(model).patch_size
    h, w = 2, 3
    photo = torch.randn(1, 3, h * patch, w * patch, generator=torch.manual_seed(1))
    masks = np.zeros((3, 8 * h, 8 * w), bool)  # twice what the network is shown
    masks[0, 2:9, 3:15] = masks[1, 1, 1] = True
    found = OPERATORS["adapter"].run(
        wrap(model), photo, Proposals.from_masks(masks), weights=file, short_side=h * patch
    )
    assert not found[2].any()
    for index in (0, 1):
        shown = torch.from_numpy(masks[index]).double()[None, None]
        shown = F.interpolate(shown, scale_factor=0.5, mode="bilinear")[0, 0]
        close(found[index], plain(tensors, convnext(), photo, shown).float())


def test_a_classifier_takes_it_and_reads_it_once(tmp_path) -> None:
    file = write(tmp_path / "adapter.pth", state())
    options = {"adapter": {"weights": file, "short_side": 64}}
    classify = RegionClassifier(wrap(convnext()), "adapter", proposals=None, options=options, templates="photo")
    file.unlink()
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    result = classify(photo, ["cat", "dog"], boxes=[[3, 4, 30, 30], [10.5, 2, 59, 39]])
    assert np.isfinite(result.confidence).all()
    assert len(set(result.confidence.tolist())) == 2


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        (convnext, lambda s: {k: v for k, v in s.items() if "downscaling" not in k}, "not Mask-Adapter's"),
        (convnext, lambda s: {**s, "fuse.weight": torch.zeros(C, 7, 1, 1)}, "width 7, and the model's is 24"),
        (convnext, lambda s: {k: v for k, v in s.items() if k != "cnext2.norm.bias"}, "cnext2.norm.bias"),
        (convnext, lambda s: {**s, "final.weight": torch.zeros(MAPS, 5, 1, 1)}, "do not fit each other"),
        (random_clip, lambda s: s, "for CLIPs with a ConvNeXt"),
    ],
)
def test_other_files_and_towers_are_one_clear_line(model, change, said, tmp_path) -> None:
    file = write(tmp_path / "other.pth", change(state()))
    options = {"adapter": {"weights": file}}
    with pytest.raises(DensevlError, match=said) as caught:
        RegionClassifier(wrap(model()), "adapter", proposals=None, options=options, templates="photo")
    assert "\n" not in str(caught.value)
