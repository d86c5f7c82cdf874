"""SAN: a small network beside a frozen CLIP that finds masks and tells copies of CLS where to look.

Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation" (CVPR 2023), read from its published file.
The side network sees the image at full size and, after its first layers, features of CLIP, which sees it smaller. Its
queries predict masks and an attention bias for each head. From CLIP's block `start` on, there is one copy of CLS per
query; it sees itself and, with that bias, the patches. Shape letters: B images, Q queries, N patches, A heads, C and D
widths, E joint space.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import ModelError, WeightsError
from densevl.images import keep_ratio_size, read_image, resize
from densevl.proposals.base import Proposals
from densevl.recipes.blocks import Block
from densevl.recipes.trunk import run_trunk
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.operators.trained import load_tower
from densevl.weights import State, bad_file, below, build_strictly, read_checkpoint

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

OPERATOR, SIDE_NETWORK = "cls_bias", "side_adapter_network."
HEADS, PATCH, EPS = 6, 16, 1e-6
"""In every published side network."""
DIVISIBLE = 32
LONGEST = 2560
SMALLER = {16: 0.5, 14: 0.7}
"""The scale at which CLIP sees the image, by its patch: SAN's settings for ViT-B/16 and for ViT-L/14 at 336."""


def is_san(path: str | Path) -> bool:
    """Whether a file is SAN's, by the names of its tensors."""
    try:
        return any(key.startswith(SIDE_NETWORK) for key in read_checkpoint(path).tensors)
    except WeightsError:
        return False  # the reader of the file reports the error


