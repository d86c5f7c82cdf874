"""Alpha-CLIP's and OVSeg's towers, from random tensors in the form of their files, against a plain computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from conftest import TINY, random_clip, wrap
from densevl.errors import ModelError, WeightsError
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals.base import Proposals
from densevl.regions.operators.names import OPERATORS
from densevl.regions.operators.trained import trained
from region_weights import PATCH, WIDTH, alpha_state, prompted_state, write_files

SIDE, HEADS = 32, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def backbone():
    return wrap(random_clip())


def plain(state, patches_BND, between=lambda index, x: x) -> torch.Tensor:
    """A CLIP tower written out, from patches without positions to image embeddings."""
    s = state
    cls = s["class_embedding"].expand(len(patches_BND), 1, -1)
    x = torch.cat([cls, patches_BND], dim=1) + s["positional_embedding"]
    x = F.layer_norm(x, (WIDTH,), s["ln_pre.weight"], s["ln_pre.bias"])
    for index in range(TINY["vision_cfg"]["layers"]):
        at = f"transformer.resblocks.{index}."
        u = F.layer_norm(x, (WIDTH,), s[at + "ln_1.weight"], s[at + "ln_1.bias"])
        qkv = F.linear(u, s[at + "attn.in_proj_weight"], s[at + "attn.in_proj_bias"]).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv)
        seen = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        seen = seen.transpose(1, 2).flatten(2)
        x = x + F.linear(seen, s[at + "attn.out_proj.weight"], s[at + "attn.out_proj.bias"])
        u = F.layer_norm(x, (WIDTH,), s[at + "ln_2.weight"], s[at + "ln_2.bias"])
        u = F.linear(u, s[at + "mlp.c_fc.weight"], s[at + "mlp.c_fc.bias"])
        u = u * torch.sigmoid(1.702 * u)
        x = x + F.linear(u, s[at + "mlp.c_proj.weight"], s[at + "mlp.c_proj.bias"])
        x = between(index + 1, x)
    return F.layer_norm(x[:, 0], (WIDTH,), s["ln_post.weight"], s["ln_post.bias"]) @ s["proj"]


def shown() -> torch.Tensor:
    pixels = torch.randn(2, 4, SIDE, SIDE, generator=torch.manual_seed(8))
    inside = torch.zeros(2, SIDE, SIDE)
    inside[0, 3:17, 8:16] = 1
    inside[1, 31, 31] = 1  # one pixel keeps its patch
    pixels[:, 3] = inside
    return pixels


def test_alpha_adds_the_fourth_channel_to_the_patch_embedding(files, backbone) -> None:
    state, pixels = alpha_state(), shown()
    state = {key.replace(".in_proj.", ".in_proj_"): value for key, value in state.items()}
    patches = F.conv2d(pixels[:, :3], state["conv1.weight"], stride=PATCH)
    patches = patches + F.conv2d(pixels[:, 3:], state["conv1_alpha.weight"], stride=PATCH)
    found = trained(backbone, "alpha", files["alpha"])(pixels)
    torch.testing.assert_close(found, plain(state, patches.flatten(2).mT), atol=2e-5, rtol=1e-4)


def test_mask_prompts_stand_in_for_patches_outside_at_three_depths(files, backbone) -> None:
    state = {key: value.half().float() for key, value in prompted_state().items()}  # the file holds halves
    pixels, prompts = shown(), state["mask_embedding"]
    m = torch.ceil(F.avg_pool2d(pixels[:, 3:], PATCH)).flatten(2).mT
    patches = F.conv2d(pixels[:, :3], state["conv1.weight"], stride=PATCH).flatten(2).mT

    def between(depth, x):
        return x if depth > 2 else torch.cat([x[:, :1], x[:, 1:] * m + prompts[depth] * (1 - m)], dim=1)

    wanted = plain(state, patches * m + prompts[0] * (1 - m), between)
    found = trained(backbone, "crop_prompted", files["crop_prompted"])(pixels)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    whole = torch.cat([pixels[:, :3], torch.ones(2, 1, SIDE, SIDE)], dim=1)
    with torch.no_grad():
        model = random_clip(5)
        model.visual.load_state_dict({key: value for key, value in state.items() if key != "mask_embedding"})
    torch.testing.assert_close(
        trained(backbone, "crop_prompted", files["crop_prompted"])(whole), model.visual(whole[:, :3])
    )


def test_the_operator_shows_each_region_by_its_own_mask(files, backbone) -> None:
    masks = np.zeros((3, 2 * SIDE, 2 * SIDE), bool)
    masks[0, 4:40, 6:44] = True
    masks[1, 50:56, 50:56] = True  # the last one is empty
    regions, pixels = Proposals.from_masks(masks), torch.randn(1, 3, SIDE, SIDE, generator=torch.manual_seed(9))
    for name, file in files.items():
        found = OPERATORS[name].run(backbone, pixels, regions, weights=file)
        torch.testing.assert_close(found.norm(dim=1), torch.tensor([1.0, 1, 0]))
        assert (found[0] - found[1]).abs().max() > 1e-3
    small = torch.from_numpy(masks[:1, ::2, ::2]).float()  # both sides are halved: each pixel is 0 or 1
    wanted = trained(backbone, "alpha", files["alpha"])(torch.cat([pixels, (small[None] - 0.5) / 0.26], dim=1))
    found = OPERATORS["alpha"].run(backbone, pixels, Proposals.from_masks(masks[:1, ::2, ::2]), weights=files["alpha"])
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1))


def test_a_classifier_takes_the_file_as_an_option_and_reads_it_once(files, monkeypatch) -> None:
    backbone = wrap(random_clip())
    options = {"alpha": {"weights": files["alpha"]}}
    classify = RegionClassifier(backbone, "alpha", proposals=None, options=options, templates="photo")
    monkeypatch.setattr("densevl.regions.operators.trained.read_checkpoint", None)
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    result = classify(photo, ["cat", "dog"], boxes=[[3, 4, 30, 30], [10.5, 2, 59, 39]])
    assert len(result.found) == 2
    assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("alpha", lambda s: {k: v for k, v in s.items() if "alpha" not in k}, "not Alpha-CLIP's"),
        ("alpha", lambda s: {**s, "transformer.resblocks.0.attn.in_proj.lora_A": torch.zeros(1)}, "LoRA"),
        ("alpha", lambda s: {k: v for k, v in s.items() if k != "proj"}, r"1 missing \(proj\)"),
        ("alpha", lambda s: {**s, "positional_embedding": torch.zeros(5, WIDTH)}, r"positional_embedding is \(5, 32\)"),
        ("alpha", lambda s: {"weights": torch.zeros(1)}, "no image tower"),
        ("crop_prompted", lambda s: {k: v for k, v in s.items() if k != "mask_embedding"}, "not OVSeg's"),
        ("crop_prompted", lambda s: {**s, "mask_embedding": torch.zeros(3, 9, WIDTH)}, "16 patches of width 32"),
    ],
)
def test_another_file_is_one_clear_line(kind, change, said, tmp_path, backbone) -> None:
    state = alpha_state() if kind == "alpha" else prompted_state()
    save_file({key: value.contiguous() for key, value in change(state).items()}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=said) as caught:
        trained(backbone, kind, tmp_path / "other.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="does not exist"):
        trained(backbone, kind, tmp_path / "none.pth")


def test_one_prompt_may_serve_every_patch(tmp_path, backbone) -> None:
    torch.save({"state_dict": {f"module.visual.{k}": v for k, v in prompted_state(1).items()}}, tmp_path / "one.pt")
    assert trained(backbone, "crop_prompted", tmp_path / "one.pt")(shown()).shape == (2, TINY["embed_dim"])


def test_other_towers_are_refused(files) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    model = open_clip.CLIP(32, {**vision, "patch_size": None}, TINY["text_cfg"]).eval()
    with pytest.raises(ModelError, match="for ViTs of open_clip"):
        trained(wrap(model), "alpha", files["alpha"])
