"""Methods that also read other blocks of CLIP: their outputs, their maps, or their contributions to CLS."""

from __future__ import annotations

from densevl.kernels import Gaussian
from densevl.recipes.catalogue.published import BARE, SLIDE, miou
from densevl.recipes.part import Attention, Tap
from densevl.recipes.parts.additions import BlockInputs, OtherBlocks
from densevl.recipes.parts.affinity import Affinity, Floor, Recursive, Relative, Smooth
from densevl.recipes.parts.attention import BalancedMaps, BlockAttention, BoxAttention, SelfAttention
from densevl.recipes.parts.feedback import LabelFeedback, TwoPass
from densevl.recipes.parts.readout import Contributions, Layer, ScoredSources, Tokens
from densevl.recipes.parts.steps import AddCls, RepairByAttention, RepairByDensity
from densevl.recipes.parts.stitch import JoinedFeatures, OwnCosines
from densevl.recipes.recipe import Recipe, Source

_MIDDLE = (7, 8, 10)
_EARLIER = tuple(range(1, 12))
_CLIPER = {"attention": BalancedMaps(_EARLIER, in_place=True), "position_rule": "bilinear_half"}
_REPAIRED = Tap(9, repaired=True)
_LIKE = Affinity(_REPAIRED, Relative(3.0, 1.0, floor=0.4))  # SFP's


def _resclip(share: float, again: float, label_share: float, threshold: float, literal: bool = False) -> Attention:
    """Two times (the block's keys, and a share of the middle blocks' maps), then the labels.

    Args:
        share: of the maps. again, label_share, threshold: gain and share of the second pass, threshold of the first.
    """
    middle = BlockAttention("qk", (6, 7, 8, 9))
    first = 2 * (1 - share) * SelfAttention("kk", Gaussian(5.0)) + 2 * share * middle
    return TwoPass(first, LabelFeedback(label_share, again, threshold, literal=literal))


_RESCLIP = {
    # share of the middle blocks' maps; gain and share of the labels; threshold of the first pass
    "voc21": (0.3, 2.2, 0.7, 0.5),
    "voc20": (0.6, 2.1, 0.6, 0.1),
    "context60": (0.3, 1.8, 0.7, 0.3),
    "context59": (0.4, 1.8, 0.7, 0.25),
    "coco-object": (0.4, 1.8, 0.7, 0.11),
    "coco-stuff": (0.4, 1.8, 0.7, 0.11),
    "cityscapes": (0.2, 2.1, 0.6, 0.1),
    "ade150": (0.3, 2.1, 0.7, 0.25),
}