class San:
    """Masks and their vectors from one file of SAN, beside the CLIP it was trained with.

    Examples:
        >>> san = San(backbone, "san_vit_b_16.pth")
        >>> found = san("photo.jpg")  # a `RegionEmbeddings`: 100 masks, vectors of the operator "cls_bias"

    Attributes:
        void: (E,) unit vector of "no object", which competes with the words.
    """

    def __init__(self, backbone: Backbone, weights: str | Path) -> None:
        """Read the file.

        Args:
            backbone: an open_clip ViT of the architecture SAN was trained with: ViT-B-16-quickgelu, or ViT-L-14-336's.

        Raises:
            ModelError: the backbone is not a ViT of open_clip.
            WeightsError: the file is not SAN's, or was trained with another CLIP.
        """
        tower: Any = getattr(backbone, "tower", None)
        if not hasattr(getattr(tower, "module", None), "conv1"):
            raise ModelError(f"SAN needs a ViT of open_clip, and model '{backbone.name}' has none")
        path = Path(weights)
        tensors = read_checkpoint(path).tensors
        state = {key: value.float() for key, value in tensors.items() if value.is_floating_point()}
        self._side, self._decoder = (below(state, f"{SIDE_NETWORK}{part}") for part in ("", "mask_decoder."))
        first, last = below(state, "clip_visual_extractor."), below(state, "clip_rec_head.")
        self._start = len({key.split(".")[1] for key in first if key.startswith("resblocks.")})
        if "query_embed" not in self._side or not self._start or "ov_classifier.bg_embed" not in state:
            raise bad_file(path, "is not SAN's: it holds no side_adapter_network and CLIP beside it")
        self._backbone = backbone
        try:
            with torch.no_grad():
                self._tower = copy.deepcopy(tower)
                load_tower(self._tower.module, _joined(first, last, self._start), path)
                self._tower.module.float().to(backbone.device)
            self._side = {key: value.to(backbone.device) for key, value in self._side.items()}
            self._decoder = {key: value.to(backbone.device) for key, value in self._decoder.items()}
            self._blocks = _side_blocks(self._side, path).to(backbone.device)
            self.void = F.normalize(state["ov_classifier.bg_embed"][0], dim=0).to(backbone.device)
            self.side = round(self._side["vit_model.pos_embed"].shape[1] ** 0.5) * PATCH
            self.look(torch.zeros(1, 3, 2 * DIVISIBLE, 2 * DIVISIBLE, device=backbone.device))  # do the parts fit?
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise bad_file(path, f"is not SAN's, or of another CLIP ({reason})") from error

    def __call__(self, image: Any) -> RegionEmbeddings:
        """Find and embed the regions of a photo, as `read_image` takes it; queries without a pixel are left out."""
        rgb = read_image(image)
        size = keep_ratio_size(rgb.shape[0], rgb.shape[1], self.side, LONGEST)
        pixels = self._backbone.normalize(resize(rgb, size))[None]
        below_, right = (-length % DIVISIBLE for length in size)
        logits, vectors = self.look(F.pad(pixels, (0, right, 0, below_)))
        full = F.interpolate(logits, size=(size[0] + below_, size[1] + right), mode="bilinear", align_corners=False)
        cut = full[:, :, : size[0], : size[1]]
        probs = F.interpolate(cut, size=rgb.shape[:2], mode="bilinear", align_corners=False)[0].sigmoid()
        inside = probs > 0.5
        sure = ((probs * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)).cpu().numpy()
        masks = Proposals.from_masks(inside.cpu().numpy(), rgb.shape[:2], quality=sure)
        filled = masks.areas > 0
        rows = vectors[0][torch.from_numpy(filled).to(vectors.device)]
        return RegionEmbeddings(rgb, masks.select(filled), {OPERATOR: F.normalize(rows, dim=-1)})

    @torch.no_grad()
    def look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pixels (B, 3, H, W), sides multiples of 32: mask logits (B, Q, H/16, W/16), vectors (B, Q, E)."""
        tower = self._tower
        scale = SMALLER.get(tower.patch_size, SMALLER[16])
        small = F.interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)
        grid = small.shape[2] // tower.patch_size, small.shape[3] // tower.patch_size
        small = small[:, :, : grid[0] * tower.patch_size, : grid[1] * tower.patch_size]
        taps = frozenset(range(self._start + 1))
        trunk = run_trunk(tower, small, "size", leave=tower.depth - self._start, taps=taps)
        x_BND = trunk.x_BND
        query_BQC, map_BChw = self._beside(pixels, list(trunk.outputs.values()), grid)
        logits, bias_BAQhw = self._decode(query_BQC, map_BChw)
        bias = F.adaptive_max_pool2d(bias_BAQhw.flatten(1, 2), grid).unflatten(1, bias_BAQhw.shape[1:3]).flatten(3)
        copies = x_BND[:, :1].expand(-1, query_BQC.shape[1], -1)
        for index in range(self._start, tower.depth):
            copies = _through(tower.view(index, grid), copies, x_BND[:, 1:], bias)
            if index < tower.depth - 1:
                x_BND = tower.run(index, x_BND, grid)
        return logits, tower.read(copies)

    def _beside(
        self, pixels: torch.Tensor, taps: list[torch.Tensor], grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The side network: queries (B, Q, C) and its map (B, C, h, w) after the last block."""
        side = self._side
        kernel, shift = (side[f"vit_model.patch_embed.proj.{name}"] for name in ("weight", "bias"))
        patches = F.conv2d(pixels, kernel, shift, PATCH)
        own = patches.shape[2:]
        places = side["vit_model.pos_embed"].mT.unflatten(2, (self.side // PATCH,) * 2)
        if tuple(own) != tuple(places.shape[2:]):
            places = F.interpolate(places, size=own, mode="bicubic", align_corners=False)
        places = torch.cat([side["query_pos_embed"], places.flatten(2).mT], dim=1)
        count, batch = side["query_embed"].shape[1], len(pixels)
        x = torch.cat([side["query_embed"].expand(batch, -1, -1), patches.flatten(2).mT], dim=1) + places
        fused = len({key.split(".")[1] for key in side if key.startswith("fusion_layers.")})
        for index in range(len(self._blocks) + 1):
            if index:
                x = self._blocks[index - 1](x if index == 1 else x + places)
            if index < fused:
                tap = taps[index * self._start // max(1, fused - 1)][:, 1:]
                at = f"fusion_layers.layer_{index}.input_proj."
                tap = F.layer_norm(tap, tap.shape[-1:], side[at + "0.weight"], side[at + "0.bias"], EPS)
                tap = F.conv2d(tap.mT.unflatten(2, grid), side[at + "1.weight"], side[at + "1.bias"])
                tap = F.interpolate(tap, size=own, mode="bilinear", align_corners=False)
                x = torch.cat([x[:, :count], x[:, count:] + tap.flatten(2).mT], dim=1)
        return x[:, :count], x[:, count:].mT.unflatten(2, own)

    def _decode(self, query_BQC: torch.Tensor, map_BChw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (B, Q, h, w) and attention biases (B, A, Q, h, w)."""
        query = self._mlp("query_mlp", query_BQC)
        places = map_BChw.flatten(2).mT
        size, width = map_BChw.shape[2:], query.shape[-1]
        logits = torch.einsum("bqc,bnc->bqn", query, self._mlp("pix_mlp", places)).unflatten(2, size)
        heads = self._mlp("attn_mlp", places).unflatten(2, (-1, width))
        bias = torch.einsum("bqc,bnac->baqn", query, heads).unflatten(3, size)
        if "bias_scaling.weight" in self._decoder:
            bias = bias * self._decoder["bias_scaling.weight"].item() + self._decoder["bias_scaling.bias"].item()
        return logits, bias

    def _mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Linear layers, or convolutions of one pixel, with ReLU between them."""
        layers = below(self._decoder, f"{name}.layers.")
        count = len({key.split(".")[0] for key in layers})
        for index in range(count):
            x = F.linear(x, layers[f"{index}.weight"].flatten(1), layers[f"{index}.bias"])
            x = F.relu(x) if index < count - 1 else x
        return x


def _through(block: Block, copies_BQD: torch.Tensor, patches_BND: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Copies of CLS through one block: each sees itself, and the patches with its bias (B, A or 1, Q, N)."""
    seen = block.project(block.norm(patches_BND), "kv")
    own = block.unrotated().project(block.norm(copies_BQD), "qkv")
    scale = own["q"].shape[-1] ** -0.5
    to_self = (own["q"] * own["k"]).sum(dim=-1, keepdim=True) * scale
    share = torch.cat([own["q"] @ seen["k"].mT * scale + bias, to_self], dim=-1).softmax(dim=-1)
    copies_BQD = copies_BQD + block.merge(share[..., :-1] @ seen["v"] + share[..., -1:] * own["v"])
    return copies_BQD + block.ffn(copies_BQD)


def _joined(first: State, last: State, start: int) -> State:
    """CLIP's image tower from its two parts in the file."""
    state = {key.replace("resblocks.", "transformer.resblocks.", 1): value for key, value in first.items()}
    for key, value in last.items():
        parts = key.split(".")
        if parts[0] == "resblocks":
            key = ".".join(["transformer", "resblocks", str(int(parts[1]) + start), *parts[2:]])
        state[key] = value
    return state


def _side_blocks(side: State, path: Path) -> nn.ModuleList:
    """The blocks of the side network: timm's."""
    from timm.models.vision_transformer import Block as TimmBlock

    state = below(side, "vit_model.blocks.")
    depth, width = 1 + max(int(key.split(".")[0]) for key in state), side["query_embed"].shape[2]
    norm: Any = partial(nn.LayerNorm, eps=EPS)

    def make() -> nn.ModuleList:
        return nn.ModuleList(TimmBlock(width, HEADS, qkv_bias=True, norm_layer=norm) for _ in range(depth))

    return build_strictly(make, state, path, "SAN's side network").eval().requires_grad_(False)
