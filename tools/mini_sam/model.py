"""Training extensions of the package's SAM: prompts of many images decoded at once, and a start from mini's tower.

Shape letters: B images, P prompts, C channels, h cells, L side of a low-resolution mask (4h), K points, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

Weights = dict[str, torch.Tensor]

RENAMED = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.lin1",
    "mlp.c_proj": "mlp.lin2",
}
"""Parts of a block, with names of open_clip and of segment-anything; both are the same pre-norm block."""


def encode_prompts(sam: Any, *prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode points, boxes and masks as the package does, in float32: in bfloat16 positions would shift."""
    with torch.autocast("cpu", enabled=False):
        return sam.prompt_encoder(*prompts)


def decode(
    sam: Any, images_PChw: torch.Tensor, sparse_PKC: torch.Tensor, dense_PChw: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode prompts that each have their own image embedding (the package's decoder takes one image per call).

    Returns:
        Logits (P, 4, L, L) and predicted IoU (P, 4), float32: first the single mask, then the three guesses.
    """
    with torch.autocast("cpu", enabled=False):
        places = sam.prompt_encoder.get_dense_pe().expand(len(sparse_PKC), -1, -1, -1)
    decoder = sam.mask_decoder
    output_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_TC.expand(len(sparse_PKC), -1, -1), sparse_PKC], dim=1)
    source = images_PChw + dense_PChw
    tokens, cells = decoder.transformer(source, places, tokens)
    pixels = decoder.output_upscaling(cells.transpose(1, 2).reshape(source.shape))
    heads = decoder.output_hypernetworks_mlps
    filters = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
    logits = (filters @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
    return logits.float(), decoder.iou_prediction_head(tokens[:, 0]).float()


def split_parameters(sam: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the matrices of encoder blocks and decoder transformer (for Muon), and everything else (for AdamW)."""
    matrices, others = [], []
    for name, parameter in sam.named_parameters():
        inner = "image_encoder.blocks" in name or "mask_decoder.transformer" in name
        (matrices if inner and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def resized_state(state: Weights, grid: int) -> Weights:
    """Return the weights for another image side: positions are resized to `grid` cells per side, the rest is kept."""
    key = "image_encoder.pos_embed"
    places_DN = state[key][0].flatten(0, 1).T
    return {**state, key: _resized(places_DN, grid).T.reshape(1, grid, grid, -1)}


@torch.no_grad()
def start_from_clip(sam: Any, clip: Weights, pixels: torch.Tensor) -> None:
    """Start the image encoder from the image tower of a CLIP of equal width, depth, heads and patch.

    The blocks are copied. CLS is left out, and the norm before the blocks, which SAM's encoder lacks, is folded into
    the patch embedding with the mean deviation it divides by on some images; training corrects the difference.

    Args:
        sam: changed in place.
        clip: tensors as open_clip names them, "visual." in front.
        pixels: normalised images (B, 3, S, S).
    """
    encoder, visual = sam.image_encoder, {k.removeprefix("visual."): v.float() for k, v in clip.items()}
    blocks = {k: v for k, v in visual.items() if k.startswith("transformer.resblocks.")}
    encoder.blocks.load_state_dict({_renamed(k): v for k, v in blocks.items()}, strict=True)
    places_DN = _resized(visual["positional_embedding"][1:].T, encoder.pos_embed.shape[1])
    conv = visual["conv1.weight"]
    tokens_BDN = F.conv2d(pixels, conv, stride=conv.shape[-1]).flatten(2) + places_DN
    scale = visual["ln_pre.weight"] / tokens_BDN.std(dim=1).mean()
    encoder.patch_embed.proj.weight.copy_((conv - conv.mean(0)) * scale[:, None, None, None])
    encoder.patch_embed.proj.bias.copy_(visual["ln_pre.bias"])
    places_DN = (places_DN - places_DN.mean(0)) * scale[:, None]
    encoder.pos_embed.copy_(places_DN.T.view_as(encoder.pos_embed))


def _renamed(key: str) -> str:
    key = key.removeprefix("transformer.resblocks.")
    for theirs, ours in RENAMED.items():
        key = key.replace(theirs, ours)
    return key


def _resized(places_DN: torch.Tensor, grid: int) -> torch.Tensor:
    side = round(places_DN.shape[1] ** 0.5)
    cells = places_DN.unflatten(1, (side, side))[None]
    return F.interpolate(cells, size=(grid, grid), mode="bicubic", align_corners=False)[0].flatten(1)
