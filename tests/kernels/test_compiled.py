"""Steps of blocks in C compute what torch does, each token for itself, and no run fails without a compiler."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.kernels import use
from densevl.kernels.attention import attend
from densevl.kernels.compiled import compiling
from densevl.kernels.compiled.steps import IN_FLOAT32, KINDS, SHIFT, Compiled, Torch

FOUND = [pytest.param(made, id=made.name) for made in {id(s): s for s in (Torch(), compiling.steps())}.values()]
SHAPES = [(1, 1), (5, 7), (3, 33), (40, 768), (2, 3072)]


def _exact(h: torch.Tensor, kind: str) -> torch.Tensor:
    return (
        h * (1.702 * h).sigmoid()
        if kind == "quick"
        else F.gelu(h, approximate="tanh" if kind == "gelu_tanh" else "none")
    )


def _drawn(shape: tuple[int, int]) -> torch.Tensor:
    """Tokens as different as tokens are: some a thousand times others, one of zeros."""
    x = torch.randn(shape) * torch.logspace(-2, 2, shape[0])[:, None]
    x[-1] *= shape[0] == 1
    return x


@pytest.mark.parametrize("top", [127, 63])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("made", FOUND)
def test_bytes_times_step_are_the_tokens(made, shape, top) -> None:
    x, norm = _drawn(shape), nn.LayerNorm(shape[1]).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    for wanted, (got, step) in ((x, made.lower(x, top)), (norm(x), made.norm_lower(x, norm, top))):
        assert got.dtype == torch.uint8
        assert got.min() >= 1
        assert got.max() <= 2 * top + 1
        assert ((got.double() - top - 1) * step - wanted).abs().le(0.502 * step + 1e-6).all()


@pytest.mark.parametrize("top", [255, 127])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("made", FOUND)
def test_bytes_times_step_are_the_activations(made, shape, kind, top) -> None:
    h, step, bias = _drawn(shape), torch.rand(shape[0], 1), torch.randn(shape[1])
    wanted = _exact((h * step + bias).double(), kind)
    got, steps = made.activate_lower(h.clone(), step, bias, kind, top)
    assert got.max() <= top
    assert (got * steps.double() - SHIFT - wanted).abs().le(0.502 * steps + 1e-6).all()


@pytest.mark.parametrize("kind", IN_FLOAT32)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("made", FOUND)
def test_an_activation_in_place_is_that_of_float64(made, shape, kind) -> None:
    h, bias = _drawn(shape), torch.randn(shape[1])
    for given in (bias, None):
        x = h if given is None else h + given
        want = F.silu(x.double()) if kind == "silu" else _exact(x.double(), kind)
        held = h.clone()
        assert made.activate(held, given, kind) is held
        torch.testing.assert_close(held.double(), want, rtol=2e-6, atol=5e-6)
    odd = torch.tensor([[float("nan"), float("inf"), 1.0]])
    assert made.activate(odd, None, kind).isfinite().tolist() == [[False, False, True]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_activation_is_below_what_is_added(kind) -> None:
    assert _exact(torch.linspace(-20, 5, 200_001).double(), kind).min() > -SHIFT


@pytest.mark.parametrize("made", FOUND)
def test_scale_and_bias_go_where_they_are_told(made) -> None:
    y, step, bias = torch.randn(5, 33), torch.rand(5, 1), torch.randn(33)
    wanted, out = y * step + bias, torch.empty(5, 33)
    assert made.scale(y, step, bias, None, out) is out
    close(out, wanted)
    close(made.scale(y, step, bias), wanted)
    close(y, wanted)


HEADS = [(1, 1, 1, 1), (2, 3, 5, 16), (1, 2, 48, 64), (2, 2, 197, 72), (1, 1, 300, 33)]


@pytest.mark.parametrize("sizes", HEADS, ids=str)
@pytest.mark.parametrize("made", FOUND)
def test_attention_is_softmax_of_products(made, sizes) -> None:
    batch, heads, tokens, width = sizes
    joint = 2 * torch.randn(batch, tokens, 3, heads, width)  # as a joint projection gives them
    q, k, v = joint.permute(2, 0, 3, 1, 4)
    wanted = (q.double() @ k.double().mT / width**0.5).softmax(-1) @ v.double()
    close(made.attend(q, k, v), wanted.float())
    close(made.attend(*(t.mT.contiguous().mT for t in (q, k, v))), wanted.float())
    few = (q[:, :, :3].double() @ k.double().mT * 0.2).softmax(-1) @ v.double()
    close(made.attend(q[:, :, :3], k, v, 0.2), few.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("made", FOUND)
def test_attention_of_what_is_not_finite_never_becomes_a_number(made, bad) -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 16)
    v[0, 1, 3, 2] = q[0, 0, 2, 1] = bad
    got = made.attend(q, k, v).isfinite()
    assert not got[0, 0, 2].any() or isinstance(made, Torch)  # torch's own takes it for a row without keys
    assert not got[0, 1, :, 2].any()
    assert got[0, 0, 3:].all()


CASES: dict[str, Any] = {
    "plain": lambda q, k, v: (q, k, v),
    "shared by a batch": lambda q, k, v: (q, k[:1].expand_as(k), v[:1].expand_as(v)),
    "one key": lambda q, k, v: (q, k[:, :, :1], v[:, :, :1]),
    "negative views": lambda q, k, v: tuple(torch._neg_view(t.clone()) for t in (q, k, v)),
    "shared by heads": lambda q, k, v: (q, k[:, :1], v[:, :1]),
    "no keys": lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]),
    "no images": lambda q, k, v: (q[:0], k[:0], v[:0]),
    "other values": lambda q, k, v: (q, k, torch.cat([v, v], -1)),
    "three dimensions": lambda q, k, v: (q[0], k[0], v[0]),
    "float64": lambda q, k, v: (q.double(), k.double(), v.double()),
    "bfloat16": lambda q, k, v: (q.bfloat16(), k.bfloat16(), v.bfloat16()),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("made", FOUND)
def test_attend_is_what_torch_computes_for_whatever_torch_takes(made, name) -> None:
    q, k, v = CASES[name](*torch.randn(3, 2, 3, 7, 16))
    with compiling.use(made):
        got = attend(q, k, v, 0.3)
    want = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_attend_keeps_gradients_autocast_graphs_and_the_mode() -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 16)
    want = F.scaled_dot_product_attention(q, k, v)
    with compiling.use(_Never()):
        assert attend(q.clone().requires_grad_(), k, v).requires_grad
        with torch.autocast("cpu", torch.bfloat16):
            assert attend(q, k, v).dtype == torch.bfloat16
        with use("torch"):
            assert torch.equal(attend(q, k, v), want)
        torch.testing.assert_close(make_fx(lambda *given: attend(*given))(q, k, v)(q, k, v), want)
        torch.testing.assert_close(torch.func.vmap(attend)(q[None], k[None], v[None])[0], want)
        with pytest.raises(AssertionError), torch.no_grad():
            attend(q.requires_grad_(), k, v)


class _Never(Torch):
    """Steps whose attention is not to run."""

    def attend(self, *_: object) -> torch.Tensor:
        raise AssertionError


@pytest.mark.parametrize("recipe", ["vanilla", "sclip"])
def test_features_of_a_window_alone_are_those_in_a_batch(recipe) -> None:
    backbone, pixels = wrap(random_clip()), torch.randn(3, 3, 32, 32)
    together = backbone.encode_dense(pixels, recipe).features
    with compiling.use(Torch()):
        close(backbone.encode_dense(pixels, recipe).features, together)
    for index in range(3):
        close(backbone.encode_dense(pixels[index : index + 1], recipe).features[0], together[index])


def test_threads_change_no_bit() -> None:
    made, threads = compiling.steps(), torch.get_num_threads()
    x, norm = torch.randn(37, 64), nn.LayerNorm(64)
    q, k, v = torch.randn(3, 1, 1, 37, 16)
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append([*made.lower(x, 127), *made.norm_lower(x, norm, 127), made.attend(q, k, v)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What is found with this environment, in words."""

    def found(how: Mapping[str, bool] | None = None, **environment: str) -> str:
        for name, value in {"DENSEVL_CACHE": str(tmp_path / "cache"), **environment}.items():
            monkeypatch.setenv(name, value)
        made, said = compiling._found.__wrapped__(**how or {})
        assert isinstance(made, Compiled) == ("compiled by" in said)
        return said

    return found


