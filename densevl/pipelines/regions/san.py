"""Name the masks of SAN: its vectors are compared with words and with its own vector of "no object"."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from densevl.pipelines import remarks
from densevl.pipelines.many import source
from densevl.regions.san import OPERATOR, San
from densevl.vocabulary import NOTHING, Background, LabelSet

if TYPE_CHECKING:
    from densevl.pipelines.regions.classifier import RegionClassifier
    from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
    from densevl.regions.result import RegionResult


def name_with_san(
    classifier: RegionClassifier, san: San, image: Any, labels: Labels, *, background: BackgroundSpec = "auto"
) -> RegionResult:
    """Find the regions of a photo with SAN and name them.

    Examples:
        >>> classify = RegionClassifier("ViT-B-16-quickgelu/openai", "cls_bias")
        >>> result = name_with_san(classify, San(classify.backbone, "san_vit_b_16.pth"), "photo.jpg", ["cat", "dog"])
        >>> result.semantic("sum")  # SAN's own output, with masks cut at one half

    Args:
        classifier: has the backbone that `san` was given, and operator "cls_bias".
        image, labels: as for `RegionClassifier`.
        background: in addition to SAN's "no object", which competes with the words; "auto" adds nothing.

    Raises:
        LabelError: If the labels are unusable.
        ImageError: If the image is unreadable.
        OptionError: If the background is unusable.
    """
    alone = isinstance(background, str) and background == "auto"
    label_set, policy = LabelSet.parse(labels), Background() if alone else classifier.policy(background)
    found, text = replace(san(image), source=source(image)), classifier.embed_text(label_set, policy)
    rows = torch.cat([text.vectors, san.void[None].to(text.vectors)])
    classes = torch.cat([text.classes, text.classes.new_tensor([NOTHING])])
    logp = (classifier.backbone.logit_scale * found.vectors[OPERATOR] @ rows.T).log_softmax(dim=1)
    result = classifier.judged(found, logp, label_set, classes, policy)
    warned = *classifier.warnings(label_set, policy, found.image), *remarks.of_labels(result.labels, "region")
    return replace(result, warnings=warned)
