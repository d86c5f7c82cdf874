"""CLIP-DINOiser's two trained convolutions (ECCV 2024): DINO's affinity and a foreground, read from CLIP's own tokens.

Both read the normalised tokens before the MLP of the third block from the end. A 3 x 3 convolution gives features whose
cosines replace DINO's, and a 1 x 1 convolution separates foreground from background.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from densevl.backbones.proxies.state import read_state
from densevl.errors import ModelError, WeightsError
from densevl.kernels.attention import attend
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import run_trunk
from densevl.weights import SUFFIXES

TAP = 3  # blocks from the end
NAMES = ("obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias")


class DinoiserHeads:
    """The convolutions as a proxy: `encode_dense(pixels, "dinoiser", proxy=DinoiserHeads.load("last.pt"))`.

    They read CLIP's tokens, so they fit only the width they were trained on. Pipelines take the file too:
    `Segmenter(recipe="dinoiser", proxy="last.pt", background="foreground")`, `--proxy last.pt --background foreground`.
    """

    name = "dinoiser-heads"

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        """`weights`: obj_proj.weight (P, D, k, k) and .bias (P,), bkg_decoder.weight (1, D, 1, 1) and .bias (1,).

        Raises:
            WeightsError: a tensor is missing, or has another shape.
        """
        missing = [name for name in NAMES if name not in weights]
        if missing:
            raise WeightsError(f"CLIP-DINOiser heads lack {', '.join(missing)}; give the checkpoint of its authors")
        shapes = [tuple(weights[name].shape) for name in NAMES]
        kernel = shapes[0]
        square = len(kernel) == 4 and kernel[2] == kernel[3] and kernel[2] % 2 == 1
        real = all(weights[name].is_floating_point() for name in NAMES)
        if not real or not square or shapes[1:] != [kernel[:1], (1, kernel[1], 1, 1), (1,)]:
            raise WeightsError(f"CLIP-DINOiser heads are of shapes {shapes}; give the checkpoint of its authors")
        self._weights = {name: weights[name].float() for name in NAMES}

    @classmethod
    def load(cls, path: str | Path) -> DinoiserHeads:
        """Read a checkpoint: the authors' own (a dict with "model_state_dict"), or safetensors with the four tensors.

        Raises:
            WeightsError: the file is unreadable, or of another kind.
        """
        return cls(read_state(Path(path)))

    @classmethod
    def found_in(cls, path: str | Path) -> DinoiserHeads | None:
        """The heads in a file, None for a file of another kind, or none.

        Raises:
            WeightsError: the file is unreadable, or its heads do not fit each other.
        """
        if Path(path).suffix.lower() not in SUFFIXES or not Path(path).is_file():
            return None
        state = read_state(Path(path))
        return cls(state) if NAMES[0] in state else None

    @property
    def width(self) -> int:
        """Width of the towers they fit."""
        return self._weights["obj_proj.weight"].shape[1]

    def from_tower(self, tower: Tower, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        """Features (B, P, h, w) whose cosines are the learned affinity, for normalised pixels (B, 3, H, W)."""
        return self.features(self.tapped(tower, pixels, rule))

    def foreground(self, tower: Tower, pixels: torch.Tensor, rule: str = "size") -> torch.Tensor:
        """Probability (B, h, w) that a patch shows an object rather than background."""
        return self.objects(self.tapped(tower, pixels, rule)).sigmoid()

    def features(self, tapped_BDhw: torch.Tensor) -> torch.Tensor:
        """The first convolution: (B, P, h, w)."""
        weight, bias = self._convolution("obj_proj", tapped_BDhw.device)
        return F.conv2d(F.pad(tapped_BDhw, (weight.shape[-1] // 2,) * 4, mode="replicate"), weight, bias)

    def objects(self, tapped_BDhw: torch.Tensor) -> torch.Tensor:
        """The second convolution: logits (B, h, w) of an object."""
        return F.conv2d(F.normalize(tapped_BDhw, dim=1), *self._convolution("bkg_decoder", tapped_BDhw.device))[:, 0]

    def _convolution(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self._weights[f"{name}.weight"].to(device), self._weights[f"{name}.bias"].to(device)

    def tapped(self, tower: Tower, pixels: torch.Tensor, rule: str = "size") -> torch.Tensor:
        """The input of both convolutions: tokens (B, D, h, w) before the MLP of the third block from the end."""
        grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
        if tower.depth < TAP:
            raise ModelError(f"CLIP-DINOiser heads read the third block from the end; the tower has {tower.depth}")
        x_BND = run_trunk(tower, pixels, rule, leave=TAP, taps=frozenset()).x_BND
        if x_BND.shape[-1] != self.width:
            raise ModelError(
                f"CLIP-DINOiser heads are for towers of width {self.width}, this one has {x_BND.shape[-1]}"
            )
        block = tower.view(tower.depth - TAP, grid)
        qkv = block.project(block.norm(x_BND), "qkv")
        attended = attend(qkv["q"], qkv["k"], qkv["v"])
        inner = block.norm_ffn(x_BND + block.merge(attended))
        return inner[:, tower.prefix :].mT.unflatten(2, grid).float()
