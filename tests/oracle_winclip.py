"""WinCLIP and WinCLIP+ (Jeong et al., CVPR 2023) written down from the paper, in double precision and plain loops.

Shares no code with the package or with open_clip: it reads the weights of a ViT with two heads of 64 and QuickGELU.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 0.07
EPSILON = 1e-6  # added to distances before reciprocals; one that is 0 has none


class WinClip:
    """Maps of square images at the trained size."""

    def __init__(self, weights: dict[str, Tensor], words: Tensor, heads: int, scales: tuple[int, ...] = (2, 3)) -> None:
        self.w = {key: value.double() for key, value in weights.items()}
        self.words, self.heads, self.scales = words.double(), heads, scales
        self.patch = self.w["conv1.weight"].shape[-1]
        self.grid = round((len(self.w["positional_embedding"]) - 1) ** 0.5)

    def norm(self, x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def tokens(self, pixels: Tensor) -> Tensor:
        """Pixels (3, S, S) to tokens before the first block, (1 + N, D), CLS first."""
        p, rows = self.patch, [self.w["class_embedding"]]
        kernel = self.w["conv1.weight"].flatten(1)
        for y in range(self.grid):
            for x in range(self.grid):
                rows.append(kernel @ pixels[:, y * p : y * p + p, x * p : x * p + p].double().flatten())
        return self.norm(torch.stack(rows) + self.w["positional_embedding"], "ln_pre")

    def run(self, x: Tensor) -> Tensor:
        """Sequences (..., n, D) through all blocks and the last norm."""
        for index in range(sum(key.endswith("ln_1.weight") for key in self.w)):
            name = f"transformer.resblocks.{index}"
            u = self.norm(x, f"{name}.ln_1")
            q, k, v = (u @ self.w[f"{name}.attn.in_proj_weight"].T + self.w[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
            seen = []
            for part in torch.arange(x.shape[-1]).chunk(self.heads):
                weight = (q[..., part] @ k[..., part].mT / len(part) ** 0.5).softmax(-1)
                seen.append(weight @ v[..., part])
            x = (
                x
                + torch.cat(seen, -1) @ self.w[f"{name}.attn.out_proj.weight"].T
                + self.w[f"{name}.attn.out_proj.bias"]
            )
            u = self.norm(x, f"{name}.ln_2") @ self.w[f"{name}.mlp.c_fc.weight"].T + self.w[f"{name}.mlp.c_fc.bias"]
            u = u * (1.702 * u).sigmoid()
            x = x + u @ self.w[f"{name}.mlp.c_proj.weight"].T + self.w[f"{name}.mlp.c_proj.bias"]
        return self.norm(x, "ln_post")

    def image(self, x: Tensor) -> Tensor:
        """The unit embedding of sequences of tokens."""
        found = self.run(x)[..., 0, :] @ self.w["proj"]
        return found / found.norm(dim=-1, keepdim=True)

    def probability(self, unit: Tensor) -> Tensor:
        return (unit @ self.words.T / TEMPERATURE).softmax(-1)[..., 1]

    def windows(self, x: Tensor, side: int) -> dict[tuple[int, int], Tensor]:
        """The unit embedding of every window, by its upper left patch."""
        steps = range(self.grid - side + 1)
        inside = [(y, x) for y in range(side) for x in range(side)]
        corners = [(top, left) for top in steps for left in steps]
        kept = [[0, *(1 + (top + dy) * self.grid + left + dx for dy, dx in inside)] for top, left in corners]
        return dict(zip(corners, self.image(torch.stack([x[rows] for rows in kept])), strict=True))

    def harmonic(self, values: dict[tuple[int, int], Tensor], side: int) -> Tensor:
        """At each patch the harmonic mean over the windows that hold it, (h, w)."""
        found = torch.zeros(self.grid, self.grid, dtype=torch.float64)
        for y in range(self.grid):
            for x in range(self.grid):
                over = [v for (top, left), v in values.items() if 0 <= y - top < side and 0 <= x - left < side]
                found[y, x] = len(over) / sum(1 / value for value in over)
        return found

    def zero_shot(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The probability of damage at each patch and of the image."""
        x = self.tokens(pixels)
        whole = self.probability(self.image(x))
        scales = [
            self.harmonic({at: self.probability(unit) for at, unit in self.windows(x, side).items()}, side)
            for side in self.scales
        ]
        return (len(scales) + 1) / (sum(1 / scale for scale in scales) + 1 / whole), whole

    def few_shot(self, pixels: Tensor, normal: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The map of words plus the mean distance to normal images over patches and windows, and the image score."""
        text, whole = self.zero_shot(pixels)
        x, others = self.tokens(pixels), [self.tokens(image) for image in normal]
        units = [torch.nn.functional.normalize(self.run(tokens)[1:], dim=-1) for tokens in (x, *others)]
        memory = torch.cat(units[1:])
        levels = [torch.stack([(1 - memory @ unit).min() / 2 for unit in units[0]]).view(self.grid, self.grid)]
        for side in self.scales:
            rows = torch.stack([unit for tokens in others for unit in self.windows(tokens, side).values()])
            apart = {at: (1 - rows @ unit).min() / 2 + EPSILON for at, unit in self.windows(x, side).items()}
            levels.append(self.harmonic(apart, side))
        distance = torch.stack(levels).mean(0)
        return text + distance, (whole + distance.max()) / 2


def bilinear(grid: Tensor, size: int) -> Tensor:
    """A map at pixel size, by weights between cell centres, the rim repeated."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * len(grid) / size - 0.5).clamp(0, len(grid) - 1)
    low = place.floor().long()
    high, share = (low + 1).clamp(max=len(grid) - 1), place - low
    rows = grid[low] * (1 - share)[:, None] + grid[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share