def _compiler(folder, body: str) -> str:
    path = folder / "mycc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "without a C compiler 'no-such-cc'.*install"),
        ("echo note; echo >&2 first; echo last >&2; exit 3", "failed: exit status 3: last$"),
        ("kill -9 $$", "failed: exit status -9$"),
        ("exec sleep 60", "failed: it took more than 0.2 s"),
        ("printf '\\377\\n' >&2; exit 1", "failed: exit status 1: .$"),
        ("echo broken header >&2; exit 1", "failed.*broken header"),
        ("exit 0", "failed"),  # and made nothing
        ('echo "" > "$(echo "$@" | sed "s/.*-o //; s/ .*//")"', "failed.*invalid ELF|failed.*file too short"),
        ('src=$(mktemp -d)/s.c; sed "s/1.702f/1.9f/" "$(echo "$@" | tr " " "\\n" | grep c$)" > $src; '
         'exec cc -O1 -fPIC -shared -o "$(echo "$@" | sed "s/.*-o //; s/ .*//")" $src -lm', "computes otherwise"),
    ],
    ids=["none", "last line", "killed", "hangs", "no text", "fails", "makes nothing", "no library", "is wrong"],
)  # fmt: skip
def test_no_compiler_fails_no_run(tmp_path, told, body, said, monkeypatch) -> None:
    if body and "sleep" in body:
        monkeypatch.setattr(compiling, "SECONDS", 0.2)
    assert re.search(said, told(CC="no-such-cc" if body is None else _compiler(tmp_path, body)))


