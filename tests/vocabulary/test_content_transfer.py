"""MAFT+'s content transfer from random tensors in the form of its file, by torch's own attention and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from conftest import PHOTOS, close
from densevl import Segmenter
from densevl.errors import DensevlError, OptionError
from densevl.vocabulary import TextOptions
from densevl.vocabulary.transforms.content import ContentTransfer, places
from densevl.vocabulary.transforms.load import load_transform

E = 24


def state(zero: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    parts = nn.ModuleDict(
        {"multihead_attn": nn.MultiheadAttention(E, 8), "MLP": nn.Linear(E, E), "norm": nn.LayerNorm(E)}
    )
    for value in parts.parameters():
        value.data += 0.3 * torch.randn_like(value)
    if zero:
        nn.init.zeros_(parts["MLP"].weight)
        nn.init.zeros_(parts["MLP"].bias)
        nn.init.zeros_(parts["norm"].bias)
    return {f"cdt.cross_atten.{name}": value.detach().clone() for name, value in parts.state_dict().items()}


def write(path, tensors):
    torch.save({"model": {**tensors, "void_embedding.weight": torch.zeros(1, E)}}, path)
    return path


def code(h: int, w: int) -> np.ndarray:
    """DETR's code, place by place."""
    found = np.zeros((E, h, w))
    for y in range(h):
        for x in range(w):
            for i in range(E // 2):
                period = 10000 ** (2 * (i // 2) / (E // 2))
                turn = math.sin if i % 2 == 0 else math.cos
                found[i, y, x] = turn((y + 1) / (h + 1e-6) * 2 * math.pi / period)
                found[E // 2 + i, y, x] = turn((x + 1) / (w + 1e-6) * 2 * math.pi / period)
    return found


@pytest.mark.parametrize("panoptic", [False, True])
def test_it_is_the_paper_s_attention(panoptic, tmp_path) -> None:
    tensors = {key.removeprefix("cdt.cross_atten."): value.double() for key, value in state().items()}
    rows, dense = torch.randn(3, E), torch.randn(E, 3, 5)
    close(places(E, 3, 5), torch.from_numpy(code(3, 5)).float())
    attend = nn.MultiheadAttention(E, 8).double()
    attend.load_state_dict({key.removeprefix("multihead_attn."): v for key, v in tensors.items() if "multihead" in key})
    values = dense.double().flatten(1).T
    with torch.no_grad():
        m = attend(rows.double(), values + torch.from_numpy(code(3, 5)).flatten(1).T, values)[0]
    m = m @ tensors["MLP.weight"].T + tensors["MLP.bias"]
    x = m if panoptic else rows + m
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * tensors["norm.weight"] + tensors["norm.bias"]
    wanted = rows + x if panoptic else x
    found = ContentTransfer.load(write(tmp_path / "maft.pth", state()), panoptic=panoptic).apply(rows, dense)
    close(found, wanted.float())


def test_a_panoptic_model_that_learned_nothing_leaves_words_as_they_are(tmp_path) -> None:
    own = ContentTransfer.load(write(tmp_path / "maft.pth", state(zero=True)), panoptic=True)
    rows = torch.randn(3, E)
    assert torch.equal(own.apply(rows, torch.randn(E, 2, 2)), rows)


def test_words_look_at_each_photo(tiny, tmp_path) -> None:
    own = load_transform(write(tmp_path / "maft.pth", state()))
    assert tiny.embed_dim == own.width
    protocol = {"short_side": 48, "crop": 32, "stride": 16}
    segment = Segmenter(tiny, templates="photo", protocol=protocol, text=TextOptions(transform=own), background="none")
    plain = Segmenter(tiny, templates="photo", protocol=protocol, background="none")
    photo = PHOTOS / "cat.jpg"
    assert (segment(photo, ["cat", "sky"]).scores != plain(photo, ["cat", "sky"]).scores).any()
    with pytest.raises(OptionError, match="reads the photo"):
        own.apply(torch.randn(2, E))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"other.weight": torch.zeros(2, 2)}, "no content transfer"),
        (lambda s: {k: v for k, v in s.items() if "MLP.bias" not in k}, "lacks MLP.bias"),
        (lambda s: {**s, "cdt.cross_atten.norm.bias": torch.zeros(7)}, "do not fit each other"),
        (lambda s: {**s, "cdt.cross_atten.norm.bias": torch.full((E,), torch.nan)}, "NaN"),
    ],
)
def test_other_files_are_one_clear_line(change, said, tmp_path) -> None:
    with pytest.raises(DensevlError, match=said) as caught:
        ContentTransfer.load(write(tmp_path / "other.pth", change(state())))
    assert "\n" not in str(caught.value)
