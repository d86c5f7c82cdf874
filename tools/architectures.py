"""Check that every architecture of open_clip gives dense features and refuses weights of another in one line.

    python -m tools.architectures [PATTERN]

Networks are built on the meta device, so even the largest takes no memory. Prints one row per architecture; exits with
1 if one fails.
"""

from __future__ import annotations

import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import save_file

from densevl import load_backbone
from densevl.backbones.towers import tower_of
from densevl.errors import DensevlError
from densevl.recipes import Hints, get
from densevl.recipes.run import finish, start

LONGEST = 600  # characters of a message
OTHER = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
}


@torch.no_grad()
def dense(arch: str, config: dict[str, Any]) -> str:
    """Return the grid of dense features of an image of three quarters of a square, as text."""
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**vision), config.get("quick_gelu", False))
    tower = tower_of(visual.eval(), arch)
    patch = tower.patch_size
    height, width = 6 * patch, 8 * patch
    if not tower.depth or "relpos" in str(vision.get("timm_model_name")):  # convolutions; positions of one size
        height, width = tower.image_size
    pixels = torch.empty(1, 3, height, width, device="meta")
    recipe = get("vanilla")
    features = finish(tower, start(tower, pixels, recipe, Hints(pixels=pixels)), recipe, Hints(pixels=pixels)).features
    assert features.shape == (1, config["embed_dim"], height // patch, width // patch), tuple(features.shape)
    return f"{tuple(features.shape[1:])}"


def refused(arch: str, weights: Path) -> str:
    """Describe how weights of another network are refused: as such, or for a text side whose config is missing here."""
    try:
        load_backbone(arch, weights, device="cpu")
    except DensevlError as error:
        said = str(error)
        assert "\n" not in said, said
        assert len(said) <= LONGEST, said
        return type(error).__name__
    raise AssertionError("weights of another network were taken")


def main(pattern: str = "*") -> int:
    """Print the table and return the number of architectures that fail."""
    failed = 0
    names = [name for name in open_clip.list_models() if fnmatchcase(name, pattern)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other.safetensors"
        save_file({key: value.contiguous() for key, value in open_clip.CLIP(**OTHER).state_dict().items()}, path)
        for name in names:
            row = []
            for part in (lambda name=name: dense(name, get_model_config(name)), lambda name=name: refused(name, path)):
                try:
                    row.append(part())
                except Exception as error:  # noqa: BLE001 - a table of all that fail
                    row.append(f"FAILS: {type(error).__name__} {' '.join(str(error).split())[:200]}")
            failed += any(part.startswith("FAILS") for part in row)
            print(f"{name:45} {row[0]:20} {row[1]}", flush=True)
    print(f"{len(names)} architectures, {failed} fail")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]) > 0)
