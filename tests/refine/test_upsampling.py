"""Trained upsamplers: against formulas written out in float64, and the laws that let them act on few channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import oracle_upsampling as oracle
from conftest import close
from densevl.errors import WeightsError
from densevl.refine.upsampling import KINDS, Upsampler, load_upsampler
from densevl.refine.upsampling.attention import attend, visible

FEATURES = 12


def state_of(kind: str) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) * 0.4 for name, shape in oracle.random_state(kind, features=FEATURES).items()}


def made(kind: str, tmp_path) -> tuple[Upsampler, dict[str, np.ndarray]]:
    state = state_of(kind)
    torch.save(state, tmp_path / f"{kind}.pth")
    found = load_upsampler(kind, tmp_path / f"{kind}.pth")
    return found.to(dtype=torch.float64), {name: value.double().numpy() for name, value in state.items()}


def inputs(size=(14, 22), grid=(4, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 3, *size).double(), torch.randn(1, FEATURES, *grid).double()


@pytest.mark.parametrize("kind", ["anyup", "jafar"])
@pytest.mark.parametrize(
    ("size", "grid", "out"),
    [((14, 22), (4, 7), (14, 22)), ((14, 22), (4, 7), (9, 13)), ((9, 30), (2, 11), (9, 30)), ((6, 5), (1, 3), (6, 5))],
    ids=["photo-size", "smaller-output", "wide", "one-row-of-patches"],
)
def test_attention_upsamplers_are_their_formulas(kind, size, grid, out, tmp_path) -> None:
    up, state = made(kind, tmp_path)
    image, features = inputs(size, grid)
    want = getattr(oracle, kind)(state, image[0].numpy(), features[0].numpy(), features[0].numpy(), out)
    close(up(image, features, features, out)[0], torch.from_numpy(want))


def test_jbu_is_its_formula(tmp_path) -> None:
    up, state = made("jbu", tmp_path)
    image, features = inputs((70, 90), (4, 5))
    adjusted, bias = up.adjusted(features)
    got = up(image, features, adjusted, (64, 80)) + bias[:, None, None]
    close(got[0], torch.from_numpy(oracle.jbu(state, image[0].numpy(), features[0].numpy())))


@pytest.mark.parametrize("kind", KINDS)
def test_words_before_and_after_are_the_same(kind, tmp_path) -> None:
    up, _ = made(kind, tmp_path)
    image, features = inputs((30, 40), (4, 5))
    text, size = torch.randn(3, FEATURES).double(), (30, 40)
    few = up(image, features, torch.einsum("bdhw,td->bthw", features, text), size)
    close(few, torch.einsum("bdhw,td->bthw", up(image, features, features, size), text))


@pytest.mark.parametrize("window", [None, 0.1])
@pytest.mark.parametrize("held", [1, 40, 1000])
def test_chunks_do_not_change_attention(window, held) -> None:
    q, k, maps = torch.randn(4, 4, 11, 9).double(), torch.randn(4, 4, 5, 6).double(), torch.randn(1, 2, 5, 6).double()
    close(attend(q, k, maps, window, held), attend(q, k, maps, window, 10**9))


@pytest.mark.parametrize(("pixels", "patches"), [(20, 10), (448, 28), (7, 3), (1, 1), (100, 1), (3, 40)])
def test_windows_reach_as_far_as_they_touch(pixels, patches) -> None:
    got = visible(pixels, patches, 0.1)
    for place in range(pixels):
        assert got[place].nonzero()[:, 0].tolist() == list(oracle.seen(place, pixels, patches, 0.1))


@pytest.mark.parametrize("kind", ["anyup", "jafar"])
def test_a_constant_stays_what_it_is(kind, tmp_path) -> None:
    up, _ = made(kind, tmp_path)
    image, features = inputs()
    close(up(image, features, torch.full((1, 1, 4, 7), 3.0).double(), (14, 22)), 3.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "nan"])
def test_a_file_that_does_not_fit_is_refused(kind, fault, tmp_path) -> None:
    state = state_of(kind)
    name = (
        "up2.range_proj.3.bias"
        if kind == "jbu"
        else "query_encoder.1." + ("block.2" if kind == "anyup" else "conv1") + ".weight"
    )
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state["head.weight"] = torch.zeros(2)
    elif fault == "shape":
        state[name] = torch.zeros(5, 5)
    else:
        state[name] = torch.full_like(state[name], torch.nan)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        load_upsampler(kind, tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_of_another_kind_is_named(kind, other, tmp_path) -> None:
    if kind == other:
        return
    save_file(state_of(other), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"is of '{other}', not of '{kind}': take refine='{other}'"):
        load_upsampler(kind, tmp_path / "x.safetensors")


def test_jbu_reads_the_checkpoint_as_it_is_published(tmp_path) -> None:
    state = state_of("jbu")
    whole = {f"upsampler.{name}": value for name, value in state.items()}
    whole |= {"model.1.norm.weight": torch.ones(3), "downsampler.x": torch.ones(2), "scale_net.y": torch.ones(1)}
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "maskclip.ckpt")
    found = load_upsampler("jbu", tmp_path / "maskclip.ckpt")
    assert found.width == FEATURES
    assert set(found.tensors) == set(state)


def test_something_else_is_no_upsampler(tmp_path) -> None:
    save_file({"conv1.weight": torch.zeros(2, 3, 4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is not of 'anyup'"):
        load_upsampler("anyup", tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="upsampler is 'loftup'"):
        load_upsampler("loftup", tmp_path / "x.safetensors")
