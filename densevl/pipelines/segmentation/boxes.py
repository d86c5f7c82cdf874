"""Boxes drawn by a person as evidence: a boxed class is only inside its boxes, and the model finds its outline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from densevl.backbones.reach import listed
from densevl.errors import LabelError, suggest
from densevl.inference import WindowGrid
from densevl.proposals.base import Proposals
from densevl.proposals.checks import box_corners
from densevl.regions.operators.pull import pull, token_plan
from densevl.vocabulary import LabelSet

INSIDE, OUTSIDE = 1.0, -8.0  # log odds, tuned for the photo model on 40 PASCAL VOC photos


@dataclass(frozen=True, eq=False)
class ClassBoxes:
    """Boxes of some classes in a photo.

    Attributes:
        labels: all classes. own: the regions of each class that has boxes, by class index.
        empty: names of classes that were given without boxes, which may be anywhere.
        given: the boxes by the names they were given with. size: (H, W) of the photo.
    """

    labels: LabelSet
    own: Mapping[int, Proposals]
    empty: tuple[str, ...]
    given: Mapping[str, list[Any]]
    size: tuple[int, int]

    @classmethod
    def parse(cls, boxes: Any, labels: LabelSet, size: tuple[int, int]) -> ClassBoxes:
        """Parse boxes by class or synonym: (4,) or (M, 4) x0, y0, x1, y1 in pixels of an (H, W) photo.

        Raises:
            LabelError: If it is not a dict, or a name is not a class.
            ProposalError: If a box has no area, or is outside the photo.
        """
        if not isinstance(boxes, Mapping):
            raise LabelError(
                f'boxes= must be a dict from labels to boxes, {{"cat": (x0, y0, x1, y1)}}; got a '
                f"{type(boxes).__name__}. RegionClassifier names boxes without labels"
            )
        owner = {word: index for index, words in enumerate(labels.synonyms) for word in words}
        owner |= {name: index for index, name in enumerate(labels.names)}
        found: dict[int, list[np.ndarray]] = {}
        given: dict[str, list[Any]] = {}
        for name, rows in boxes.items():
            if not isinstance(name, str) or name not in owner:
                close = suggest(name, labels.names) if isinstance(name, str) else ""
                raise LabelError(
                    f"boxes= has {name!r}, which is not one of the labels{close}; they are {listed(labels.names)}"
                )
            corners = box_corners(rows)
            given[name] = corners.tolist()
            found.setdefault(owner[name], []).extend([corners] if len(corners) else [])
        own = {index: Proposals.from_boxes(np.concatenate(parts), size) for index, parts in found.items() if parts}
        return cls(labels, own, tuple(labels.names[index] for index in found if index not in own), given, size)

    def prior(self, windows: WindowGrid) -> torch.Tensor:
        """Return log odds (C, Y, X) of each class at each token: 1 inside its boxes, -8 outside, 0 without a box.

        A box that does not cover any token fully counts as fully covering the token it covers most.
        """
        rows, cols = token_plan(windows, self.size)
        prior = torch.zeros(len(self.labels), rows.shape[1], cols.shape[1])
        for index, regions in self.own.items():
            share = pull(regions, rows, cols)
            share = (share / share.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)).amax(dim=0)
            prior[index] = torch.lerp(torch.full_like(share, OUTSIDE), torch.full_like(share, INSIDE), share)
        return prior

    @cached_property
    def everywhere(self) -> np.ndarray | None:
        """The pixels (H, W) inside any box, if every class has boxes, so that no class is elsewhere; else None."""
        if len(self.own) < len(self.labels):
            return None
        return np.any([mask for regions in self.own.values() for mask in regions.masks()], axis=0)

    def warnings(self, labels_HW: np.ndarray) -> tuple[str, ...]:
        """Describe unexpected effects of the boxes, one sentence each. Labels (H, W) are the decided ones."""
        unseen = [self.labels.names[index] for index in self.own if not (labels_HW == index).any()]
        none = f"boxes= has no box of {listed(self.empty)}, so it may be anywhere; leave out labels that are not there"
        lost = f"no pixel in the boxes of {listed(unseen)} got that label; a box may be too small, or miss the object"
        return (none,) * bool(self.empty) + (lost,) * bool(unseen)
