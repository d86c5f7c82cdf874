"""Weights as people bring them: of another model, half of one, a pointer to one, or no weights at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from case import Case, cases, run
from safetensors.torch import save_file

from conftest import TINY, random_clip
from densevl import load_backbone
from densevl.errors import DensevlError
from densevl.weights import read_checkpoint

EVA = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None},
    "text_cfg": {"context_length": 20, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


def _state(folder: Path, change: Callable[[str], str | None] = str) -> Path:
    """A tiny CLIP whose names are changed; None leaves a tensor out."""
    state = {change(key): value.contiguous() for key, value in random_clip().state_dict().items()}
    save_file({key: value for key, value in state.items() if key is not None}, folder / "x.safetensors")
    return folder / "x.safetensors"


def _torch(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "x.pt")
    return folder / "x.pt"


def _load(folder: Path, weights: Path, config: dict[str, Any] = TINY) -> Any:
    (folder / "arch.json").write_text(json.dumps(config))
    return load_backbone(str(folder / "arch.json"), weights, device="cpu")


def _config(folder: Path, text: bytes) -> Any:
    (folder / "arch.json").write_bytes(text)
    return load_backbone(str(folder / "arch.json"), _state(folder), device="cpu")


def _pointer(folder: Path) -> Path:
    (folder / "x.pth").write_bytes(POINTER)
    return folder / "x.pth"


def _kept(tensors: Any) -> bool:
    return set(tensors) == {"a"}


def _other(folder: Path) -> Any:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"model.embed_tokens.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    return load_backbone(str(folder), device="cpu")


def _folder(folder: Path, names: dict[str, bytes], model: str | None = None) -> Any:
    """Load a folder of a config, a tiny CLIP's first tensors in two shards, and other files."""
    state = {key: value.contiguous() for key, value in random_clip().state_dict().items()}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    for number, keys in enumerate((list(state)[:9], list(state)[9:]), 1):
        save_file({key: state[key] for key in keys}, folder / f"model-{number}-of-2.safetensors")
    for name, content in names.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return load_backbone(model or str(folder), device="cpu")


TABLE = (
    Case(
        "shards whose index was not downloaded",
        "half of what a repository holds",
        lambda folder: _folder(folder, {}),
        refused=r"is one of 2 shards, and their index \(model.safetensors.index.json\) is not beside them",
    ),
    Case(
        "an index whose shard was not downloaded",
        "a download that was stopped",
        lambda folder: _folder(
            folder, {"model.safetensors.index.json": b'{"weight_map": {"a": "model-3-of-3.safetensors"}}'}
        ),
        refused="names 1 files that are not beside it, model-3-of-3.safetensors first",
    ),
    Case(
        "a repository of the hub cache",
        "the folder above the one with the files",
        lambda folder: _folder(folder, {"snapshots/x": b""}),
        refused="is a repository of the hub cache: name it hf-hub:ORG/REPO",
    ),
    Case(
        "a folder of another kind of model",
        "a language model",
        _other,
        refused="holds no CLIP that densevl reads: config.json beside it says llama",
    ),
    Case(
        "a name in lower case",
        "names as other programs write them",
        lambda folder: load_backbone("vit-b-16/openai"),
        refused=r"no architecture 'vit-b-16' in open_clip \(closest: ViT-B-16",
    ),
    Case(
        "a name that no disk takes",
        "a text pasted into the wrong place",
        lambda folder: load_backbone("a" * 300),
        refused="no model 'aaa",
    ),
    Case(
        "the config instead of its folder",
        "a file picked in a dialogue",
        lambda folder: (
            (
                _torch(folder, random_clip().state_dict()).rename(folder / "x.bin"),
                (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY})),
                load_backbone(str(folder / "open_clip_config.json"), device="cpu"),
            )[-1].embed_dim
        ),
        right=lambda width: width == TINY["embed_dim"],
    ),
    Case(
        "another CLIP in an EVA",
        "a file and an architecture that do not belong together",
        lambda folder: _load(folder, _state(folder), EVA),
        refused=r"does not fit 'arch': [\d,]+ missing",
    ),
    Case(
        "a tower without its text",
        "the image half of a model, in its own names",
        lambda folder: _load(folder, _state(folder, lambda k: k[7:] if k.startswith("visual.") else None)),
        refused="holds the image tower alone",
    ),
    Case(
        "a tower without its text, of another architecture",
        "the image half of a model, and a wrong architecture",
        lambda folder: _load(folder, _state(folder, lambda k: k[7:] if k.startswith("visual.") else None), EVA),
        refused="holds the image tower alone",
    ),
    Case(
        "names below visual",
        "the image half of a model, in the whole model's names",
        lambda folder: _load(folder, _state(folder, lambda k: k if k.startswith("visual.") else None)),
        refused="holds the image tower alone",
    ),
    Case(
        "names that are numbers",
        "a torch file of a list kept as a dict",
        lambda folder: _load(folder, _torch(folder, {n: torch.ones(1) for n in range(3)})),
        refused="names a tensor by the int 0",
    ),
    Case(
        "200,000 names",
        "a file that is mostly names",
        lambda folder: _load(folder, _torch(folder, {f"{'k' * 30}{n}": n for n in range(200_000)})),
        refused="x.pt' (cannot be read|does not fit)",
    ),
    Case(
        "an optimizer beside the model",
        "a checkpoint of a training",
        lambda folder: (
            read_checkpoint(_torch(folder, {"optimizer": {"lr": 1.0}, "state_dict": {"a": torch.ones(1)}})).tensors
        ),
        right=_kept,
    ),
    Case(
        "an empty config",
        "a config that was not downloaded",
        lambda folder: _config(folder, b""),
        refused="config .* is empty",
    ),
    Case(
        "a pointer for a config",
        "a clone without Git LFS",
        lambda folder: _config(folder, POINTER),
        refused="run 'git lfs pull'",
    ),
    Case(
        "a deep config",
        "a config that nobody wrote",
        lambda folder: _config(folder, b"[" * 10**5),
        refused="nested too deeply",
    ),
    Case(
        "a config whose key stands twice",
        "a config merged by hand",
        lambda folder: _config(folder, b'{"embed_dim": 8, "embed_dim": 9}'),
        refused="appears twice",
    ),
    Case(
        "an evaluation config that is a web page",
        "a page saved in place of the file it shows",
        lambda folder: ((folder / "x.yaml").write_text("<!DOCTYPE html>"), run("eval", "run", folder / "x.yaml"))[1],
        refused="is a web page",
    ),
)


@cases(*TABLE)
def test_weights_are_what_was_named_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


POINTED = {
    "model": ["segment", "{image}", "--labels", "a", "--model", "ViT-B-32", "--weights"],
    "proxy": ["segment", "{image}", "--labels", "a", "--model", "mini", "--recipe", "proxyclip", "--proxy"],
    "SAM": ["regions", "{image}", "--labels", "a", "--model", "mini", "--proposals", "sam", "--sam-checkpoint"],
    "adapters": ["anomaly", "score", "{image}", "--model", "mini", "--scoring", "adaptclip", "--adapters"],
}


@pytest.mark.parametrize("option", POINTED)
def test_a_git_lfs_pointer_is_the_same_line_for_every_option(tmp_path, option) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    words = [word.format(image=tmp_path / "a.png") for word in POINTED[option]]
    done = run(*words, _pointer(tmp_path), "--out", tmp_path / "out")
    assert done.code == 2
    with pytest.raises(DensevlError) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert done.warnings[-1] == f"error: {caught.value}"
