"""Models of billions of weights, small here: loaded in another precision, block by block, and within the memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import TINY, close, random_clip
from densevl import devices, load_backbone
from densevl.backbones.build import PLAN, _empty, memory
from densevl.backbones.managing import convert, describe
from densevl.backbones.precision import PRECISIONS
from densevl.backbones.projected.projection import projection_of
from densevl.backbones.towers import tower_of
from densevl.cli import app
from densevl.errors import ModelError, WeightsError
from densevl.regions.operators.trained import trained
from densevl.weights import large
from densevl.weights.facts import Form

LOWERED = [name for name in PRECISIONS if name != "float32"]
LIMIT = {"int8": 0.12, "bfloat16": 0.05, "float16": 0.006, "float32-packed": 2e-5}
WIDTH, HEADS, DEPTH, PATCH, SIDE, JOINT = 64, 2, 3, 8, 32, 24
WORDS = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def shards(folder: Path, state: dict[str, torch.Tensor], count: int = 3) -> Path:
    """A folder with an index and shards, as Hugging Face writes large models."""
    folder.mkdir(exist_ok=True)
    names, table = list(state), {}
    for part in range(count):
        file = f"model-{part + 1:05}-of-{count:05}.safetensors"
        own = {name: state[name].contiguous() for name in names[part::count]}
        save_file(own, folder / file)
        table |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    return folder


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def folder(request, tmp_path: Path) -> Path:
    return shards(
        tmp_path / "model", {key: value.to(request.param) for key, value in random_clip().state_dict().items()}
    )


# Loaded in a precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", LOWERED)
def test_a_model_loaded_in_a_precision_is_the_one_brought_to_it(folder, precision) -> None:
    whole, held = load_backbone(str(folder)), load_backbone(str(folder), precision=precision)
    pixels = torch.randn(2, 3, 40, 48)
    for recipe in ("vanilla", "sclip"):
        want = whole.at_precision(precision).encode_dense(pixels, recipe).features
        assert torch.equal(held.encode_dense(pixels, recipe).features, want)
    assert torch.equal(held.encode_text(["a dog"]), whole.encode_text(["a dog"]))
    assert held.text_fingerprint == whole.text_fingerprint
    square = pixels[:, :, :32, :32]
    lowered = whole.at_precision(precision).encode_dense(square, "vanilla").cls
    close(held.encode_image(square), lowered)
    assert held.precision == precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_holds_what_the_plan_says_and_nothing_else(folder, precision) -> None:
    held = load_backbone(str(folder), precision=precision)
    tensors = [*held.model.parameters(), *held.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    packed = [m for m in held.model.modules() if hasattr(m, "_packed")]
    bytes_held = sum(t.nbytes for t in tensors) + sum(
        4 * m._packed.outputs * m._packed.inputs if precision == "float32-packed" else m._packed.numel() for m in packed
    )
    assert 0.97 < bytes_held / held.plan.memory[precision] < 1.03
    found = describe(held)
    assert found["image_parameters"] == sum(p.numel() for p in random_clip().visual.parameters())
    assert found[f"bytes_in_{precision}"] == held.plan.memory[precision]


def test_weights_are_copies_that_do_not_change_with_their_file(tmp_path) -> None:
    place = shards(tmp_path / "model", {key: value.bfloat16() for key, value in random_clip().state_dict().items()})
    held = load_backbone(str(place), precision="bfloat16")
    pixels = torch.randn(1, 3, 32, 32)
    before = held.encode_dense(pixels).features
    for file in place.glob("*.safetensors"):
        with file.open("r+b") as shard:  # in place, as a copy of another file over it does
            shard.seek(file.stat().st_size // 2)
            shard.write(bytes(file.stat().st_size // 2))
    assert torch.equal(held.encode_dense(pixels).features, before)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, path: model.at_precision("float32"),
        lambda model, path: model.at_precision("int8"),
        lambda model, path: trained(model, "alpha", path),
        lambda model, path: projection_of(model),
        lambda model, path: convert(model, path),
    ],
    ids=["float32", "another", "alpha", "projection", "convert"],
)
def test_what_needs_the_trained_weights_says_to_load_them(folder, tmp_path, use) -> None:
    with pytest.raises(ModelError, match="load it in float32") as caught:
        use(load_backbone(str(folder), precision="bfloat16"), tmp_path / "x")
    assert "\n" not in str(caught.value)


# The memory -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch) -> None:
    needs = load_backbone(str(folder)).plan.memory
    assert needs["float32"] > needs["bfloat16"] == needs["float16"] > needs["int8"]
    for free, names in ((needs["float32"] - 1, "bfloat16"), (needs["bfloat16"] - 1, "int8")):
        monkeypatch.setattr(devices, "free_memory", lambda device, free=free: free)
        with pytest.raises(
            WeightsError, match=rf"free on cpu: take precision {names} \(.* GB\).*, or a smaller model"
        ) as caught:
            load_backbone(str(folder))
        assert "\n" not in str(caught.value)
        load_backbone(str(folder), precision=names)
    monkeypatch.setattr(devices, "free_memory", lambda device: 0)
    with pytest.raises(WeightsError, match="free on cpu: take a smaller model"):
        load_backbone(str(folder), precision="int8")


def test_the_plan_is_told_before_the_load(folder, caplog) -> None:
    with caplog.at_level(logging.DEBUG, PLAN):
        load_backbone(str(folder), precision="int8")
    told = [record.getMessage() for record in caplog.records if record.name == PLAN]
    assert len(told) == 1
    assert "in int8 on cpu; free: " in told[0]


def test_a_container_has_what_its_group_has(tmp_path) -> None:
    assert devices._of_group(tmp_path) is None
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 200\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert devices._of_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._of_group(tmp_path) is None
    assert devices.free_memory() > 0


# EVA-CLIP of 8 and 18 billion -----------------------------------------------------------------------------------------


def eva_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by the names of EVA's own program."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float | None = None) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * (1.5 / shape[-1] ** 0.5 if scale is None else scale)

    state = {
        "cls_token": normal(1, 1, WIDTH, scale=1),
        "pos_embed": normal(1, 1 + (SIDE // PATCH) ** 2, WIDTH, scale=0.5),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH, scale=0.1),
        "patch_embed.proj.bias": normal(WIDTH, scale=0.2),
        "norm.weight": 1 + normal(WIDTH, scale=0.2),
        "head.weight": normal(JOINT, WIDTH),
    }
    for block in (f"blocks.{index}." for index in range(DEPTH)):
        state |= {f"{block}norm{n}.weight": 1 + normal(WIDTH, scale=0.2) for n in (1, 2)}
        state[f"{block}attn.qkv.weight"] = normal(3 * WIDTH, WIDTH)
        for layer, rows, columns in (
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 5 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 5 * WIDTH),
        ):
            state |= {f"{block}{layer}.weight": normal(rows, columns), f"{block}{layer}.bias": normal(rows, scale=0.2)}
    torch.manual_seed(seed)
    text = TextTransformer(**WORDS, output_dim=JOINT).state_dict()
    words = {f"text.{key}": value for key, value in text.items() if key != "attn_mask"}
    return {**{f"visual.{key}": value for key, value in state.items()}, **words, "logit_scale": torch.tensor(2.0)}


def eva_features(state: dict[str, torch.Tensor], pixels: torch.Tensor, after: bool) -> torch.Tensor:
    """The image embedding as the paper has it, in float64; `after`: norms stand after attention and MLP."""
    own = {key.removeprefix("visual."): value.double() for key, value in state.items()}

    def rms(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * own[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    def attention(x: torch.Tensor, block: str) -> torch.Tensor:
        q, k, v = (x @ own[f"{block}attn.qkv.weight"].T).chunk(3, dim=-1)
        heads = []
        for part in torch.arange(WIDTH).chunk(HEADS):
            weights = (q[..., part] @ k[..., part].mT / len(part) ** 0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        return linear(torch.cat(heads, -1), f"{block}attn.proj")

    def mlp(x: torch.Tensor, block: str) -> torch.Tensor:
        hidden = linear(x, f"{block}mlp.fc1")
        return linear(hidden * torch.special.ndtr(hidden), f"{block}mlp.fc2")

    kernel, bias = own["patch_embed.proj.weight"], own["patch_embed.proj.bias"]
    columns = F.unfold(pixels.double(), PATCH, stride=PATCH)
    patches = (kernel.flatten(1) @ columns + bias[:, None]).mT
    x = torch.cat([own["cls_token"].expand(len(x := patches), -1, -1), patches], 1) + own["pos_embed"]
    for block in (f"blocks.{index}." for index in range(DEPTH)):
        for part, name in ((attention, f"{block}norm1"), (mlp, f"{block}norm2")):
            x = x + (rms(part(x, block), name) if after else part(rms(x, name), block))
    return rms(x[:, 0], "norm") @ own["head.weight"].T


@pytest.fixture(params=["EVA-CLIP-8B", "EVA-CLIP-18B"])
def arch(request, monkeypatch) -> str:
    """The architecture with its own kinds of layers, at a small width."""
    name: str = request.param
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "img_size": SIDE}
    monkeypatch.setitem(large.TRUNKS, name, {**large.TRUNKS[name], **sizes})
    monkeypatch.setitem(large.ARCHITECTURES, name, {**large.ARCHITECTURES[name], "text_cfg": WORDS})
    return name


@pytest.mark.parametrize(
    "wrapped", [lambda state: state, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}]
)
def test_eva_clip_is_what_its_paper_says(arch, tmp_path, wrapped: Callable[[Any], Any]) -> None:
    state, pixels = eva_state(), torch.randn(2, 3, SIDE, SIDE)
    torch.save(wrapped(state), tmp_path / "eva.pt")
    backbone = load_backbone(arch, tmp_path / "eva.pt")
    want = eva_features(state, pixels, after="18B" in arch)
    assert want.abs().mean() > 0.3
    close(backbone.encode_image(pixels), want.float())
    close(backbone.encode_dense(pixels, "vanilla").cls, want.float())
    assert not backbone.guesses
    assert backbone.reading["form"] == "EVA-CLIP"
    assert backbone.default_recipe == ("vanilla" if "18B" in arch else "sclip")


@pytest.mark.parametrize("precision", LOWERED)
def test_eva_clip_runs_lowered(arch, tmp_path, precision) -> None:
    torch.save({key: value.half() for key, value in eva_state().items()}, tmp_path / "eva.pt")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    whole = load_backbone(arch, tmp_path / "eva.pt")
    held = load_backbone(arch, tmp_path / "eva.pt", precision=precision)
    want = whole.encode_dense(pixels, "vanilla").features
    got = held.encode_dense(pixels, "vanilla").features
    assert (got - want).norm() / want.norm() < LIMIT[precision]
    assert torch.equal(got, whole.at_precision(precision).encode_dense(pixels, "vanilla").features)


@pytest.mark.parametrize(("name", "image", "whole"), [("EVA-CLIP-8B", 7.53, 8.22), ("EVA-CLIP-18B", 17.63, 18.33)])
def test_eva_clip_has_its_billions_without_taking_memory(name, image, whole) -> None:
    model = _empty(large.ARCHITECTURES[name], Form("EVA-CLIP", {}, trunk=large.TRUNKS[name]))
    assert sum(p.numel() for p in model.visual.parameters()) / 1e9 == pytest.approx(image, abs=0.01)
    assert memory(model, tower_of(model.visual, name), name)["float32"] / 4e9 == pytest.approx(whole, abs=0.01)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


def test_a_file_of_another_architecture_is_one_line(arch, tmp_path) -> None:
    torch.save(random_clip().state_dict(), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=f"does not fit '{arch}'") as caught:
        load_backbone(arch, tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_rotary_tables_are_not_left_without_memory(tmp_path) -> None:
    config = json.loads(json.dumps(large.ARCHITECTURES["EVA-CLIP-8B"]))
    config["vision_cfg"] |= {"timm_model_name": "eva02_base_patch16_clip_224"}
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
    model = _empty({**config, "embed_dim": JOINT, "text_cfg": WORDS}, Form("x", {}, trunk=sizes))
    assert any("rope" in name for name, _ in model.named_buffers())
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_prints_the_plan_of_a_large_model(folder, monkeypatch, tmp_path, quiet) -> None:
    monkeypatch.setattr("densevl.backbones.build.LARGE", 0)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    words = ["segment", str(tmp_path / "x.png"), "--labels", "a,b", "--model", str(folder), "--precision", "bfloat16"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), *["-q"] * quiet])
    assert done.exit_code == 0
    assert ("memory: 'model' takes 0.0 GB in bfloat16 on cpu; free: " in done.stderr) == (not quiet)
