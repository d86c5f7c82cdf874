"""Masks for words: instances that a concept model finds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.concepts import ConceptModel, load_concepts
from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.proposals import packing
from densevl.proposals.base import CONCEPTS, Proposals, Proposer


class ConceptProposer(Proposer):
    """SAM 3's instances of some words, or CLIPSeg's areas, since it finds no instances.

    Args:
        model: the loaded model. words: what to look for. least: probability, 0..1, from which an instance counts.

    Raises:
        ProposalError: there are no words, or the probability is outside 0..1.
    """

    def __init__(self, model: ConceptModel, words: Iterable[str] = (), *, least: float = 0.5) -> None:
        self.words, self.least = tuple(dict.fromkeys(str(word) for word in words)), least
        if not self.words:
            raise ProposalError(
                f"concept model '{model.name}' proposes what it is asked for: give words, "
                f"load_proposer('{CONCEPTS}...', words=['cat']), or labels on the command line"
            )
        if not 0 <= least < 1:
            raise ProposalError(f"least is {least}; it must be a probability of 0 to 1")
        self.model, self.name = model, f"{CONCEPTS}{model.name}"

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`; the most probable first."""
        rgb = read_image(image)
        size = (rgb.shape[0], rgb.shape[1])
        rows, quality = [], []
        for judged in self.model.judgements(rgb, self.words):
            masks, likely = judged.masks, judged.likely
            if not likely.shape[1]:
                masks, likely = judged.places[:, None], judged.presence[:, None]
            for mask_hw, chance in zip(masks.flatten(0, 1), likely.flatten().tolist(), strict=True):
                if chance <= self.least:
                    continue
                full = F.interpolate(mask_hw[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
                inside = (full > 0).cpu().numpy()
                if inside.any():
                    rows.append(packing.pack(inside))
                    sure = float(full[full > 0].sigmoid().mean())
                    quality.append(min(1.0, chance * sure))
        if not rows:
            return Proposals.empty(size)
        found = Proposals.from_packed(np.stack(rows), size, quality)
        return found.select(np.argsort(-found.quality, kind="stable"))


def load_concept_proposer(name: str, device: str | None, words: Iterable[str] = (), **settings: Any) -> ConceptProposer:
    """Load a proposer by its name, "concepts:" and the model; words are required before it loads."""
    if name == CONCEPTS:
        raise ProposalError(f"proposer '{name}' names no model; give one, such as '{CONCEPTS}facebook/sam3'")
    if not (words := tuple(words)):
        raise ProposalError(
            f"'{name}' proposes what it is asked for: give words, load_proposer('{name}', words=['cat']), or labels on "
            "the command line"
        )
    with torch.no_grad():
        return ConceptProposer(load_concepts(name.removeprefix(CONCEPTS), device), words, **settings)
