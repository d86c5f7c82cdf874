"""Stored pairs: the image tower's vectors of pictures and the text tower's of their captions, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import save

from densevl.backbones.projected.towers import Vision, Words
from densevl.errors import DensevlError, ImageError
from densevl.files import atomic_write, shown
from densevl.images import encode_png
from densevl.saved import Kind, parse_json, read_json
from densevl.weights import read_checkpoint
from tools.arguments import new_folder, read_or_skip
from tools.render.art import TRAIN_STYLES
from tools.render.scenes import SceneMaker

CAPTIONS = "captions.json"
KIND = Kind("file of pairs", DensevlError, "make it anew with python -m tools.projector features")
BATCH = 32


class Pairs(NamedTuple):
    """(N, D) of the image tower, (N, E) of the text tower, and both as described in `Joined`."""

    image: torch.Tensor
    text: torch.Tensor
    vision: str
    words: str
    stamp: str


def render(out: Path, count: int, size: int, seed: int) -> None:
    """Write `count` scenes of the training styles as PNG files, and their captions in one JSON file.

    Raises:
        OutputError: If the folder is not empty, or cannot be written.
    """
    new_folder(out)
    maker, captions = SceneMaker(size, styles=TRAIN_STYLES, seed=seed), {}
    for number in range(count):
        scene = maker.scene()
        captions[f"{number:05d}.png"] = scene.caption
        atomic_write(out / f"{number:05d}.png", encode_png(Image.fromarray(scene.image)))
    atomic_write(out / CAPTIONS, json.dumps(captions, indent=1).encode())


def read_captions(path: Path) -> dict[str, str]:
    """Read captions by file name, as `render` writes them.

    Raises:
        DensevlError: If it is not such a file, or has fewer than two.
    """
    found = read_json(path, Kind("captions", DensevlError, 'write them as {"a.jpg": "a dog on grass", ...}'))
    texts = {str(name): text for name, text in found.items() if isinstance(text, str) and text.strip()}
    if len(texts) < max(2, len(found)):
        raise DensevlError(f"{path} has {len(texts)} captions for {len(found)} files; each needs one, and two at least")
    return texts


def encode(
    folder: Path, captions: Mapping[str, str], vision: Vision, words: Words
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode pictures of a folder and their captions to (N, D) and (N, E) float32; unreadable ones are passed over.

    Raises:
        ImageError: If fewer than two can be read.
    """
    given, names = list(captions), []
    rows: list[torch.Tensor] = []
    for start in range(0, len(given), BATCH):
        group = given[start : start + BATCH]
        found = {name: rgb for name in group if (rgb := read_or_skip(folder / name)) is not None}
        if found:
            pixels = torch.stack([vision.preprocess(Image.fromarray(rgb)) for rgb in found.values()])
            rows.append(vision.whole(pixels).float().cpu())
        names += found
    if len(names) < 2:
        raise ImageError(f"{len(names)} of the {len(captions)} pictures in {shown(folder)} can be read; give two")
    return torch.cat(rows), words([captions[name] for name in names]).float().cpu()


def write(path: Path, pairs: Pairs) -> None:
    """Write pairs as a safetensors file."""
    told = json.dumps(pairs._asdict() | {"image": 0, "text": 0})
    atomic_write(path, save({"image": pairs.image.contiguous(), "text": pairs.text.contiguous()}, {"pairs": told}))


def read(path: Path) -> Pairs:
    """Read pairs.

    Raises:
        DensevlError: If it is another file, or damaged.
    """
    found = read_checkpoint(path)
    if "pairs" not in found.header:
        raise KIND.bad(path, "was not written by tools.projector features")
    with KIND.sense(path):
        pairs = Pairs(**parse_json(found.header["pairs"]) | {side: found.tensors[side] for side in ("image", "text")})
        if len(pairs.image) != len(pairs.text) or pairs.image.ndim != 2 or pairs.text.ndim != 2:
            raise ValueError("its two sides do not pair")
        if len(pairs.image) < 2:
            raise ValueError("it has less than two pairs")
    return pairs
