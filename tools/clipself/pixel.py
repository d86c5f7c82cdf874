"""PixelCLIP's training (NeurIPS 2024): masks without labels are clustered by learned words, which they then teach.

Teacher: a moving average of the student. Shape letters: B pictures, M masks of a batch, K clusters, E joint space, h/w
patch grid, H/W targets.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import DensevlError, RecipeError
from densevl.proposals import load_proposer
from densevl.recipes import Hints
from densevl.recipes.run import finish, start
from tools.clipself.models import image_tower
from tools.clipself.pictures import Batch
from tools.clipself.run import Run

RECIPE = "pixelclip"
WORDS, SCENE = 4, "in the scene"
"""The number of learned words per cluster, and the words after them."""
SHARPNESS, ROUNDS, MOMENTUM = 100.0, 3, 0.999
PROMPT_SHARE, TOWER_SHARE = 10.0, 0.01
"""Their learning rates as shares of the decoder's."""
LARGEST, CHANNELS = 256, 16


def sinkhorn(scores_MK: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Assign masks to clusters so that every cluster gets about the same number: (M, K), rows sum to 1.

    scores_MK: logits. rounds: alternations of giving clusters, then masks, equal sums.
        scores_MK: logits. rounds: of giving clusters, then masks, equal sums.
    """
    logs = scores_MK.double()
    for _ in range(rounds):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp().to(scores_MK)


def pooled(map_EHW: torch.Tensor, masks_MHW: torch.Tensor) -> torch.Tensor:
    """Average features (E, h, w) over each mask (M, H, W), weighted by its share of each cell: (M, E)."""
    shares_Mhw = F.adaptive_avg_pool2d(masks_MHW.to(map_EHW), map_EHW.shape[1:])
    return shares_Mhw.flatten(1) @ map_EHW.flatten(1).T / shares_Mhw.sum((1, 2))[:, None].clamp_min(1e-6)


def united(masks_MHW: torch.Tensor, clusters_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clusters present in a picture (P,), and the union of each one's masks, float (P, H, W)."""
    present_P = clusters_M.unique()
    return present_P, torch.stack([masks_MHW[clusters_M == cluster].any(dim=0) for cluster in present_P]).float()


class Decoder(nn.Sequential):
    """Upsample maps of cosines (N, 1, h, w) to logits (N, 1, 4h, 4w) by two doublings; used only in training."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(CHANNELS, 1, 3, padding=1),
        )


class PixelRun(Run):
    """A `Run` whose student learns from masks: `Plan.masks` names their proposer, `Plan.clusters` is K.

    Attributes:
        average: the teacher. prompts: (K, 4, W) learned words. decoder: see `Decoder`.
    """

    def _groups(self) -> list[dict[str, Any]]:
        plan, device = self.plan, self.teacher.device
        if plan.clusters < 2:
            raise DensevlError(f"--clusters is {plan.clusters}; masks are assigned to two clusters at least")
        if plan.context:
            raise DensevlError("--context is taught beside crops and --masks in place of them; leave one of them out")
        if self.recipe.reads:
            raise RecipeError(f"recipe '{plan.recipe}' reads more than pixels; take {RECIPE} or maskclip")
        self.proposer = load_proposer(plan.masks, device=str(device))
        self.average = copy.deepcopy(self.student)
        drawn = torch.Generator().manual_seed(plan.seed)
        width = self.student.word_width
        self.prompts = nn.Embedding.from_pretrained(
            0.02 * torch.randn(plan.clusters, WORDS * width, generator=drawn).to(device), freeze=False
        )
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            self.decoder = Decoder().to(device)
        self.parts |= {"average.": image_tower(self.average), "prompts.": self.prompts, "decoder.": self.decoder}
        return [
            {"params": self._trained(), "share": TOWER_SHARE},
            {"params": [*self.prompts.parameters()], "share": PROMPT_SHARE},
            {"params": [*self.decoder.parameters()], "share": 1.0},
        ]

    def _trained(self) -> list[nn.Parameter]:
        """Return attention and positions of the trained blocks' tower, or the whole tower if it has no attention."""
        chosen = {id(parameter) for parameter in super()._trained()}
        named = self.tower.named_parameters()
        own = [p for name, p in named if "pos" in name or (".attn." in name and id(p) in chosen)]
        return own or super()._trained()

    def update(self, progress: float) -> float:
        """Update the student, then its average; see `Run.update`."""
        loss = super().update(progress)
        with torch.no_grad():
            for old, new in zip(image_tower(self.average).parameters(), self.tower.parameters(), strict=True):
                old.lerp_(new, 1 - MOMENTUM)
        return loss

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the cross entropy of the student's maps with the masks of each cluster in a picture."""
        text_KE = self.text()
        found = self.targets(batch.pictures, text_KE.detach())
        hints = Hints()
        dense = finish(
            self.student.tower, start(self.student.tower, batch.pictures, self.recipe, hints), self.recipe, hints
        )
        maps_BKhw = torch.einsum("behw,ke->bkhw", F.normalize(dense.features, dim=1), text_KE)
        maps = torch.cat([own[present] for own, (present, _) in zip(maps_BKhw, found, strict=True)])
        wanted = torch.cat([masks for _, masks in found])
        logits = F.interpolate(self.decoder(maps[:, None]), size=wanted.shape[1:], mode="bilinear", align_corners=False)
        return F.binary_cross_entropy_with_logits(logits[:, 0], wanted)

    def text(self) -> torch.Tensor:
        """Return unit rows (K, E) of the clusters' learned words; the text side is frozen."""
        words = self.prompts.weight.unflatten(1, (WORDS, -1))
        return F.normalize(self.student.encode_learned(words, SCENE), dim=1)

    @torch.no_grad()
    def targets(self, pictures: torch.Tensor, text_KE: torch.Tensor) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Return each picture's targets: its clusters (P,), and their masks (P, H, W), H at most 256."""
        features = self.average.encode_dense(pictures, self.recipe).features
        masks = [self._masks(picture) for picture in pictures]
        vectors_ME = torch.cat([pooled(own, of_it) for own, of_it in zip(features, masks, strict=True)])
        clusters_M = sinkhorn(SHARPNESS * F.normalize(vectors_ME, dim=1) @ text_KE.T).argmax(dim=1)
        return [united(*pair) for pair in zip(masks, clusters_M.split([len(own) for own in masks]), strict=True)]

    def _masks(self, picture: torch.Tensor) -> torch.Tensor:
        """Return masks (M, H, W) of a normalised picture (3, S, S), or the whole picture if nothing is proposed."""
        mean, std = (picture.new_tensor(part).view(3, 1, 1) for part in (self.teacher.mean, self.teacher.std))
        rgb = ((picture * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        found = torch.from_numpy(self.proposer(np.ascontiguousarray(rgb)).masks())
        found = found[found.any(dim=2).any(dim=1)].to(picture.device)
        found = found if len(found) else torch.ones(1, *rgb.shape[:2], dtype=torch.bool, device=picture.device)
        side = min(LARGEST, rgb.shape[0])
        return F.interpolate(found[None].float(), size=(side, side), mode="nearest")[0].bool()
