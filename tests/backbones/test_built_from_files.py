"""A model built from a file holds the file's tensors alone: nothing of the time before it was read, on any thread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_towers import COCA, FAMILIES, TEXT, _build, _pixels
from torch import nn

from conftest import TINY, random_clip, wrap
from densevl import load_backbone
from densevl.backbones.build import build
from densevl.weights.facts import Form

PRECISIONS = ("float32", "bfloat16")


def _built(name: str, state: dict[str, torch.Tensor], precision: str = "float32") -> Any:
    """A family of `test_towers` as a file of it is built."""
    family, coca = FAMILIES[name], "coca" in FAMILIES[name]
    config = {
        "embed_dim": 32 if name == "SigLIP" else 24,
        "vision_cfg": dict(family["vision"]),
        "text_cfg": TEXT | ({"embed_cls": True, "output_tokens": True} if coca else {}),
        "custom_text": True,
    } | ({"multimodal_cfg": COCA} if coca else {})
    small = partial(timm.create_model, **family.get("small", {}))
    with mock.patch.object(open_clip.timm_model.timm, "create_model", small):
        return build(name, Form("a test", state), config, Path("file"), {}, "cpu", precision=precision)


def _held(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that an object keeps, in whatever it keeps it."""
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _held(value, seen)
    elif isinstance(thing, list | tuple | set | frozenset):
        for value in thing:
            yield from _held(value, seen)
    elif isinstance(thing, partial):
        yield from _held((thing.func, thing.args, thing.keywords), seen)
    else:
        for cell in getattr(thing, "__closure__", None) or ():
            yield from _held(cell.cell_contents, seen)
        if isinstance(thing, nn.Module) or type(thing).__module__.startswith("densevl."):
            yield from _held(vars(thing), seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_built_from_a_file_is_the_model_and_holds_nothing_else(name) -> None:
    whole = _build(name)
    found = _built(name, whole.model.state_dict())
    pixels = _pixels(found)
    for _ in range(2):
        torch.testing.assert_close(found.encode_dense(pixels).features, whole.encode_dense(pixels).features)
    own = {id(tensor) for tensor in [*found.model.parameters(), *found.model.buffers()]}
    held = list(_held(found, set()))
    assert own <= set(map(id, held))
    assert not any(tensor.is_meta for tensor in held)
    assert all(id(tensor) in own for tensor in held if isinstance(tensor, nn.Parameter))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["native", "CoCa without pooler"])
def test_contributions_of_a_file_are_those_of_the_model(name, precision) -> None:
    whole = _build(name)
    found = _built(name, whole.model.state_dict(), precision)
    pixels = _pixels(found)
    want = (whole if precision == "float32" else whole.at_precision(precision)).encode_dense(pixels, "clip_prs")
    for _ in range(2):
        torch.testing.assert_close(found.encode_dense(pixels, "clip_prs").features, want.features)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("name", ["native", "ResNet", "SigLIP", "EVA02", "mixed rope", "ConvNeXt"])
def test_weights_that_are_loaded_later_are_those_that_count(name, assign) -> None:
    found = _build(name)
    pixels = _pixels(found)
    recipe = "clip_prs" if name == "native" else None
    found.encode_dense(pixels, recipe)
    other = {
        key: value * 1.1 if value.is_floating_point() and key.startswith("visual") else value
        for key, value in found.model.state_dict().items()
    }
    found.model.load_state_dict(other, assign=assign)
    fresh = _build(name)
    fresh.model.load_state_dict(other)
    torch.testing.assert_close(found.encode_dense(pixels, recipe).features, fresh.encode_dense(pixels, recipe).features)


def test_several_threads_load_at_once(tmp_path) -> None:
    register = nn.Module.register_parameter
    models = [random_clip(seed) for seed in range(3)]
    for seed, model in enumerate(models):
        place = tmp_path / str(seed)
        place.mkdir()
        (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, place / "open_clip_model.safetensors")
    pixels = torch.randn(1, 3, 32, 32)

    def one(index: int) -> torch.Tensor:
        assert not nn.Linear(2, 2).weight.is_meta  # a network of the user's own meanwhile
        return load_backbone(str(tmp_path / str(index % 3))).encode_dense(pixels, "clip_prs").features

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(6)))
    assert nn.Module.register_parameter is register
    for index, features in enumerate(found):
        torch.testing.assert_close(features, wrap(models[index % 3]).encode_dense(pixels, "clip_prs").features)
