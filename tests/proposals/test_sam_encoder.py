"""SAM's encoder run by our attention gives what the package's own forward gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

modeling = pytest.importorskip("segment_anything.modeling", reason="SAM needs the extra 'sam'")

from densevl.kernels import attention
from densevl.proposals.sam.encoder import run_block, run_encoder


def encoder(**settings) -> nn.Module:
    """A grid of 9 x 9 in windows of 4, so windows are padded; every part has an effect."""
    sizes = {"img_size": 72, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "out_chans": 12}
    windows = {"window_size": 4, "global_attn_indexes": (1,), "use_rel_pos": True}
    torch.manual_seed(0)
    built = modeling.ImageEncoderViT(**{**sizes, **windows, "norm_layer": partial(nn.LayerNorm, eps=1e-6), **settings})
    for parameter in built.parameters():
        parameter.data = torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3)
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("held", [0, 2**22], ids=["a-head-at-a-time", "all-heads"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rel_pos": False}, {"window_size": 0}, {"use_abs_pos": False, "global_attn_indexes": ()}],
    ids=["windows", "no-places", "global", "windows-only"],
)
def test_the_encoder_gives_the_packages_embedding(settings, held, monkeypatch) -> None:
    monkeypatch.setattr(attention, "RELATIVE_HELD", held)
    monkeypatch.setattr(attention, "RELATIVE_ROWS", 20)
    own, pixels = encoder(**settings), torch.randn(2, 3, 72, 72)
    torch.testing.assert_close(run_encoder(own, pixels), own(pixels), atol=1e-5, rtol=1e-5)


def test_a_block_gives_the_packages_tokens_on_any_grid() -> None:
    own = encoder()
    for block in own.blocks:
        tokens = torch.randn(1, 6, 11, 32)
        torch.testing.assert_close(run_block(block, tokens), block(tokens), atol=1e-5, rtol=1e-5)


def test_an_encoder_of_another_package_runs_as_it_is() -> None:
    other, pixels = nn.Conv2d(3, 4, 8, stride=8), torch.randn(1, 3, 16, 16)
    assert torch.equal(run_encoder(other, pixels), other(pixels))