@pytest.mark.parametrize("named", ['"gcc', " ", "''", "/", "\udc80", "gcc\nx"], ids=ascii)
def test_a_malformed_name_of_a_compiler_is_told(told, named) -> None:
    assert "steps between products in torch" in told(CC=named)


def test_a_compiler_that_failed_is_not_asked_again_for_a_day_but_by_doctor(tmp_path, told) -> None:
    broken = _compiler(tmp_path, f"echo x >> {tmp_path}/count; echo broken header >&2; exit 1")

    def asked(**how: bool) -> int:
        assert "exit status 1: broken header" in told(CC=broken, how=how)
        return (tmp_path / "count").read_text().count("x")

    assert [asked(), asked(), asked(anew=True), asked()] == [1, 1, 2, 2]
    (failed,) = (tmp_path / "cache" / "compiled").iterdir()
    os.utime(failed, (time.time() - compiling.DAY - 1,) * 2)
    assert asked() == 3


needs_c = pytest.mark.skipif(not isinstance(compiling.steps(), Compiled), reason="no C compiler here")


@needs_c
def test_what_was_compiled_is_kept_and_only_ones_own_is_run(tmp_path, told) -> None:
    counting = _compiler(tmp_path, f'echo x >> {tmp_path}/count; exec cc "$@" -O0')

    def compiled() -> int:
        assert "compiled by" in told(CC=counting)
        return (tmp_path / "count").read_text().count("x")

    assert [compiled(), compiled()] == [1, 1]
    (kept,) = (tmp_path / "cache" / "compiled").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    content, other = kept.read_bytes(), tmp_path / "other.so"
    spoils = (
        lambda: kept.chmod(0o777),  # anybody may have written it
        lambda: kept.write_bytes(content[:5000]),  # would kill the process
        lambda: kept.write_bytes(content[:-1] + b"x"),
        lambda: (kept.rename(other), kept.symlink_to(other)),
    )
    for count, spoil in enumerate(spoils, start=2):
        spoil()
        assert [compiled(), compiled()] == [count, count]
        assert list(kept.parent.iterdir()) == [kept]


@needs_c
def test_a_folder_of_others_is_not_trusted(tmp_path, told) -> None:
    counting = _compiler(tmp_path, f'echo x >> {tmp_path}/count; exec cc "$@" -O0')
    cache = tmp_path / "cache"
    folder = cache / "compiled"

    def compiled() -> int:
        assert "compiled by" in told(CC=counting)
        return (tmp_path / "count").read_text().count("x")

    assert compiled() == 1
    folder.chmod(0o777)
    assert [compiled(), compiled()] == [2, 3]
    folder.chmod(0o700)
    cache.chmod(0o777)  # anybody may put another in its place
    assert compiled() == 4
    cache.chmod(0o1777)
    assert compiled() == 4
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert compiled() == 5


@needs_c
def test_attention_that_computes_otherwise_is_found_out() -> None:
    class Odd(Torch):
        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return super().attend(q, k, v) * 1.001

    assert compiling._agrees(Torch())
    assert compiling._agrees(compiling.steps())
    assert not compiling._agrees(Odd())


@needs_c
def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, told) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert re.search("compiled by .*, anew in every process", told(DENSEVL_CACHE=str(tmp_path / "file")))


def test_it_can_be_declined(told) -> None:
    assert "DENSEVL_COMPILE" in told(DENSEVL_COMPILE="0")
