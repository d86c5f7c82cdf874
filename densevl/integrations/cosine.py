"""A classifier of words for a torchvision detector: cosines between box features and text rows.

ViLD (ICLR 2022), RegionCLIP (CVPR 2022) and F-VLM (ICLR 2023) end in such a head. It is only as good as its features:
those of a detector trained with a plain classifier are not in CLIP's space until `project` has been trained, for
example by distillation. For an unmodified detector use `OpenVocabularyDetector`. Shape letters: N boxes, D box
features, E joint space, T strings, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import ModelError, one_of
from densevl.integrations.torchvision import check_detector
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.vocabulary import NOTHING, LabelSet
from densevl.vocabulary.text_classifier import TextEmbeddings

BACKGROUNDS = ("zero", "learned", "words")


class CosinePredictor(nn.Module):
    """Compute logits scale * cosine(box, word), background first, and one box refinement for all classes.

    Attributes:
        project: D to E; the identity if they are equal and nothing is trained.
        refine: D to 4. text: unit rows (T, E), not trained. classes: int64 (T,), -1 for background words.
    """

    def __init__(
        self,
        features: int,
        text: TextEmbeddings,
        *,
        background: str = "learned",
        scale: float = 100.0,
        project: bool = True,
    ) -> None:
        """Build the head.

        Args:
            features: D. text: the vocabulary from `RegionClassifier.embed_text`.
            background: its logit is 0, as in RegionCLIP ("zero"), that of a trained vector, as in ViLD ("learned"), or
                that of the best background word in `text` ("words").
            scale: factor on the cosines. project: False uses the features directly, which must then be E wide.

        Raises:
            ModelError: If the background is unknown, "words" has no background words, or features have another width.
        """
        super().__init__()
        width = text.vectors.shape[1]
        one_of(background, BACKGROUNDS, "background", ModelError)
        if background == "words" and not bool((text.classes == NOTHING).any()):
            raise ModelError("background is 'words', but the vocabulary has no background words; add some")
        if not 0 < scale < math.inf:
            raise ModelError(f"scale is {scale}: it must be above 0 and finite")
        if not project and features != width:
            raise ModelError(f"box features are {features} wide, text {width}; take project=True and train it")
        self.project: nn.Module = nn.Linear(features, width, bias=False) if project else nn.Identity()
        self.refine = nn.Linear(features, 4)
        self.scale, self.background = scale, background
        self.void = nn.Parameter(F.normalize(torch.randn(width), dim=0)) if background == "learned" else None
        self.text: torch.Tensor
        self.classes: torch.Tensor
        self.register_buffer("text", text.vectors.detach().clone().float(), persistent=False)
        self.register_buffer("classes", text.classes.clone(), persistent=False)
        self.count = int(text.classes.max()) + 1

    def set_text(self, text: TextEmbeddings) -> None:
        """Replace the vocabulary."""
        self.text = text.vectors.detach().clone().float().to(self.text.device)
        self.classes = text.classes.clone().to(self.text.device)
        self.count = int(text.classes.max()) + 1

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map box features (N, D) or (N, D, 1, 1) to logits (N, 1 + C) and refinements (N, 4 * (1 + C))."""
        flat = features.flatten(start_dim=1)
        rows_NE = F.normalize(self.project(flat), dim=1)
        logits_NT = self.scale * rows_NE @ self.text.T
        owned = self.classes != NOTHING
        best_NC = logits_NT.new_full((len(flat), self.count), -torch.inf)
        best_NC = best_NC.scatter_reduce(1, self.classes[owned].expand(len(flat), -1), logits_NT[:, owned], "amax")
        if self.void is not None:
            void_N = self.scale * rows_NE @ F.normalize(self.void, dim=0)
        elif self.background == "words":
            void_N = logits_NT[:, ~owned].amax(dim=1)
        else:
            void_N = logits_NT.new_zeros(len(flat))
        return torch.cat([void_N[:, None], best_NC], dim=1), self.refine(flat).repeat(1, self.count + 1)


def replace_predictor(
    detector: Any,
    classify: RegionClassifier,
    labels: Labels,
    *,
    background: str = "learned",
    words: BackgroundSpec = "auto",
    scale: float | None = None,
    project: bool = True,
) -> CosinePredictor:
    """Give torchvision's Faster R-CNN a classifier of words. Its box refinement starts as the mean of the old one.

    Args:
        detector: its `roi_heads.box_predictor` is replaced. classify: embeds the words. labels: the classes.
        background, project: see `CosinePredictor`. words: background words. scale: None takes the model's own.

    Returns:
        The new head. Train `head.project`; `head.set_text` replaces the words.

    Raises:
        LabelError: If the labels are unusable.
        ModelError: If the detector has no such head, or masks for each class, or settings do not fit.
    """
    check_detector(detector)
    heads: Any = getattr(detector, "roi_heads", None)
    old: Any = getattr(heads, "box_predictor", None)
    if not isinstance(getattr(old, "bbox_pred", None), nn.Linear):
        raise ModelError(f"{type(detector).__name__} has no roi_heads.box_predictor.bbox_pred; take a Faster R-CNN")
    if heads.has_mask():
        raise ModelError(
            "a Mask R-CNN has masks for its own classes, and a head with other classes cannot choose among them; take "
            "OpenVocabularyDetector"
        )
    text = classify.embed_text(LabelSet.parse(labels), classify.policy(words))
    chosen = classify.backbone.logit_scale if scale is None else scale
    head = CosinePredictor(old.bbox_pred.in_features, text, background=background, scale=chosen, project=project)
    with torch.no_grad():
        head.refine.weight.copy_(old.bbox_pred.weight.unflatten(0, (-1, 4))[1:].mean(dim=0))
        head.refine.bias.copy_(old.bbox_pred.bias.unflatten(0, (-1, 4))[1:].mean(dim=0))
    heads.box_predictor = head.to(old.bbox_pred.weight.device).train(detector.training)
    return head
