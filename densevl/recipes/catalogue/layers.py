"""Methods that also read other blocks of CLIP: their outputs, their maps, or the way to CLS."""

from __future__ import annotations

from densevl.recipes.catalogue.published import SLIDE, miou
from densevl.recipes.parts import (
    Foveal,
    Gaussian,
    LabelFeedback,
    Purify,
    Relative,
    Sinkhorn,
    Smooth,
    Term,
    Values,
)
from densevl.recipes.recipe import Recipe, Source

_MIDDLE = (7, 8, 10)

ENTRIES = (
    Recipe(
        "cliptrase",
        terms=("qq", "kk", "vv"),
        likeness=11,
        source=Source(
            "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.08268",
            miou(50.9, 29.9, 43.6, 81.0, 33.8, 22.8, None, 16.4),
            "centre crop 224 of image and ground truth, with its clusters voting: not comparable with the others",
        ),
        note="The attention. Its clusters: `refine.segment_by_affinity` on the `affinity` that comes out, then "
        "`refine.majority_vote`.",
    ),
    Recipe(
        "itaclip",
        terms=(
            Term("qq", 0.5),
            Term("kk", 0.5),
            Term("qq", 0.5, layers=_MIDDLE),
            Term("kk", 0.5, layers=_MIDDLE),
        ),
        ffn=False,
        source=Source(
            "ITACLIP: Boosting Training-Free Semantic Segmentation with Image, Text, and Architectural Enhancements",
            "CVPR Workshops 2025",
            "https://arxiv.org/abs/2411.12044",
            miou(67.9, 37.5, 37.7, None, None, 27.0, 40.2, None),
            "windows 224 / stride 28, five views, LLM texts, PAMR",
        ),
        note="The architecture part; its views are `inference.views`, its texts descriptors.",
    ),
    Recipe(
        "resclip",
        terms=(Term("kk", 0.7), Term("qk", 0.3, layers=(6, 7, 8, 9))),
        gain=2.0,
        bias=Gaussian(5.0),
        residual=False,
        ffn=False,
        feedback=LabelFeedback(share=0.7, gain=2.2, threshold=0.1),
        source=Source(
            "ResCLIP: Residual Attention for Training-free Dense Vision-language Inference",
            "CVPR 2025",
            "https://arxiv.org/abs/2411.15851",
            miou(61.1, 33.5, 35.0, 86.0, 36.8, 24.7, 35.9, 18.0),
            f"on NACLIP, shares and gains set per benchmark; {SLIDE}",
        ),
        note="With text it looks twice (semantic feedback); without, only once. compat follows the authors' code: "
        "straight lines cut short, a blur that runs across row ends.",
    ),
    Recipe(
        "sc_clip",
        terms=(Term("tap", 0.5, layers=(9,), rule=Relative(3.0, 1.0)), Term("kk", 0.5)),
        residual=False,
        ffn=False,
        cls_mix=0.3,
        purify=Purify("lof"),
        before=Smooth("tap", 0.4, layer=9, purified=True),
        after=Smooth("tap", 0.4, layer=4),
        values=(Values((4, 5, 6, 7, 8, 9, 10)),),
        source=Source(
            "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation",
            "TIP 2025",
            "https://arxiv.org/abs/2411.15869",
            miou(64.6, 36.8, 37.7, 84.3, 40.1, 26.6, 41.0, 20.1),
            SLIDE,
        ),
    ),
    Recipe(
        "sfp",
        terms=(
            Term("kk", 1 / 3),
            Term("qq", 1 / 3),
            Term("tap", 1 / 3, layers=(9,), rule=Relative(3.0, 1.0, floor=0.4)),
        ),
        residual=False,
        ffn=False,
        cls_mix=0.3,
        purify=Purify("attention"),
        before=Smooth("tap", 0.4, layer=9, purified=True),
        after=Smooth("tap", 0.4, layer=4),
        values=(Values((4, 5, 6, 7, 8, 9, 10), only="tap"),),
        source=Source(
            "Feature Purification Matters: Suppressing Outlier Propagation for Training-Free Open-Vocabulary "
            "Semantic Segmentation",
            "ICCV 2025",
            "https://github.com/Kimsure/SFP",
            miou(62.9, 37.2, 37.9, 84.5, 39.9, 26.4, 41.1, 20.8),
            SLIDE,
        ),
        note="As the released code does it: outliers found once, before the last block.",
    ),
    Recipe(
        "cliper",
        terms=(Term("qk", layers=tuple(range(1, 12)), rule=Sinkhorn()),),
        residual=False,
        ffn=False,
        values=tuple(Values((layer,), normed=True) for layer in range(1, 12)),
        scoring="layers",
        position_rule="bilinear",
        quirks=(("position_rule", "bilinear_half"), ("scoring", "layers-zeroed")),
        source=Source(
            "CLIPer: Hierarchically Improving Spatial Representation of CLIP for Open-Vocabulary Semantic Segmentation",
            "ICCV 2025",
            "https://arxiv.org/abs/2411.13836",
            miou(60.7, 34.7, 36.3, 84.3, 38.4, 25.4, 35.9, 19.8),
            "without diffusion; whole image, short side 336 (Cityscapes 560)",
        ),
        note="Without the diffusion step. compat balances the shared maps again for each source, as the authors' "
        "in-place division does, and rounds positions to half precision.",
    ),
    Recipe(
        "clip_prs",
        readout="contributions",
        scoring="contrast",
        position_rule="size_antialias",
        source=Source(
            "Interpreting CLIP's Image Representation via Text-Based Decomposition",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.05916",
        ),
        note="Not rewired: each patch's exact direct share in the image embedding.",
    ),
    Recipe(
        "falip",
        terms=("qk",),
        bias=Foveal(std=100.0, peak=0.2),
        blocks=4,
        source=Source(
            "FALIP: Visual Prompt as Foveal Attention Boosts CLIP Zero-Shot Performance",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.05578",
        ),
        note="For boxes: read `cls`. Without boxes the whole image is the box.",
    ),
)
