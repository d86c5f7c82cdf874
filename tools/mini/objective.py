"""One training step's loss: text-only for the warm-up, then patches, images, captions and defects together."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from tools.mini.data import Batch
from tools.mini.loss import caption_loss, image_loss, patch_loss, state_loss
from tools.mini.model import Learner
from tools.mini.prompts import Bank, states
from tools.mini.tokens import CompactTokenizer
from tools.render.textures import texture_of

UNKNOWN_SHARE = 0.03  # of the words, read as the unknown token
PATCH_WEIGHT, CAPTION_WEIGHT, STATE_WEIGHT = 1.5, 0.25, 0.25
MAX_SCALE = 50.0
THIN = 5.0  # a patch is fully damaged from a fifth of its area on: scratches are thin


class Objective:
    """The loss of a step, with every random choice drawn from the step's own generators.

    Args:
        bank: the classes.
        tokenizer: compact.
        dtype: of the matrix products.
    """

    def __init__(self, bank: Bank, tokenizer: CompactTokenizer, dtype: torch.dtype = torch.float32) -> None:
        self.bank, self.tokenizer, self.dtype = bank, tokenizer, dtype

    def seed(self, *key: int) -> None:
        """Start the random choices of a step anew."""
        self._rng = np.random.default_rng(list(key))
        self._generator = torch.Generator().manual_seed(int(self._rng.integers(2**62)))

    def warm_up(self, learner: Learner) -> dict[str, torch.Tensor]:
        """Text against text: the same class under two random prompts."""
        first, second = (self._texts(learner, self.bank.draw(self._rng)) for _ in range(2))
        return {"loss": caption_loss(first, second, _scale(learner.clip.logit_scale))}

    def __call__(self, learner: Learner, batch: Batch, keep: float = 1.0) -> dict[str, torch.Tensor]:
        """Return "loss" and its parts; `keep` is the share of patches that are seen."""
        cells = self._kept(batch, keep)
        cls, patches = learner.encode_images(batch.pixels, cells, dtype=self.dtype)
        cls, patches = F.normalize(cls, dim=-1), F.normalize(patches, dim=-1)
        surfaces = [texture_of(t).surface for t in batch.textures]
        pairs = [text for surface in surfaces for text in states(surface, self._rng)]
        size = len(self.bank)
        texts = self._texts(learner, self.bank.draw(self._rng) + pairs)
        scale, patch_scale = _scale(learner.clip.logit_scale), _scale(learner.patch_scale)
        shares = batch.shares if cells is None else batch.shares.take_along_dim(cells[..., None], dim=1)
        bank, nouns = texts[:size], self.bank.nouns
        parts = {
            "patch": PATCH_WEIGHT * patch_loss(patches, bank, shares, nouns, patch_scale, batch.absent),
            "image": image_loss(cls, bank, batch.truth, scale, batch.absent),
            "caption": CAPTION_WEIGHT * self._captions(learner, batch, cls, scale),
        }
        if len(batch.surfaces):
            text_S2E = texts[size:].unflatten(0, (-1, 2))
            damage = batch.damage if cells is None else batch.damage.take_along_dim(cells[batch.surfaces], dim=1)
            on = batch.surfaces
            seen = (damage.sum(dim=1, keepdim=True) > 0.1).float()
            whole = state_loss(cls[on][:, None], text_S2E, seen, scale)
            each = state_loss(patches[on], text_S2E, (THIN * damage).clamp(max=1), patch_scale)
            parts["state"] = STATE_WEIGHT * (whole + each)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _kept(self, batch: Batch, keep: float) -> torch.Tensor | None:
        count, cells = batch.shares.shape[:2]
        if keep >= 1:
            return None
        order = torch.rand(count, cells, generator=self._generator).argsort(dim=1)
        return order[:, : round(cells * keep)].sort(dim=1).values

    def _texts(self, learner: Learner, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer.forget(self.tokenizer(texts), UNKNOWN_SHARE, self._generator)
        return learner.encode_tokens(tokens, dtype=self.dtype)

    def _captions(self, learner: Learner, batch: Batch, cls: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """InfoNCE on half of the images: long texts cost as much as images."""
        some = list(range(0, len(batch.captions), 2))
        return caption_loss(cls[some], self._texts(learner, [batch.captions[i] for i in some]), scale)


def _scale(log_scale: torch.Tensor) -> torch.Tensor:
    return log_scale.exp().clamp(max=MAX_SCALE)
