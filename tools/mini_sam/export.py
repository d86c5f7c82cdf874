"""Write the shipped file from a checkpoint: python -m tools.mini_sam.export --run DIR --to densevl/weights.

mini_sam.safetensors holds the averaged weights in float16, named as the package's `Sam` names them; its header holds
the sizes of the network. The SHA-256 is printed: it goes into `densevl/proposals/sam/mini_sam.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save

from densevl import digest
from densevl.files import atomic_write
from densevl.proposals.sam.mini_sam import SamConfig
from tools.mini.export import mixed
from tools.mini.run import CHECKPOINT

NAME = "mini_sam.safetensors"


def export(run: Path, folder: Path, mix: Path | None = None) -> str:
    """Write mini_sam.safetensors into `folder`, mixed as in `tools.mini.export`; return its SHA-256."""
    checkpoint = torch.load(run / CHECKPOINT, weights_only=True)
    state = {key: value.half().contiguous() for key, value in checkpoint["ema"].items()}
    content = save(mixed(state, mix), {"sam_config": SamConfig(**checkpoint["config"]).to_json()})
    atomic_write(folder / NAME, content)
    return digest.of_bytes(content)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--to", type=Path, required=True, help="folder for the file")
    parser.add_argument("--mix", type=Path, help="the weights that the run went on from, to take the mean with")
    given = parser.parse_args()
    found = export(given.run, given.to, given.mix)
    size = (given.to / NAME).stat().st_size
    print(f"{given.to / NAME}: {size / 1e6:.2f} MB, sha256 {found}")


if __name__ == "__main__":
    main()
