"""A slow, independent reading of the methods' formulas: float64, one head, one token row at a time.

It shares no code with densevl: weights are read from the state dict, attention maps are built whole, loops are plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """One method, written out from its paper; nothing of it is read from densevl's catalogue.

    Attributes:
        pairs: which projections look at which, "id" for each token at itself; their maps are added, each by its weight.
        weights: of the maps; None is 1 each.
        unit: cosines instead of dot products over the root of the width.
        heat: multiplies the logits; "norms" is the mean token norm over the root of the width.
        rounds: how often a unit projection is replaced by its own attention average first.
        std: of the neighbourhood's Gaussian in patches, or None.
        skip, mlp: whether the last block keeps them.
        stream: 0, or the number of last blocks that feed a second stream.
        rule: how positions are resized, see `Oracle.table`.
    """

    pairs: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    unit: bool = False
    heat: float | str = 1.0
    rounds: int = 0
    std: float | None = None
    skip: bool = True
    mlp: bool = True
    stream: int = 0
    rule: str = "scale"


TRAINED = Formula(("qk",))


class Oracle:
    """Runs a formula on an open_clip ViT's state dict, for one image."""

    def __init__(self, state: dict[str, Tensor], heads: int) -> None:
        self.w = {k.removeprefix("visual."): v.double() for k, v in state.items() if k.startswith("visual.")}
        self.width = self.w["class_embedding"].shape[0]
        self.heads = heads
        self.patch = self.w["conv1.weight"].shape[-1]
        self.layers = 1 + max(int(k.split(".")[2]) for k in self.w if k.startswith("transformer.resblocks."))

    def table(self, grid: tuple[int, int], rule: str) -> Tensor:
        """Position table (1 + h*w, D). `scale`: bicubic, fractional scale factor; `size`; `antialias`; `bilinear`;
        `bilinear-half`: rounded to fp16 afterwards, whatever the model's dtype."""
        table = self.w["positional_embedding"]
        g = round(math.sqrt(len(table) - 1))
        if grid == (g, g):
            return table.half().double() if rule.endswith("half") else table
        square = table[1:].T.reshape(1, -1, g, g)
        if rule == "scale":
            out = F.interpolate(square, scale_factor=((grid[0] + 0.1) / g, (grid[1] + 0.1) / g), mode="bicubic")
        elif rule.startswith("bilinear"):
            square = square.float() if rule.endswith("half") else square
            out = F.interpolate(square, size=grid, mode="bilinear").double()
        else:
            out = F.interpolate(square, size=grid, mode="bicubic", antialias=rule == "antialias")
        out = torch.cat([table[:1], out[0].flatten(1).T])
        return out.half().double() if rule.endswith("half") else out

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def mlp(self, x: Tensor, block: str) -> Tensor:
        y = self.norm(x, block + "ln_2") @ self.w[block + "mlp.c_fc.weight"].T + self.w[block + "mlp.c_fc.bias"]
        y = y / (1 + torch.exp(-1.702 * y))
        return y @ self.w[block + "mlp.c_proj.weight"].T + self.w[block + "mlp.c_proj.bias"]

    def attention(self, u: Tensor, block: str, formula: Formula, grid: tuple[int, int]) -> Tensor:
        width = u.shape[1]
        d = width // self.heads
        qkv = u @ self.w[block + "attn.in_proj_weight"].T + self.w[block + "attn.in_proj_bias"]
        weights = formula.weights or (1.0,) * len(formula.pairs)
        outputs = []
        for head in range(self.heads):
            part = {n: qkv[:, i * width + head * d : i * width + (head + 1) * d] for i, n in enumerate("qkv")}
            heat = formula.heat
            if heat == "norms":
                heat = sum(math.sqrt(float((row**2).sum())) for row in u) / len(u) / math.sqrt(d)
            maps = [self.attention_map(part, pair, formula, grid, heat, d) for pair in formula.pairs]
            total = sum(weight * one for weight, one in zip(weights, maps, strict=True))
            outputs.append(total @ part["v"])
        y = torch.cat(outputs, 1)
        return y @ self.w[block + "attn.out_proj.weight"].T + self.w[block + "attn.out_proj.bias"]

    def attention_map(
        self, part: dict[str, Tensor], pair: str, formula: Formula, grid: tuple[int, int], heat: float, d: int
    ) -> Tensor:
        if pair == "id":
            return torch.eye(len(part["v"]), dtype=torch.float64)
        a, b, near = part[pair[0]], part[pair[1]], self.bias(formula.std, grid)
        unit = lambda m: m / m.norm(dim=1, keepdim=True)  # noqa: E731
        if not formula.unit:
            return torch.softmax(heat * a @ b.T / math.sqrt(d) + near, -1)
        a, b = unit(a), unit(b)
        for _ in range(formula.rounds):
            a = b = unit(torch.softmax(heat * a @ b.T + near, -1) @ b)
        return torch.softmax(heat * a @ b.T + near, -1)

    def bias(self, std: float | None, grid: tuple[int, int]) -> Tensor:
        n = 1 + grid[0] * grid[1]
        table = torch.zeros(n, n, dtype=torch.float64)
        if std is not None:
            for i in range(1, n):
                for j in range(1, n):
                    (yi, xi), (yj, xj) = divmod(i - 1, grid[1]), divmod(j - 1, grid[1])
                    table[i, j] = math.exp(-((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * std**2))
        return table

    def run(self, pixels: Tensor, formula: Formula) -> Tensor:
        """pixels (3, H, W) to (1 + h*w, joint)."""
        grid = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch
        filters = self.w["conv1.weight"].flatten(1)
        rows = [self.w["class_embedding"]]
        for y in range(grid[0]):
            for x in range(grid[1]):
                cell = pixels[:, y * self.patch : (y + 1) * self.patch, x * self.patch : (x + 1) * self.patch]
                rows.append(filters @ cell.double().flatten())
        x = self.norm(torch.stack(rows) + self.table(grid, formula.rule), "ln_pre")
        second = None
        for layer in range(self.layers):
            block = f"transformer.resblocks.{layer}."
            u = self.norm(x, block + "ln_1")
            if formula.stream and layer >= self.layers - formula.stream:
                second = (x if second is None else second) + self.attention(u, block, formula, grid)
            if layer == self.layers - 1 and not formula.stream:
                y = self.attention(u, block, formula, grid)
                y = x + y if formula.skip else y
                x = y + self.mlp(y, block) if formula.mlp else y
            else:
                x = x + self.attention(u, block, TRAINED, grid)
                x = x + self.mlp(x, block)
        if second is not None:
            x = torch.cat([x[:1], second[1:]])
        return self.norm(x, "ln_post") @ self.w["proj"]
