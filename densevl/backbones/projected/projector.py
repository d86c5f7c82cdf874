"""`Projector`: the identity, or a small MLP, from a tower's vectors to the joint space; files hold two of them.

ShareLock (Ruthardt et al., 2024) trains an MLP on the language side only, Maniparambil et al. (CVPR 2025) on both.
`Head` attends over all places of a picture, as does the head on SAM in SAM-CLIP (Wang et al., CVPR Workshops 2024).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import nn

from densevl.errors import WeightsError
from densevl.saved import Kind, parse_json
from densevl.weights import State, below, load_strictly, read_checkpoint

HEADER = "projected"
SIDES = ("image", "text")
DROPOUT = 0.2
HEAD = 32
"""Width of an attention head of `Head`."""
KIND = Kind("projectors", WeightsError, "train them again with python -m tools.projector train")


class Projector(nn.Sequential):
    """(B, widths[0]) to (B, widths[-1]): linear layers, BatchNorm, ReLU and dropout between; one width is identity."""

    def __init__(self, widths: Sequence[int], dropout: float = DROPOUT) -> None:
        layers: list[nn.Module] = []
        for number, (wide, narrow) in enumerate(pairwise(widths)):
            if number:
                layers += [nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(dropout)]
            layers.append(nn.Linear(wide, narrow))
        super().__init__(*layers)
        self.widths = tuple(widths)

    def places(self, features_BDhw: torch.Tensor) -> torch.Tensor:
        """Project every place of a map: (B, D, h, w) to (B, E, h, w)."""
        return (
            self(features_BDhw.permute(0, 2, 3, 1).flatten(0, 2))
            .unflatten(0, (-1, *features_BDhw.shape[2:]))
            .permute(0, 3, 1, 2)
        )


class Head(nn.Module):
    """Linear, transformer blocks over all places of a picture, norm, linear: `widths` are (D, hidden, E)."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        tower, width, joint = widths
        self.enter = nn.Linear(tower, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // HEAD), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, joint)
        self.widths = tuple(widths)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Project vectors of whole pictures, (B, D) to (B, E), as maps of one place."""
        return self._tokens(x_BD[:, None])[:, 0]

    def places(self, features_BDhw: torch.Tensor) -> torch.Tensor:
        """Project all places of a map together: (B, D, h, w) to (B, E, h, w)."""
        tokens_BNE = self._tokens(features_BDhw.flatten(2).mT)
        return tokens_BNE.mT.unflatten(2, features_BDhw.shape[2:])

    def _tokens(self, x_BND: torch.Tensor) -> torch.Tensor:
        x_BNW = self.enter(x_BND)
        for block in self.blocks:
            x_BNW = block(x_BNW)
        tokens: torch.Tensor = self.leave(self.norm(x_BNW))
        return tokens


class Joined(NamedTuple):
    """Two projectors, the names of their towers, the towers' hash (`towers.stamp`), and the trained scale."""

    image: Projector | Head
    text: Projector
    vision: str
    words: str
    stamp: str
    scale: float


def write(joined: Joined) -> bytes:
    """The content of a file of projectors."""
    header: dict[str, Any] = {key: getattr(joined, key) for key in ("vision", "words", "stamp", "scale")}
    header["widths"] = [joined.image.widths, joined.text.widths]
    state = {
        f"{side}.{key}": value.detach().cpu().contiguous()
        for side in SIDES
        for key, value in getattr(joined, side).state_dict().items()
    }
    return save(state or {"identity": torch.zeros(1)}, {HEADER: json.dumps(header)})


def read(path: Path) -> Joined:
    """Read a file of projectors, in eval mode: BatchNorm uses its running statistics, and dropout is off.

    Raises:
        WeightsError: the file is damaged, or of another kind, such as a Lightning checkpoint.
    """
    if path.suffix.lower() == ".ckpt":
        raise KIND.bad(
            path,
            "is a Lightning checkpoint, with a config object in its pickle, and its projector is for DINOv2 and a "
            "large language model, whose towers it does not hold",
        )
    found = read_checkpoint(path)
    if HEADER not in found.header:
        raise KIND.bad(path, "was not written by tools.projector")
    with KIND.sense(path):
        header = parse_json(found.header[HEADER])
        image, text = (
            _built(widths, below(found.tensors, f"{side}."), path)
            for side, widths in zip(SIDES, header["widths"], strict=True)
        )
        if image.widths[-1] != text.widths[-1]:
            raise ValueError(f"it projects to {image.widths[-1]} and to {text.widths[-1]} numbers")
        if not isinstance(text, Projector):
            raise ValueError("its text side has a head over places")
        return Joined(
            image, text, str(header["vision"]), str(header["words"]), str(header["stamp"]), float(header["scale"])
        )


def _built(widths: Sequence[int], state: State, path: Path) -> Projector | Head:
    if "enter.weight" in state:
        return _head(widths, state, path)
    linear = [state[key] for key in sorted(state, key=lambda key: int(key.split(".")[0])) if state[key].ndim == 2]
    held = [linear[0].shape[1], *map(len, linear)] if linear else widths[:1]
    if list(widths) != held:
        raise ValueError(f"its layers are {held} wide, and its header says {widths}")
    made = Projector(widths)
    load_strictly(made, state, path, "projectors", "train them anew")
    return made.eval().requires_grad_(False)


def _head(widths: Sequence[int], state: State, path: Path) -> Head:
    held = [state["enter.weight"].shape[1], *(len(state[f"{layer}.weight"]) for layer in ("enter", "leave"))]
    if list(widths) != held or held[1] % max(1, held[1] // HEAD):
        raise ValueError(f"its head is {held} wide, and its header says {widths}")
    made = Head(held, len({key.split(".")[1] for key in state if key.startswith("blocks.")}))
    load_strictly(made, state, path, "projectors", "train them anew")
    return made.eval().requires_grad_(False)
