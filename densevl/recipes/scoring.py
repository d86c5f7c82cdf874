"""From dense features and words to scores on the patch grid; most methods compare by the cosine.

Shape letters: B batch, D joint space, T texts, h/w patch grid.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.recipes.features import DenseFeatures

SURGERY_HEAT = 2.0  # CLIP Surgery's temperature of the image's own scores
LAYER_SCALE, LAYER_FLOOR = 100.0, 0.1  # CLIPer's temperature, and the share of the maximum under which it drops
CLS_SHARE = 0.25  # CASS's share of the image's own score (its value for Context59)


def score(dense: DenseFeatures, text_TD: torch.Tensor) -> torch.Tensor:
    """Score T unit text rows at every patch: (B, h, w, T) float32, by the features' own way of comparing.

    - "cosine": cosine of feature and text.
    - "surgery" (CLIP Surgery): cosines weighed by what the image as a whole says, less their mean over the texts.
    - "contrast" (clip_prs): dot product, less its mean over the texts; features hold shares, their length matters.
    - "dot": dot product; features are unit vectors painted by masks (TextRegion).
    - "layers" (CLIPer): softmax over the texts for each source, averaged, and the last one spread along the affinity.
      "layers-zeroed": what is dropped of the last one is missing from the average too, as in the authors' code.
    - "cls-mix" (CASS): cosines mixed with those of the image as a whole.

    With one text, "surgery" and "contrast" have nothing to take off and return cosine and dot product.
    """
    text_TD = text_TD.to(dense.features.device).float()
    if dense.scoring.startswith("layers"):
        return _layers(dense, text_TD)
    if dense.scoring in ("contrast", "dot"):
        dots = torch.einsum("bdhw,td->bhwt", dense.features.float(), text_TD)
        alone = dense.scoring == "dot" or len(text_TD) == 1
        return dots if alone else dots - dots.mean(dim=-1, keepdim=True)
    cosines = _cosines(dense.features, text_TD)
    if dense.cls is None or dense.scoring == "cosine" or (dense.scoring == "surgery" and len(text_TD) == 1):
        return cosines
    image_B11T = (F.normalize(dense.cls.float(), dim=-1) @ text_TD.mT)[:, None, None]
    if dense.scoring == "cls-mix":
        return (1 - CLS_SHARE) * cosines + CLS_SHARE * image_B11T
    weight = (SURGERY_HEAT * image_B11T).softmax(dim=-1)
    weighted = cosines * (weight / weight.mean(dim=-1, keepdim=True))
    return weighted - weighted.mean(dim=-1, keepdim=True)


def _cosines(features: torch.Tensor, text_TD: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bdhw,td->bhwt", F.normalize(features.float(), dim=1), text_TD)


def _layers(dense: DenseFeatures, text_TD: torch.Tensor) -> torch.Tensor:
    """The texts' own mean competes as one more, as the authors have it."""
    rivals = torch.cat([text_TD, F.normalize(text_TD.mean(dim=0, keepdim=True), dim=-1)])

    def probabilities(features: torch.Tensor) -> torch.Tensor:
        return (LAYER_SCALE * _cosines(features, rivals)).softmax(dim=-1)[..., :-1]

    last = probabilities(dense.features)
    kept = torch.where(last < LAYER_FLOOR * last.amax(dim=(1, 2), keepdim=True), 0, last)
    total = (kept if dense.scoring == "layers-zeroed" else last).clone()
    for features in dense.layers:
        total += probabilities(features)
    fused = total / (len(dense.layers) + 1)
    if dense.affinity is None:
        return fused
    spread = dense.affinity.float().mT @ kept.flatten(1, 2)
    return fused + spread.unflatten(1, dense.grid)
