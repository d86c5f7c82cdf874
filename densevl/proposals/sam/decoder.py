"""SAM's mask decoder for many prompts of one image: the package's weights and values with a third of its arithmetic.

Kirillov et al., "Segment Anything" (ICCV 2023), appendix A. An image has thousands of cells and a prompt a handful of
tokens. So a projection of the cells that is only multiplied by tokens is applied to the tokens instead: q (W x) =
(q W) x for logits, A (X W) = (A X) W for the values that tokens read. A position enters by W (x + p) = W x + W p,
where W p is computed once per image. In the first layer all prompts see the same cells, which are projected once too.

Shape letters: P prompts, T tokens a prompt, N = h*w cells, C channels, A heads, d head width, F masks a prompt.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from densevl.kernels.common import runs
from densevl.kernels.linear import is_watched, linear, runs_onednn

HELD = {"cpu": 2**23}
"""Size in bytes of the cells of all prompts in a call. On a CPU larger tensors are returned to the system after each
layer and faulted in again."""
IN_CACHE = {"cpu": 2**21}
"""Size in bytes of the pixels that pass through the upscaling together."""
ELSEWHERE = 2**28  # both sizes on other devices: 64 prompts of SAM, as many as in its package
PUBLISHED = ("segment_anything.modeling.", "mobile_sam.modeling.", "torch.nn.modules.")
"""Modules with classes that compute the same; MobileSAM's are copies. Adapters and quantised layers do not."""


def decoder_of(decoder: Any, embedding: torch.Tensor, places: torch.Tensor) -> Decoder:
    """The decoder of one image: `FoldedDecoder` if all its parts have published classes, otherwise as it is.

    Args:
        decoder: a `MaskDecoder` of `segment_anything`, or of a package with the same structure.
        embedding: (1, C, h, w) of the image, plus that of "no mask given". places: (1, C, h, w), position codes.
    """
    known = all(type(part).__module__.startswith(PUBLISHED) for part in decoder.modules())
    return (FoldedDecoder if known else Decoder)(decoder, embedding, places)


