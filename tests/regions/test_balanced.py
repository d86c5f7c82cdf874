"""Balanced attention of zero-guidance segmentation against a plain float64 reading of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import random_clip, wrap
from densevl.errors import ModelError, OptionError
from densevl.proposals.base import Proposals
from densevl.regions.operators.balanced import balanced
from oracle_proxy import Trunk, unit

SIDE = 32


@pytest.fixture(scope="module")
def clip():
    model = random_clip()
    return wrap(model), Trunk(model.state_dict(), model.visual.transformer.resblocks[0].attn.num_heads)


def _reading(trunk: Trunk, pixels: torch.Tensor, seen: torch.Tensor, start: int, spread: float) -> torch.Tensor:
    """One segment, head by head: seen, bool over patches."""
    x = trunk.run(pixels, start)[-1]
    allowed = torch.cat([torch.tensor([True]), seen])
    for layer in range(start, trunk.layers):
        q, k, v = (trunk.split(trunk.project(x, layer, name)) for name in "qkv")
        full, own, cosines = [], [], []
        for head in range(trunk.heads):
            raw = torch.exp(q[head] @ k[head].T / math.sqrt(q.shape[-1]))
            full.append(raw / raw.sum(1, keepdim=True))
            hidden = full[-1] * allowed
            own.append(hidden / hidden.sum(1, keepdim=True))
            cosines += [float(unit(a) @ unit(b)) for a, b in zip(own[-1], full[-1], strict=True)]
        weight = math.exp(-((np.mean(cosines) + 1) ** 2) / spread)
        rows = [(a - weight * p[0]) @ v[head] for head, (a, p) in enumerate(zip(own, full, strict=True))]
        x = x + trunk.out(torch.cat(rows, 1), layer)
        x = x + trunk.mlp(x, layer)
    return unit(trunk.read(x[:1])[0])


@pytest.mark.parametrize(("start", "spread"), [(-2, 5.0), (1, 0.7), (0, 5.0)])
def test_it_is_the_papers(clip, start, spread) -> None:
    backbone, trunk = clip
    pixels = torch.randn(1, 3, SIDE, SIDE)
    patch = backbone.patch_size
    masks = np.zeros((20, SIDE, SIDE), bool)  # more than one part of regions at once
    for index, row in enumerate(masks):
        row[: patch * (1 + index % 2), patch * (index % 3 > 0) : patch * (2 + index % 2)] = True
    found = balanced(backbone, pixels, Proposals.from_masks(masks), start=start, spread=spread)
    first = start if start >= 0 else trunk.layers + start
    for index in (0, 1, 4, 19):
        seen = torch.from_numpy(masks[index, ::patch, ::patch].copy()).flatten()
        np.testing.assert_allclose(found[index], _reading(trunk, pixels[0], seen, first, spread), atol=2e-5)


def test_a_full_mask_with_nothing_taken_out_is_the_images_own_vector(clip) -> None:
    backbone, _ = clip
    pixels = torch.randn(1, 3, SIDE, SIDE)
    whole = Proposals.from_masks(np.ones((1, SIDE, SIDE), bool))
    own = F.normalize(backbone.encode_image(pixels)[0], dim=0)
    torch.testing.assert_close(balanced(backbone, pixels, whole, spread=1e-3)[0], own, atol=1e-5, rtol=1e-5)
    assert float(balanced(backbone, pixels, whole, spread=5.0)[0] @ own) < 0.99999


def test_what_cannot_be_is_refused(clip) -> None:
    backbone, _ = clip
    pixels, whole = torch.randn(1, 3, SIDE, SIDE), Proposals.from_masks(np.ones((1, SIDE, SIDE), bool))
    with pytest.raises(OptionError, match="spread is 0"):
        balanced(backbone, pixels, whole, spread=0)
    for start in (99, -99):
        with pytest.raises(ModelError, match="leaves no block"):
            balanced(backbone, pixels, whole, start=start)
