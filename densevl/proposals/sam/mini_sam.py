"""mini-sam: densevl's own small Segment Anything model, trained on rendered flat art and shipped in the package.

Kirillov et al., "Segment Anything" (ICCV 2023). The network is built from the classes of the package
`segment-anything`, only smaller, so that package's `SamPredictor` and `SamAutomaticMaskGenerator` run on it unchanged:

    sam = load_mini_sam()
    masks = SamAutomaticMaskGenerator(sam, points_per_side=16, **AUTOMATIC).generate(image)  # uint8 (H, W, 3), RGB
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from densevl.errors import MissingExtraError
from densevl.shipped import shipped_file
from densevl.weights import bad_file, build_strictly, read_checkpoint, require_sizes

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

WEIGHTS = "weights/mini_sam.safetensors"
SHA256 = "17b03d2f434ce9778e85a4333ec2a477a138e84787d7521e41ed8df8face39eb"
"""SHA-256 of the shipped file."""
AUTOMATIC = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.25}
"""Thresholds of `SamAutomaticMaskGenerator` for this model, set on training styles; its defaults are for ViT-H."""


@dataclass(frozen=True)
class SamConfig:
    """Sizes of the network.

    Attributes:
        image, patch: sides in pixels; masks are decoded at 4 * image / patch and resized.
        width, depth, heads: of the image encoder; all its blocks attend globally.
        channels: of the image embedding and of the prompts.
        decoder_depth, decoder_heads, decoder_mlp: of the transformer of the mask decoder.
        mask_channels: inside the encoder of mask prompts; iou_width: inside the head that predicts IoU.
        mean, deviation: of RGB in 0 to 255, as the image encoder takes it.
    """

    image: int = 128
    patch: int = 8
    width: int = 128
    depth: int = 6
    heads: int = 2
    channels: int = 96
    decoder_depth: int = 2
    decoder_heads: int = 4
    decoder_mlp: int = 384
    mask_channels: int = 16
    iou_width: int = 128
    mean: tuple[float, ...] = (122.7709, 116.746, 104.0937)
    deviation: tuple[float, ...] = (68.5005, 66.6322, 70.3232)

    @property
    def grid(self) -> int:
        """Side of the image embedding in cells."""
        return self.image // self.patch

    def to_json(self) -> str:
        """The sizes as JSON, for the header of a weights file."""
        return json.dumps(asdict(self))


def build_sam(config: SamConfig) -> Sam:
    """Build the network with fresh weights from the package's classes.

    Raises:
        MissingExtraError: `segment-anything` is not installed.
    """
    try:
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    except ImportError as error:
        raise MissingExtraError("segment-anything", "sam", "mini-sam") from error
    encoder = ImageEncoderViT(
        img_size=config.image,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        out_chans=config.channels,
    )
    prompts = PromptEncoder(
        embed_dim=config.channels,
        image_embedding_size=(config.grid, config.grid),
        input_image_size=(config.image, config.image),
        mask_in_chans=config.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.channels,
        num_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp,
    )
    decoder = MaskDecoder(
        transformer_dim=config.channels, transformer=transformer, iou_head_hidden_dim=config.iou_width
    )
    return Sam(encoder, prompts, decoder, pixel_mean=list(config.mean), pixel_std=list(config.deviation))


def load_mini_sam(path: Path | None = None, *, device: str = "cpu") -> Sam:
    """Load the shipped model, or a file that `tools.mini_sam.export` wrote.

    Args:
        path: the weights; None takes the package's own, checked against its SHA-256.
        device: of the weights.

    Returns:
        The package's `Sam` in eval mode, float32, without gradients.

    Raises:
        MissingExtraError: `segment-anything` is not installed.
        ModelError: this installation holds no weights.
        WeightsError: the file is damaged or of another kind.
    """
    path = path or shipped_file(WEIGHTS, SHA256, "mini-sam", "tools.mini_sam.train")
    state, config = read_weights(path)
    sam = build_strictly(partial(build_sam, config), state, path, "its own header")
    return sam.eval().requires_grad_(False).to(device)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], SamConfig]:
    """Read a weights file: its tensors as stored, and from its header the sizes of the network.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
    """
    file = read_checkpoint(path)
    try:
        sizes = require_sizes(file.header["sam_config"], path)
        config = SamConfig(**{**sizes, "mean": tuple(sizes["mean"]), "deviation": tuple(sizes["deviation"])})
    except (KeyError, TypeError) as error:
        raise bad_file(path, "is not a mini-sam: its header holds no sam_config") from error
    if len(config.mean) != 3 or len(config.deviation) != 3 or not all(config.deviation):
        raise bad_file(path, "is not a mini-sam: its header has no mean and deviation of RGB")
    return file.tensors, config
