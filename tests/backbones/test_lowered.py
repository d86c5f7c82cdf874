"""What lies between 8-bit products: C computes what torch does, each token for itself, and no run fails without C."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Mapping

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl import load_backbone
from densevl.backbones.lowered import block, compiling, linears
from densevl.backbones.lowered.steps import KINDS, SHIFT, Compiled, Torch

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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("made", FOUND)
def test_what_is_not_finite_never_becomes_a_number(made, bad) -> None:
    """A token whose activations broke down must not come out as one that looks like any other."""
    fc1, fc2 = nn.Linear(32, 64).requires_grad_(False), nn.Linear(64, 32).requires_grad_(False)
    x = torch.randn(3, 32)
    x[1, 5] = bad
    with compiling.use(made):
        for kind in KINDS:
            got = block.Int8Mlp(fc1, kind, fc2)(x)
            assert got.isfinite().all(1).tolist() == [True, False, True], kind
        got = linears.Int8Linear(fc1.weight, None)(x)
        normed = linears.Int8Linear(fc1.weight, None)(linears.lowered_norm(nn.LayerNorm(32).requires_grad_(False), x))
    assert got.isfinite().all(1).tolist() == [True, False, True]
    assert normed.isfinite().all(1).tolist() == [True, False, True]
    q, k, v = torch.randn(3, 1, 2, 7, 16)
    v[0, 1, 3, 2] = q[0, 0, 2, 1] = bad
    got = made.attend(q, k, v).isfinite()
    assert not got[0, 0, 2].any() or isinstance(made, Torch)  # torch's own takes it for a row without keys
    assert not got[0, 1, :, 2].any()
    assert got[0, 0, 3:].all()


@pytest.mark.parametrize("made", FOUND)
def test_a_window_alone_is_the_same_as_in_a_batch(made) -> None:
    """To the last bit: pictures must not change with the batch they happen to be in."""
    tower = wrap(random_clip()).at_precision("int8").tower
    x = torch.randn(64, 17, 32)  # more than run at once
    x[3] *= 1000
    with compiling.use(made), torch.no_grad():
        together = tower.run(0, x, (4, 4))
        for one in (0, 3, 34, 35, 63):
            assert torch.equal(tower.run(0, x[one : one + 1], (4, 4))[0], together[one])
        view = tower.view(1, (4, 4))
        assert torch.equal(view.ffn(x)[36:37], view.ffn(x[36:37]))


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


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU(approximate="tanh")], ids=str)
def test_an_mlp_in_bytes_is_nearer_than_with_signs(activation) -> None:
    mlp = nn.Sequential(nn.Linear(64, 256), activation, nn.Linear(256, 64)).requires_grad_(False).eval()
    x = torch.randn(700, 64)  # two slices
    exact, got = mlp(x), block.int8_mlp(mlp)(x)
    first, second = (linears.Int8Linear(layer.weight, layer.bias) for layer in (mlp[0], mlp[2]))
    signed = second(activation(first(x)))
    assert (got - exact).norm() < 0.95 * (signed - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Mish()], ids=str)
def test_an_activation_that_may_fall_lower_keeps_its_sign(activation) -> None:
    assert block.int8_mlp(nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 4)).eval()) is None


@pytest.fixture(scope="module")
def eva(tmp_path_factory) -> tuple[nn.Module, str]:
    """A CLIP whose tower adds biases of its own to q, k and v, and the folder it is in."""
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear"}
    config = {"embed_dim": 16, "vision_cfg": {**vision, "image_size": 224}, "text_cfg": text}
    model, folder = open_clip.CLIP(**config).eval(), tmp_path_factory.mktemp("eva")
    for each in model.visual.trunk.blocks:
        nn.init.normal_(each.attn.q_bias)
        nn.init.normal_(each.attn.v_bias)
    save_file({name: t.clone() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    return model, str(folder)


@pytest.mark.parametrize(("precision", "bar"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.06)])
def test_a_tower_with_biases_apart_is_loaded_at_any_precision(eva, precision, bar) -> None:
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        want = F.normalize(eva[0].encode_image(pixels), dim=-1)
    got = F.normalize(load_backbone(eva[1], precision=precision).encode_image(pixels), dim=-1)
    assert (got - want).norm() < bar * want.norm()


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
        ('src=$(mktemp -d)/s.c; sed "s/0.70710678f/0.5f/" "$(echo "$@" | tr " " "\\n" | grep c$)" > $src; '
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
