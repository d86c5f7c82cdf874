"""The losses: patches against the prompt bank, CLS against the bank, captions against images, sound against damaged.

Shape letters: B images, n patches, C classes of the bank, c those and one more (see `data`), E joint space. All
embeddings are unit vectors.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

NEVER = -1e4
"""A logit of probability zero that gives no NaN when multiplied by 0."""


def patch_loss(
    patches_BnE: torch.Tensor,
    bank_CE: torch.Tensor,
    shares_Bnc: torch.Tensor,
    nouns: int,
    scale: torch.Tensor,
    absent_BC: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of every patch's softmax over the bank against the shares of the classes in it (soft labels).

    The last share is of a background without a name: there the probabilities of all textures count together. Patches
    that an object touches count twice as much as pure background, and the absent nouns do not compete in them.
    """
    logits = scale * patches_BnE @ bank_CE.T
    touched = shares_Bnc[..., :nouns].sum(-1) > 0.05
    logits = logits.masked_fill(touched[..., None] & absent_BC[:, None], NEVER)
    log_p = F.log_softmax(logits, dim=-1)
    log_p = torch.cat([log_p, log_p[..., nouns:].logsumexp(dim=-1, keepdim=True)], dim=-1)
    weight = 1.0 + touched.float()
    return -(weight * (shares_Bnc * log_p).sum(-1)).sum() / weight.sum()


def image_loss(
    cls_BE: torch.Tensor,
    bank_CE: torch.Tensor,
    truth_BC: torch.Tensor,
    scale: torch.Tensor,
    absent_BC: torch.Tensor,
) -> torch.Tensor:
    """Multi-positive softmax both ways: each image over the bank, each true prompt over the images of the batch.

    Args:
        cls_BE: image embeddings.
        bank_CE: one prompt per class.
        truth_BC: weight of each class that is in the image, 0 if it is not.
        scale: factor on cosines.
        absent_BC: bool, the classes that do not compete.
    """
    logits = (scale * cls_BE @ bank_CE.T).masked_fill(absent_BC, NEVER)
    to_text = truth_BC / truth_BC.sum(dim=1, keepdim=True).clamp_min(1e-6)
    forward = -(to_text * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    present = truth_BC.sum(dim=0) > 0
    to_image = truth_BC / truth_BC.sum(dim=0, keepdim=True).clamp_min(1e-6)
    backward = -(to_image * F.log_softmax(logits, dim=0)).sum(dim=0)
    strength = truth_BC.amax(dim=0)
    return (forward + (backward * strength)[present].sum() / strength.sum().clamp_min(1e-6)) / 2


def caption_loss(first_BE: torch.Tensor, second_BE: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """InfoNCE between matching rows, both ways."""
    logits = scale * first_BE @ second_BE.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def state_loss(
    features: torch.Tensor, pairs_S2E: torch.Tensor, damaged: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Two-way softmax of surfaces, or of their patches, over a "sound" and a "damaged" prompt each.

    Args:
        features: (S, m, E) unit vectors, m = 1 for CLS or the patches of each of S surfaces.
        pairs_S2E: the two prompts of each surface.
        damaged: (S, m) share of damage, 0 to 1.
        scale: factor on cosines.
    """
    logits = scale * torch.einsum("sme,ske->smk", features, pairs_S2E)
    target = torch.stack([1 - damaged, damaged], dim=-1)
    weight = torch.where(damaged > 0, 3.0, 1.0) if features.shape[1] > 1 else torch.ones_like(damaged)
    return -(weight * (target * F.log_softmax(logits, dim=-1)).sum(-1)).sum() / weight.sum()
