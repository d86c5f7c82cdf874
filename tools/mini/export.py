"""Write the shipped file from a checkpoint: python -m tools.mini.export --run DIR --to densevl/weights.

mini.safetensors holds the averaged weights in float16 with the compact token table and the int32 ids of its rows;
its header holds open_clip's model config. mini.json is the same config for people. The SHA-256 is printed: it goes into
`densevl/backbones/mini.py`.

A run that started from a file may be mixed with it, --mix FILE: on styles that training never saw, the mean of both is
better than either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from densevl import digest
from densevl.files import atomic_write_all
from densevl.weights import read_checkpoint
from tools.mini.model import MiniConfig
from tools.mini.run import CHECKPOINT
from tools.mini.tokens import VOCAB_SIZE

PREFIX = "clip."


def compact_state(checkpoint: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the header of the shipped file, from `Run.state`."""
    ema = checkpoint["ema"]
    state = {k.removeprefix(PREFIX): v.half().contiguous() for k, v in ema.items() if k.startswith(PREFIX)}
    state["token_ids"] = checkpoint["token_ids"].int()
    model_cfg = MiniConfig(**checkpoint["config"]).open_clip(VOCAB_SIZE)
    header = {"model_cfg": json.dumps(model_cfg), "patch_scale": f"{float(ema['patch_scale'].exp()):.2f}"}
    return state, header


def mixed(state: dict[str, torch.Tensor], start: Path | None) -> dict[str, torch.Tensor]:
    """Average weights with those of the file from which their run started, float16; None changes nothing."""
    if start is None:
        return state
    first = read_checkpoint(start).tensors
    mean = {k: ((v.float() + first[k].float()) / 2).half() for k, v in state.items() if v.is_floating_point()}
    return {**state, **mean}


def export(run: Path, folder: Path, mix: Path | None = None) -> str:
    """Write mini.safetensors and mini.json into `folder`; return the SHA-256 of the first."""
    checkpoint = torch.load(run / CHECKPOINT, weights_only=True)
    state, header = compact_state(checkpoint)
    state = mixed(state, mix)
    content = save(state, header)
    about = {"model_cfg": json.loads(header["model_cfg"]), "sha256": digest.of_bytes(content)}
    atomic_write_all(
        {folder / "mini.safetensors": content, folder / "mini.json": json.dumps(about, indent=1).encode() + b"\n"}
    )
    return about["sha256"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--to", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--mix", type=Path, help="the weights that the run went on from, to take the mean with")
    given = parser.parse_args()
    found = export(given.run, given.to, given.mix)
    size = (given.to / "mini.safetensors").stat().st_size
    print(f"{given.to / 'mini.safetensors'}: {size / 1e6:.2f} MB, sha256 {found}")


if __name__ == "__main__":
    main()