class Decoder:
    """The transformer and the upscaling of a mask decoder, run as in its package.

    Attributes:
        at_once: the best number of prompts per call.
    """

    def __init__(self, decoder: Any, embedding: torch.Tensor, places: torch.Tensor) -> None:
        self.decoder, self.embedding, self.places = decoder, embedding, places
        self.at_once = max(1, HELD.get(embedding.device.type, ELSEWHERE) // embedding.nbytes)

    def transform(self, tokens_PTC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Let tokens and cells attend to each other: the tokens (P, T, C) and the cells (P, N, C) afterwards."""
        wide = (len(tokens_PTC), -1, -1, -1)
        tokens, cells = self.decoder.transformer(self.embedding.expand(wide), self.places.expand(wide), tokens_PTC)
        return tokens, cells

    def masks(self, cells_PNC: torch.Tensor, filters_PFc: torch.Tensor) -> torch.Tensor:
        """Logits of masks (P, F, 4h, 4w): the products of upscaled cells with filters of C/8 channels."""
        grid = self.embedding.shape[-2:]
        pixels = self.decoder.output_upscaling(cells_PNC.transpose(1, 2).unflatten(2, grid))
        return (filters_PFc @ pixels.flatten(2)).unflatten(2, pixels.shape[-2:])


class FoldedDecoder(Decoder):
    """The same values from fewer products. Values that all prompts share are computed in the constructor."""

    def __init__(self, decoder: Any, embedding: torch.Tensor, places: torch.Tensor) -> None:
        super().__init__(decoder, embedding, places)
        model = decoder.transformer
        self.cells_NC, codes_NC = (grid[0].flatten(1).T.contiguous() for grid in (embedding, places))
        writes = [layer.cross_attn_image_to_token for layer in model.layers]
        reads = [layer.cross_attn_token_to_image for layer in model.layers] + [model.final_attn_token_to_image]
        # Inputs of the tokens in each layer, apart from the cells that a prompt has changed.
        fixed = [self.cells_NC + codes_NC] + [codes_NC] * len(writes)
        # Without the keys' bias: it shifts all logits of a token alike, to which softmax is invariant.
        self.keys = [_heads(F.linear(x, own.k_proj.weight), own.num_heads) for x, own in zip(fixed, reads, strict=True)]
        self.queries = [_heads(own.q_proj(x), own.num_heads) for x, own in zip(fixed, writes, strict=False)]
        self.values_ANd = _heads(reads[0].v_proj(self.cells_NC), reads[0].num_heads)
        self.spread = [_spread(decoder.output_upscaling[step]) for step in (0, 3)]

    def transform(self, tokens_PTC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Decoder.transform`."""
        model, (count, length, channels) = self.decoder.transformer, tokens_PTC.shape
        dearer = length * model.num_heads > channels  # so many points a prompt that folding multiplies more, not less
        if dearer or torch.is_autocast_enabled(tokens_PTC.device.type) or is_watched(self.decoder):
            return super().transform(tokens_PTC)
        tokens, cells = tokens_PTC, self.cells_NC
        for layer, keys, queries in zip(model.layers, self.keys, self.queries, strict=False):
            first = cells is self.cells_NC
            if layer.skip_first_layer_pe:
                tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
            else:
                placed = tokens + tokens_PTC
                tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
            tokens = layer.norm1(tokens)
            read, placed = layer.cross_attn_token_to_image, tokens + tokens_PTC
            got = self._read_first(read, placed) if first else _read(read, placed, keys, cells)
            tokens = layer.norm2(tokens + got)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            write, placed = layer.cross_attn_image_to_token, tokens + tokens_PTC
            if first:
                change = _change(write, tokens, placed, queries)
                cells = torch.baddbmm(cells.expand(count, -1, -1), *change)
            else:
                cells.baddbmm_(*_change(write, tokens, placed, queries, cells))
            cells = layer.norm4(cells)
        got = _read(model.final_attn_token_to_image, tokens + tokens_PTC, self.keys[-1], cells)
        return model.norm_final_attn(tokens + got), cells

    def _read_first(self, attn: Any, placed_PTC: torch.Tensor) -> torch.Tensor:
        """What tokens read from the image as encoded: all prompts' tokens are queries to the same keys."""
        queries = _heads(attn.q_proj(placed_PTC.flatten(0, 1)), attn.num_heads)
        got = F.scaled_dot_product_attention(queries[None], self.keys[0][None], self.values_ANd[None])[0]
        read: torch.Tensor = attn.out_proj(got.transpose(0, 1).flatten(1))
        return read.unflatten(0, placed_PTC.shape[:2])

    def masks(self, cells_PNC: torch.Tensor, filters_PFc: torch.Tensor) -> torch.Tensor:
        """See `Decoder.masks`. The windows of the upscaling do not overlap, so it is a matrix product per cell."""
        if is_watched(self.decoder):
            return super().masks(cells_PNC, filters_PFc)
        (h, w), (count, total, channels) = self.embedding.shape[-2:], cells_PNC.shape
        step = IN_CACHE.get(cells_PNC.device.type, ELSEWHERE) // (2 * channels * cells_PNC.element_size())
        made = cells_PNC.new_empty(count, filters_PFc.shape[1], 16 * total)
        for some in runs(count, step // total):
            for part in runs(total, step):
                pixels = self._pixels(cells_PNC[some, part])
                made[some, :, 16 * part.start : 16 * part.stop] = filters_PFc[some] @ pixels.mT
        nested = made.unflatten(2, (h, w, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return nested.reshape(*made.shape[:2], 4 * h, 4 * w)

    def _pixels(self, cells_PnC: torch.Tensor) -> torch.Tensor:
        """The 2 x 2 parts of each cell, and of each of these: (P, 16n, C/8)."""
        _, norm, act, _, last = self.decoder.output_upscaling
        parts = linear(cells_PnC, *self.spread[0]).unflatten(2, (4, -1)).flatten(1, 2)
        parts = act(F.layer_norm(parts, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        pixels: torch.Tensor = last(linear(parts, *self.spread[1]))
        return pixels.unflatten(2, (4, -1)).flatten(1, 2)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Split the last axis: (..., N, A*d) to (..., A, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2).contiguous()


def _logits(
    tokens_PATd: torch.Tensor, weight: torch.Tensor, fixed_ANd: torch.Tensor, cells_PNC: torch.Tensor | None
) -> torch.Tensor:
    """Products of tokens with `fixed` plus the projected cells of their prompt: (P, A*T, N)."""
    count, heads, _, width = tokens_PATd.shape
    tokens_PATd = tokens_PATd / math.sqrt(width)
    of_heads = tokens_PATd.transpose(0, 1).flatten(1, 2) @ fixed_ANd.mT
    logits = of_heads.unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)
    if cells_PNC is None:
        return logits
    folded_PMC = (tokens_PATd @ weight.unflatten(0, (heads, -1))).flatten(1, 2)
    return logits.add_(_products(folded_PMC, cells_PNC))


def _products(a_PMK: torch.Tensor, b_PNK: torch.Tensor) -> torch.Tensor:
    """Each prompt's a b^T (P, M, N), one by one if that is faster with this machine's library."""
    if runs_onednn(a_PMK[0], b_PNK[0], None):
        return torch.stack([linear(a, b) for a, b in zip(a_PMK, b_PNK, strict=True)])
    return a_PMK @ b_PNK.mT


def _read(attn: Any, placed_PTC: torch.Tensor, keys_ANd: torch.Tensor, cells_PNC: torch.Tensor) -> torch.Tensor:
    """What tokens read from the cells of their prompt: (P, T, C)."""
    heads = attn.num_heads
    logits = _logits(_heads(attn.q_proj(placed_PTC), heads), attn.k_proj.weight, keys_ANd, cells_PNC)
    seen_PATC = _products(logits.softmax(dim=2), cells_PNC.mT).unflatten(1, (heads, -1))
    values_PATd = seen_PATC @ attn.v_proj.weight.unflatten(0, (heads, -1)).mT
    read: torch.Tensor = attn.out_proj(values_PATd.transpose(1, 2).flatten(2) + attn.v_proj.bias)
    return read


def _change(
    attn: Any,
    tokens_PTC: torch.Tensor,
    placed_PTC: torch.Tensor,
    queries_ANd: torch.Tensor,
    cells_PNC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What cells read from the tokens of their prompt, in two factors: (P, N, A*T) and (P, A*T, C)."""
    heads = attn.num_heads
    logits = _logits(_heads(attn.k_proj(placed_PTC), heads), attn.q_proj.weight, queries_ANd, cells_PNC)
    weights = logits.unflatten(1, (heads, -1)).softmax(dim=2).flatten(1, 2)
    values_PATd = _heads(attn.v_proj(tokens_PTC), heads)
    # The weights of a head sum to 1, so each of its values can carry the head's share of the bias.
    values_PATC = values_PATd @ attn.out_proj.weight.T.unflatten(0, (heads, -1)) + attn.out_proj.bias / heads
    return weights.mT, values_PATC.flatten(1, 2)


def _spread(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A transposed convolution with stride equal to window, as a product: weight (window * out, in) and bias."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    return weight, conv.bias.repeat(len(weight) // len(conv.bias))
