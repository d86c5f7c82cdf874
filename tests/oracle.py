"""A slow, independent reading of the recipes' formulas: float64, one head, one token row at a time.

It shares no code with densevl: weights are read from the state dict, attention maps are built whole, loops are plain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Oracle:
    """Runs a recipe on an open_clip ViT's state dict, for one image."""

    def __init__(self, model: torch.nn.Module, positions: Tensor) -> None:
        """`positions`: (1 + h*w, D), already resized to the image's grid."""
        self.w = {
            k.removeprefix("visual."): v.double() for k, v in model.state_dict().items() if k.startswith("visual.")
        }
        self.positions = positions.double()
        self.heads = model.visual.transformer.resblocks[0].attn.num_heads
        self.patch = model.visual.patch_size[0]
        self.layers = len(model.visual.transformer.resblocks)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def mlp(self, x: Tensor, block: str) -> Tensor:
        y = self.norm(x, block + "ln_2") @ self.w[block + "mlp.c_fc.weight"].T + self.w[block + "mlp.c_fc.bias"]
        y = y / (1 + torch.exp(-1.702 * y))
        return y @ self.w[block + "mlp.c_proj.weight"].T + self.w[block + "mlp.c_proj.bias"]

    def attention(self, u: Tensor, block: str, recipe, grid: tuple[int, int]) -> Tensor:
        width = u.shape[1]
        d = width // self.heads
        qkv = u @ self.w[block + "attn.in_proj_weight"].T + self.w[block + "attn.in_proj_bias"]
        outputs = []
        for head in range(self.heads):
            part = {n: qkv[:, i * width + head * d : i * width + (head + 1) * d] for i, n in enumerate("qkv")}
            heat = recipe.temperature
            if heat == "adaptive":
                heat = sum(math.sqrt(float((row**2).sum())) for row in u) / len(u) / math.sqrt(d)
            maps = [self.attention_map(part, term, recipe, grid, heat, d) for term in recipe.terms]
            if recipe.combine == "logit-sum":
                total = torch.softmax(sum(maps) + self.bias(recipe, grid), -1)
            else:
                total = sum(maps) / (len(maps) if recipe.combine == "prob-mean" else 1)
            outputs.append(recipe.gain * total @ part["v"])
        y = torch.cat(outputs, 1)
        return y @ self.w[block + "attn.out_proj.weight"].T + self.w[block + "attn.out_proj.bias"]

    def attention_map(
        self, part: dict[str, Tensor], term: str, recipe, grid: tuple[int, int], heat: float, d: int
    ) -> Tensor:
        n = len(part["v"])
        if term == "id":
            return torch.eye(n, dtype=torch.float64)
        a, b = part[term[0]], part[term[1]]
        unit = lambda m: m / m.norm(dim=1, keepdim=True)  # noqa: E731
        if recipe.metric == "cosine":
            a, b = unit(a), unit(b)
            for _ in range(recipe.iterations):
                a = b = unit(torch.softmax(heat * a @ b.T, -1) @ b)
            logits = heat * a @ b.T
        else:
            logits = heat * a @ b.T / math.sqrt(d)
        if not recipe.cls_key:
            logits[:, 0] = -math.inf
        return logits if recipe.combine == "logit-sum" else torch.softmax(logits + self.bias(recipe, grid), -1)

    def bias(self, recipe, grid: tuple[int, int]) -> Tensor:
        n = 1 + grid[0] * grid[1]
        table = torch.zeros(n, n, dtype=torch.float64)
        if recipe.bias:
            for i in range(1, n):
                for j in range(1, n):
                    (yi, xi), (yj, xj) = divmod(i - 1, grid[1]), divmod(j - 1, grid[1])
                    table[i, j] = math.exp(-((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * recipe.bias.std**2))
        return table

    def run(self, pixels: Tensor, recipe, native) -> Tensor:
        """pixels (3, H, W) to (1 + h*w, joint); `native` is the recipe of an untouched block."""
        grid = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch
        filters = self.w["conv1.weight"].flatten(1)
        rows = [self.w["class_embedding"]]
        for y in range(grid[0]):
            for x in range(grid[1]):
                cell = pixels[:, y * self.patch : (y + 1) * self.patch, x * self.patch : (x + 1) * self.patch]
                rows.append(filters @ cell.double().flatten())
        x = self.norm(torch.stack(rows) + self.positions, "ln_pre")
        dual = None
        for layer in range(self.layers):
            block = f"transformer.resblocks.{layer}."
            u = self.norm(x, block + "ln_1")
            if recipe.dual_layers and layer >= self.layers - recipe.dual_layers:
                dual = (x if dual is None else dual) + self.attention(u, block, recipe, grid)
            if layer == self.layers - 1 and not recipe.dual_layers:
                y = self.attention(u, block, recipe, grid)
                y = x + y if recipe.residual else y
                x = y + self.mlp(y, block) if recipe.ffn else y
            else:
                x = x + self.attention(u, block, native, grid)
                x = x + self.mlp(x, block)
        if dual is not None:
            x = torch.cat([x[:1], dual[1:]])
        return self.norm(x, "ln_post") @ self.w["proj"]
