"""Models whose patches speak, against the publishing library's own modules: their read-out, on grids of any shape."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from densevl import Segmenter, load_backbone
from tests.conftest import close
from tools.forms import hugging, tips

transformers = pytest.importorskip("transformers", reason="the publishing library")


@pytest.fixture(scope="module", params=[False, True], ids=["mlp", "gated"])
def saved(request, tmp_path_factory):
    """A random TIPSv2 in a folder: ours and theirs."""
    folder: Path = tmp_path_factory.mktemp("tips")
    torch.manual_seed(3)
    hugging(partial(tips, gated=request.param), 1, 0, 16, folder)
    theirs = transformers.Tipsv2Model.from_pretrained(folder).eval()
    return load_backbone(str(folder), device="cpu"), theirs.vision_model


@pytest.mark.parametrize("size", [(32, 32), (24, 56), (80, 40)], ids=str)
@torch.no_grad()
def test_tipsv2_is_read_as_its_authors_do(saved, size) -> None:
    """The last block keeps its skip connection and MLP, and each patch looks at itself alone."""
    ours, theirs = saved
    pixels = torch.rand(2, 3, *size)
    x = theirs.embeddings(pixels)
    for layer in theirs.encoder.layer[:-1]:
        x = layer(x)
    last = theirs.encoder.layer[-1]
    y = x + last.layer_scale1(last.attention.o_proj(last.attention.v_proj(last.norm1(x))))
    y = theirs.layernorm(y + last.layer_scale2(last.mlp(last.norm2(y))))[:, 2:]
    found = ours.encode_dense(pixels)
    assert ours.default_recipe == "maskclip"
    close(found.features.flatten(2).mT, y)
    whole = ours.encode_dense(pixels, "vanilla")
    close(whole.features.flatten(2).mT, theirs(pixel_values=pixels).last_hidden_state[:, 2:])
    if size == (32, 32):
        close(ours.encode_image(pixels), whole.cls)


def test_tipsv2_has_its_authors_prompts_windows_and_pixels(saved) -> None:
    ours, _ = saved
    segment = Segmenter(ours)
    assert (segment.protocol.short_side, segment.protocol.crop, segment.protocol.stride) == (448, 448, 336)
    assert {"a photo of many {}.", "a photo of {}s.", "itap of a {}."} < set(segment.templates)
    assert len(segment.templates) == 9
    assert (ours.mean, ours.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert ours.logit_scale == pytest.approx(1 / 0.005065968260169029, rel=1e-5)


def test_positions_are_the_models_own_unless_others_are_asked_for(saved) -> None:
    ours, _ = saved
    assert ours.resolve("sclip").position_rule == "bilinear_antialias"
    assert ours.resolve("sclip", position_rule="size").position_rule == "size"
