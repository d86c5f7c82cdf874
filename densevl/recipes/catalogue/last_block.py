"""Methods that rewire CLIP's last block (or a second stream over the last blocks) with its own projections."""

from __future__ import annotations

from densevl.kernels import Gaussian
from densevl.recipes.catalogue.published import BARE, SLIDE, miou
from densevl.recipes.parts.attention import CosineAttention, Identity, SelfAttention
from densevl.recipes.parts.readout import FeatureSurgery
from densevl.recipes.recipe import Recipe, SecondStream, Source

_MASKCLIP = ("Extract Free Dense Labels from CLIP", "ECCV 2022", "https://arxiv.org/abs/2112.01071")
_SURGERY = (
    "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks",
    "Pattern Recognition 2025",
    "https://arxiv.org/abs/2304.05653",
)

ENTRIES = (
    Recipe(
        "vanilla",
        position_rule="size_antialias",
        source=Source(
            "Learning Transferable Visual Models From Natural Language Supervision",
            "ICML 2021",
            "https://arxiv.org/abs/2103.00020",
        ),
        note="The baseline: CLIP's own patch outputs, which were never trained to mean anything.",
    ),
    Recipe(
        "maskclip",
        attention=Identity(),
        position_rule="size",
        source=Source(*_MASKCLIP, miou(None, None, None, 49.5, 21.7, 12.5, None, None), "whole image, short side 512"),
        note="The authors' code: values only, skip connection and MLP kept.",
    ),
    Recipe(
        "maskclip_value",
        attention=Identity(),
        **BARE,
        source=Source(
            *_MASKCLIP, miou(43.4, 23.2, 20.6, 74.9, 26.4, 16.7, 24.9, 11.9), f"re-run by later papers: {SLIDE}"
        ),
        note="The form later papers call MaskCLIP: the value alone, no skip connection, no MLP.",
    ),
    Recipe(
        "pixelclip",
        attention=Identity(),
        residual="cls",
        position_rule="size",
        source=Source(
            "Towards Open-Vocabulary Semantic Segmentation Without Semantic Labels",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2409.19846",
            protocol="fine-tuned weights, loaded as a checkpoint of their architecture; 640 x 640",
        ),
        note="The way its fine-tuned weights are read: MaskCLIP's values beside the CLS token of the block before, "
        "which takes the place of each patch's own skip connection. Its files were not at hand, and never run.",
    ),
    Recipe(
        "clip_surgery",
        attention=SelfAttention("vv"),
        blocks=SecondStream(6),
        position_rule="bilinear",
        source=Source(*_SURGERY, miou(None, 29.3, None, None, None, 21.9, 31.4, None), "square 512"),
        note="The architecture surgery alone.",
    ),
    Recipe(
        "clip_feature_surgery",
        attention=SelfAttention("vv"),
        blocks=SecondStream(6),
        readout=FeatureSurgery(),
        position_rule="bilinear",
        source=Source(*_SURGERY, protocol="square 512"),
        note="CLIP Surgery with its feature surgery, which acts on scores and can change labels.",
    ),
    Recipe(
        "gem",
        attention=(
            CosineAttention("vv", iterations=1)
            + CosineAttention("kk", iterations=1)
            + CosineAttention("qq", iterations=1)
        )
        / 3,
        blocks=SecondStream(6),
        position_rule="size_antialias",
        source=Source(
            "Grounding Everything: Emerging Localization Properties in Vision-Language Transformers",
            "CVPR 2024",
            "https://arxiv.org/abs/2312.00878",
            miou(46.2, 32.6, None, 79.9, 35.9, 23.7, 30.8, 15.7),
            "whole image 448",
        ),
    ),
    Recipe(
        "sclip",
        attention=SelfAttention("qq") + SelfAttention("kk"),
        source=Source(
            "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference",
            "ECCV 2024",
            "https://arxiv.org/abs/2312.01597",
            miou(59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1),
            SLIDE,
        ),
        note="The two softmaxes are added, not averaged: rows sum to 2, which outweighs the skip connection.",
    ),
    Recipe(
        "clearclip",
        attention=SelfAttention("qq"),
        **BARE,
        source=Source(
            "ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.12442",
            miou(51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
            "short side 448, windows 448 / stride 224",
        ),
    ),
    Recipe(
        "naclip",
        attention=SelfAttention("kk", Gaussian(5.0)),
        **BARE,
        source=Source(
            "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic Segmentation",
            "WACV 2025",
            "https://arxiv.org/abs/2404.08181",
            miou(58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 35.5, 17.4),
            f"without PAMR; {SLIDE}, VOC whole image",
        ),
        note="The Gaussian is in patches: on a finer grid it covers less of the photo.",
    ),
)
