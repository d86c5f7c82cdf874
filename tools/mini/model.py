"""The network: a stock open_clip CLIP, and the parts of its forward pass that training needs, in bfloat16 or float32.

Shape letters: B batch, N tokens (CLS first), n patches kept, D width, E joint space, T texts, L text tokens.
open_clip's modules hold the weights and are never changed; only the order of calls is ours, for two reasons: the last
block is needed for CLS alone and for the value path of the patches, and matrix products run in bfloat16 (twice as fast
on a CPU with AVX512-BF16) while the residual stream, the norms and the attention stay in float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from open_clip import CLIP
from torch import nn
from torch.nn import functional as F

HEAD = 64
PATCH = 8


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of the network: image side in pixels, widths, depths, joint space, text context in tokens."""

    image: int = 64
    width: int = 192
    layers: int = 6
    embed: int = 128
    text_width: int = 128
    text_layers: int = 3
    context: int = 32

    def open_clip(self, rows: int) -> dict[str, Any]:
        """The model config as open_clip takes it, with `rows` rows in the token table."""
        vision = {"image_size": self.image, "layers": self.layers, "width": self.width}
        text = {"context_length": self.context, "vocab_size": rows, "width": self.text_width}
        return {
            "embed_dim": self.embed,
            "vision_cfg": {**vision, "head_width": min(HEAD, self.width), "patch_size": PATCH},
            "text_cfg": {**text, "heads": max(1, self.text_width // HEAD), "layers": self.text_layers},
        }

    @classmethod
    def of(cls, model_cfg: dict[str, Any]) -> MiniConfig:
        """The sizes of what `open_clip` returned."""
        vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
        return cls(
            image=vision["image_size"],
            width=vision["width"],
            layers=vision["layers"],
            embed=model_cfg["embed_dim"],
            text_width=text["width"],
            text_layers=text["layers"],
            context=text["context_length"],
        )

    def to_dict(self) -> dict[str, int]:
        """Plain values, for a checkpoint."""
        return asdict(self)


class Learner(nn.Module):
    """The CLIP under training and the scale of its patch scores (used only by the loss).

    Attributes:
        clip: open_clip's `CLIP` with the compact token table.
        patch_scale: log of the factor on patch cosines.
    """

    def __init__(self, config: MiniConfig, rows: int) -> None:
        """Build with fresh weights from torch's global generator."""
        super().__init__()
        self.clip = CLIP(**config.open_clip(rows))
        self.patch_scale = nn.Parameter(torch.tensor(10.0).log())

    def load(self, state: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        """Take the weights of a compact file, as `densevl.backbones.mini.read_compact` returns it."""
        self.clip.load_state_dict({key: value.float() for key, value in state.items() if key != "token_ids"})
        self.patch_scale.data.fill_(float(header["patch_scale"])).log_()

    def encode_images(
        self, pixels: torch.Tensor, keep: torch.Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode normalised pixels (B, 3, S, S), or the patches `keep` (B, n) int64 of them.

        Returns:
            CLS (B, E) as open_clip's `encode_image`, and the value-only read-out of the last block for each patch,
            (B, n, E), as recipe "maskclip_value"; neither normalised.
        """
        visual: Any = self.clip.visual
        x_BND = _embed(visual, pixels, keep)
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x_BND = _block(block, x_BND, dtype)
        u_BND = last.ln_1(x_BND)
        q, k, v = _weights(last)
        value_BND = _linear(u_BND, *v, dtype)
        cls = _attend(_linear(u_BND[:, :1], *q, dtype), _linear(u_BND, *k, dtype), value_BND, last.attn.num_heads)
        out = last.attn.out_proj
        cls = x_BND[:, :1] + _linear(cls, out.weight, out.bias, dtype)
        cls = _mlp(last, cls, dtype)[:, 0]
        patches = _linear(value_BND[:, 1:], out.weight, out.bias, dtype).float()
        return visual.ln_post(cls) @ visual.proj, visual.ln_post(patches) @ visual.proj

    def encode_tokens(self, tokens: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Encode compact ids (T, L) into unit vectors (T, E)."""
        clip: Any = self.clip
        x_TLD = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]
        for block in clip.transformer.resblocks:
            x_TLD = _block(block, x_TLD, dtype, causal=True)
        x_TD = x_TLD[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return F.normalize(clip.ln_final(x_TD) @ clip.text_projection, dim=-1)

    @torch.no_grad()
    def resized(self, config: MiniConfig, rows: int) -> Learner:
        """Return a copy for another image side: the positional grid is resized, all else is kept."""
        state = self.state_dict()
        key, grid = "clip.visual.positional_embedding", config.image // PATCH
        table = state[key]
        side = round((len(table) - 1) ** 0.5)
        cells = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
        cells = F.interpolate(cells, size=(grid, grid), mode="bicubic", align_corners=False)
        new = Learner(config, rows)
        new.load_state_dict({**state, key: torch.cat([table[:1], cells[0].flatten(1).T])})
        return new


def _embed(visual: Any, pixels: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Pixels (B, 3, S, S) to tokens (B, 1 + n, D) before the first block; dropped patches are never computed."""
    grid = pixels.shape[-1] // PATCH
    patches = pixels.unflatten(3, (grid, PATCH)).unflatten(2, (grid, PATCH)).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(len(pixels), grid * grid, -1)
    positions = visual.positional_embedding[1:].expand(len(pixels), -1, -1)
    if keep is not None:
        patches = patches.take_along_dim(keep[..., None], dim=1)
        positions = visual.positional_embedding[1:][keep]
    x_BnD = F.linear(patches, visual.conv1.weight.flatten(1)) + positions
    cls = (visual.class_embedding + visual.positional_embedding[0]).expand(len(pixels), 1, -1)
    return visual.ln_pre(torch.cat([cls, x_BnD], dim=1))


def _block(block: Any, x_BND: torch.Tensor, dtype: torch.dtype, causal: bool = False) -> torch.Tensor:
    attn = block.attn
    qkv = _linear(block.ln_1(x_BND), attn.in_proj_weight, attn.in_proj_bias, dtype)
    heads = _attend(*qkv.chunk(3, dim=-1), attn.num_heads, causal)
    return _mlp(block, x_BND + _linear(heads, attn.out_proj.weight, attn.out_proj.bias, dtype), dtype)


def _mlp(block: Any, x_BND: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mlp = block.mlp
    hidden = F.gelu(_linear(block.ln_2(x_BND), mlp.c_fc.weight, mlp.c_fc.bias, dtype))
    return x_BND + _linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias, dtype)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, causal: bool = False) -> torch.Tensor:
    """Attention of (B, N, D) projections in float32 (its backward pass is slow in bfloat16 on CPUs)."""
    split = (part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).flatten(2)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))


def _weights(block: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True))