ENTRIES = (
    Recipe(
        "cliptrase",
        attention=SelfAttention("qq") + SelfAttention("kk") + SelfAttention("vv"),
        readout=Tokens(likeness=11),
        source=Source(
            "Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.08268",
            miou(50.9, 29.9, 43.6, 81.0, 33.8, 22.8, None, 16.4),
            "centre crop 224 of image and ground truth, with its clusters voting: not comparable with the others",
        ),
        note="`Segmenter` clusters the `affinity` that comes out of the photo (`refine.segment_by_affinity`), and "
        "each cluster votes; refine='none' is the attention alone. Models with less than the 14 x 14 patches of the "
        "paper, as mini, take refine='vote' for the vote.",
    ),
    Recipe(
        "itaclip",
        attention=0.5 * SelfAttention("qq")
        + 0.5 * SelfAttention("kk")
        + 0.5 * BlockAttention("qq", _MIDDLE)
        + 0.5 * BlockAttention("kk", _MIDDLE),
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
        attention=_resclip(0.3, 2.2, 0.7, 0.1),
        **BARE,
        published={"attention": _resclip(0.3, 2.2, 0.7, 0.1, literal=True)},
        settings={
            name: {"attention": _resclip(*given), "published": {"attention": _resclip(*given, literal=True)}}
            for name, given in _RESCLIP.items()
        },
        source=Source(
            "ResCLIP: Residual Attention for Training-free Dense Vision-language Inference",
            "CVPR 2025",
            "https://arxiv.org/abs/2411.15851",
            miou(61.1, 33.5, 35.0, 86.0, 36.8, 24.7, 35.9, 18.0),
            f"on NACLIP, shares and gains set per benchmark; {SLIDE}",
        ),
        note="With text it looks twice (semantic feedback); without, only once. The paper's figures belong to its "
        "settings by benchmark, `get('resclip', benchmark='voc21')`; the plain recipe is a middle way. compat follows "
        "the authors' code: straight lines cut short, a blur that runs across row ends.",
    ),
    Recipe(
        "sc_clip",
        attention=0.5 * Affinity(_REPAIRED, Relative(3.0, 1.0)) + 0.5 * SelfAttention("kk"),
        **BARE,
        before=(RepairByDensity(), Smooth(_REPAIRED, Floor(0.4))),
        after=(AddCls(0.3), Smooth(Tap(4), Floor(0.4))),
        adds=(OtherBlocks((4, 5, 6, 7, 8, 9, 10)),),
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
        attention=1 / 3 * SelfAttention("kk") + 1 / 3 * SelfAttention("qq") + 1 / 3 * _LIKE,
        **BARE,
        before=(RepairByAttention(), Smooth(_REPAIRED, Floor(0.4))),
        after=(AddCls(0.3), Smooth(Tap(4), Floor(0.4))),
        adds=(OtherBlocks((4, 5, 6, 7, 8, 9, 10), attention=_LIKE),),
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
        attention=BalancedMaps(_EARLIER),
        **BARE,
        adds=(BlockInputs(_EARLIER),),
        readout=ScoredSources(),
        position_rule="bilinear",
        published={**_CLIPER, "readout": ScoredSources(zeroed=True)},
        settings={
            "coco-stuff": {
                "readout": ScoredSources(50.0, 0.2),
                "published": {**_CLIPER, "readout": ScoredSources(50.0, 0.2, zeroed=True)},
            }
        },
        source=Source(
            "CLIPer: Hierarchically Improving Spatial Representation of CLIP for Open-Vocabulary Semantic Segmentation",
            "ICCV 2025",
            "https://arxiv.org/abs/2411.13836",
            miou(60.7, 34.7, 36.3, 84.3, 38.4, 25.4, 35.9, 19.8),
            "without diffusion; whole image, short side 336 (Cityscapes 560)",
        ),
        note="Whole with refine='proxy' and proxy='diffusion:FOLDER'; any other proxy takes the diffusion model's "
        "place, as the authors offer DINO. compat balances the shared maps again for each source, as the authors' "
        "in-place division does, and rounds positions to half precision.",
    ),
    Recipe(
        "clip_prs",
        readout=Contributions(),
        position_rule="size_antialias",
        source=Source(
            "Interpreting CLIP's Image Representation via Text-Based Decomposition",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.05916",
        ),
        note="Not rewired: each patch's exact direct share in the image embedding.",
    ),
    Recipe(
        "layer_9",
        readout=Layer(9),
        position_rule="size_antialias",
        source=Source(
            "Perception Encoder: The best visual embeddings are not at the output of the network",
            "NeurIPS 2025",
            "https://arxiv.org/abs/2504.13181",
        ),
        note="An earlier block through the model's own way into the joint space. layer_1 to layer_12 name the others, "
        "counted in 12 blocks. Which is best depends on the model: try them.",
    ),
    Recipe(
        "radseg",
        attention=Recursive(),
        stitch=JoinedFeatures(OwnCosines()),
        position_rule="size_antialias",
        source=Source(
            "RADSeg: Unleashing Parameter and Compute Efficient Zero-Shot Open-Vocabulary Segmentation Using "
            "Agglomerative Models",
            "arXiv 2025",
            "https://arxiv.org/abs/2511.19704",
            protocol="short side 672 (Stuff 896, Cityscapes 1344), windows 336 / stride 224",
        ),
        note="Made for RADIO with the words of its SigLIP 2; it runs on any ViT. Its prompt denoising is presence=0.5. "
        "The authors take the softmax before scores are enlarged, here after.",
    ),
    Recipe(
        "falip",
        attention=BoxAttention(),
        blocks=4,
        source=Source(
            "FALIP: Visual Prompt as Foveal Attention Boosts CLIP Zero-Shot Performance",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.05578",
        ),
        note="For boxes: read `cls`. Without boxes the whole image is the box.",
    ),
)
