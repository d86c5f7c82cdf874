"""Masks of everything in an image with SAM: a grid of points is prompted, and poor and duplicate masks are dropped.

Kirillov et al., "Segment Anything" (ICCV 2023), section 5 and appendix B. The masks equal those of the package's
`SamAutomaticMaskGenerator`, at less cost: a mask is upscaled only if its predicted quality passes, enlarged to the
image only if it looks stable as decoded and only within its extent, and packed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from densevl.errors import ProposalError, suggest
from densevl.images import read_image
from densevl.proposals import packing
from densevl.proposals.base import Proposals, Proposer
from densevl.proposals.checks import image_boxes, image_points
from densevl.proposals.components import tidy
from densevl.proposals.sam.crops import Crop, crops, cut_by, laid_back
from densevl.proposals.sam.image import Decoded, SamImage
from densevl.proposals.suppress import DUPLICATES, unlike, unlike_boxes

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


Scores = npt.NDArray[np.float32]
Found = tuple[Proposals, Scores]


@dataclass(frozen=True)
class AutomaticSettings:
    """What is prompted and what is kept; names and defaults are the package's, if it has them, for ViT-H.

    Attributes:
        points_per_side: n of the n x n points. points_per_batch: decoded at once; memory grows with it. None takes
            `SamImage.at_once`.
        pred_iou_thresh: the model's own estimate of a mask's IoU must be above this.
        stability_score_thresh: the IoU of the masks cut at +-stability_score_offset must be this or more.
        stability_margin: a mask is dropped before enlarging if its stability on the decoded grid is below the
            threshold by more than this; others are judged at full size. 1 judges every mask at full size. The two
            stabilities of a mask differ by up to 0.07 with mini-sam, whose grid is coarse.
        duplicates: of masks that overlap by an IoU above duplicate_iou the best is kept; "mask" compares masks,
            "box" their boxes as the package does, "none" keeps all.
        min_mask_region_area: holes and islands of fewer pixels are removed; 0 leaves them.
        crop_n_layers: layer i besides the whole image has 2^i x 2^i crops, each encoded and prompted by itself, for
            small things. crop_overlap_ratio: of the crops of layer 1, as a fraction of the shorter side.
            crop_n_points_downscale_factor: the grid of layer i has points_per_side divided by this to the power i.
    """

    points_per_side: int = 32
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    stability_margin: float = 0.1
    duplicates: str = "mask"
    duplicate_iou: float = 0.7
    min_mask_region_area: int = 0
    crop_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ProposalError(f"{name} is {value}: at least 1")
        if self.duplicates not in DUPLICATES:
            raise ProposalError(
                f"no duplicates '{self.duplicates}'{suggest(self.duplicates, DUPLICATES)}: {', '.join(DUPLICATES)}"
            )
        for name in ("min_mask_region_area", "stability_margin", "crop_n_layers"):
            if getattr(self, name) < 0:
                raise ProposalError(f"{name} is {getattr(self, name)}: 0 or more")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ProposalError(f"crop_overlap_ratio is {self.crop_overlap_ratio}: from 0, below 1")


class SamProposer(Proposer):
    """Automatic and prompted masks of a model of the package `segment-anything`, or one with the same modules.

    Args:
        sam: the model, in eval mode.
        name: for messages. settings: fields of `AutomaticSettings`.

    Raises:
        ProposalError: a setting is out of range.
    """

    def __init__(self, sam: Sam, *, name: str = "sam", **settings: Any) -> None:
        self.sam, self.name = sam, name
        try:
            self.settings = AutomaticSettings(**settings)
        except TypeError as error:
            wrong = next(key for key in settings if key not in AutomaticSettings.__dataclass_fields__)
            known = list(AutomaticSettings.__dataclass_fields__)
            raise ProposalError(f"no setting '{wrong}'{suggest(wrong, known)}; known: {', '.join(known)}") from error

    def encode(self, image: Any) -> SamImage:
        """Encode an image once; `__call__` and `prompt` take the result instead of the image."""
        return image if isinstance(image, SamImage) else SamImage.encode(self.sam, read_image(image))

    def __call__(self, image: Any) -> Proposals:
        """Propose masks of one image; see `Proposer.__call__`. Quality is the predicted IoU, clipped to 0-1."""
        encoded, settings = self.encode(image), self.settings
        found, quality = self._found(encoded, settings.points_per_side)
        if settings.crop_n_layers:
            found, quality = self._with_crops(encoded, found, quality)
        if settings.min_mask_region_area:
            found, quality = self._tidied(found, quality)
        return found.select(np.argsort(-quality, kind="stable"))

    def _found(
        self, image: SamImage, points_per_side: int, crop: Crop | None = None, whole: tuple[int, int] = (0, 0)
    ) -> Found:
        """Masks of one image, or of one crop, without duplicates; and their predicted qualities."""
        settings = self.settings
        grid = (np.arange(points_per_side) + 0.5) / points_per_side
        across, down = np.meshgrid(grid * image.size[1], grid * image.size[0])
        points_P2 = np.stack([across.ravel(), down.ravel()], axis=1)
        above = settings.pred_iou_thresh if settings.pred_iou_thresh > 0 else -np.inf
        packed = np.zeros((0, packing.row_bytes(image.size)), np.uint8)
        quality = np.zeros(0, np.float32)
        for points_B2 in _batches(points_P2, settings.points_per_batch or image.at_once):
            decoded = self._promising(image, image.decode(points_B2[:, None], above=above))
            masks, stable = self._pack(image, decoded.logits)
            # grown in place: a list to concatenate at the end would take twice the memory
            packed.resize((len(packed) + int(stable.sum()), packed.shape[1]), refcheck=False)
            packed[len(quality) :] = masks[stable]
            quality = np.concatenate([quality, decoded.quality.float().cpu().numpy()[stable]])
        found = Proposals.from_packed(packed, image.size, np.clip(quality, 0, 1))
        if crop is not None:
            inside = ~cut_by(found.boxes, crop, whole)
            found, quality = found.select(inside), quality[inside]
        chosen = self._unlike(found, quality)
        return found.select(chosen), quality[chosen]

    def _with_crops(self, image: SamImage, found: Proposals, quality: Scores) -> Found:
        """Masks of the crops and of the whole image; of duplicates the one from the smaller crop is kept."""
        settings, size = self.settings, image.size
        packed, qualities, areas = [found.packed], [quality], [np.full(len(quality), size[0] * size[1])]
        for crop in crops(size, settings.crop_n_layers, settings.crop_overlap_ratio)[1:]:
            rgb = image.rgb[crop.top : crop.bottom, crop.left : crop.right]
            points = max(1, settings.points_per_side // settings.crop_n_points_downscale_factor**crop.layer)
            part, own = self._found(SamImage.encode(self.sam, rgb), points, crop, size)
            packed.append(laid_back(part, crop, size).packed)
            qualities.append(own)
            areas.append(np.full(len(own), rgb.shape[0] * rgb.shape[1]))
        quality = np.concatenate(qualities)
        found = Proposals.from_packed(np.concatenate(packed), size, np.clip(quality, 0, 1))
        chosen = self._unlike(found, (1 / np.concatenate(areas)).astype(np.float32))
        return found.select(chosen), quality[chosen]

    def prompt(self, image: Any, *, points: Any = None, labels: Any = None, boxes: Any = None) -> Proposals:
        """Make one mask per prompt.

        Args:
            image: as `read_image` takes it, or the result of `encode`.
            points: (P, 2) x and y in pixels, a prompt each; or (P, K, 2), K points per prompt.
            labels: (P, K), 1 for points inside, 0 for points outside; None is 1 everywhere.
            boxes: (P, 4) x0 y0 x1 y1 in pixels, instead of points; they are clipped to the image.

        Returns:
            P masks in the order of the prompts. One point is ambiguous and gives the best of three masks by predicted
            quality. Several points, or a box, give their one mask. A mask is empty if the model finds nothing.

        Raises:
            ProposalError: there are both or none of points and boxes, shapes are wrong, prompts all lie within 0-1, or
                one is outside the image.
        """
        encoded = self.encode(image)
        if (points is None) == (boxes is None):
            raise ProposalError("give points or boxes, one of the two")
        if points is not None:
            points_PK2, labels_PK = image_points(points, labels, encoded.size)
            several = points_PK2.shape[1] == 1
        else:
            boxes_P4 = image_boxes(boxes, encoded.size)
            several = False
        count = len(points_PK2) if points is not None else len(boxes_P4)
        packed = np.zeros((count, packing.row_bytes(encoded.size)), np.uint8)
        quality = np.zeros(count, np.float32)
        for batch in _batches(np.arange(count), self.settings.points_per_batch or encoded.at_once):
            if points is not None:
                decoded = encoded.decode(points_PK2[batch], labels_PK[batch], several=several)
            else:
                decoded = encoded.decode(boxes_P4=boxes_P4[batch], several=False)
            of_prompt = decoded.quality.view(len(batch), -1)
            best = of_prompt.argmax(dim=1) + of_prompt.shape[1] * torch.arange(len(batch), device=of_prompt.device)
            packed[batch] = self._pack(encoded, decoded.logits[best])[0]
            quality[batch] = decoded.quality[best].float().cpu().numpy()
        return Proposals.from_packed(packed, encoded.size, np.clip(quality, 0, 1))

    def _cuts(self) -> tuple[float, float, float]:
        """Thresholds of the logits: for the mask, and the two compared for its stability."""
        level, offset = float(self.sam.mask_threshold), self.settings.stability_score_offset
        return level, level + offset, level - offset

    def _promising(self, image: SamImage, decoded: Decoded) -> Decoded:
        """Drop masks that cannot be stable, judged on the decoded grid without its padding."""
        rows_h, cols_w = image.cell_weights()
        _, high, low = self._cuts()
        inner, outer = (((decoded.logits > cut).float() @ cols_w) @ rows_h for cut in (high, low))
        least = self.settings.stability_score_thresh - self.settings.stability_margin
        good = inner >= least * outer
        return Decoded(decoded.logits[good], decoded.quality[good], decoded.prompt[good])

    def _pack(self, image: SamImage, logits: torch.Tensor) -> tuple[packing.Packed, npt.NDArray[np.bool_]]:
        """Enlarge masks one by one: packed (N, bytes), and which of them are stable (N,)."""
        level, high, low = self._cuts()
        packed = np.zeros((len(logits), packing.row_bytes(image.size)), np.uint8)
        stable = np.ones(len(logits), np.bool_)
        mask = np.zeros(image.size, np.bool_)
        least = np.float32(self.settings.stability_score_thresh)  # the package compares in float32
        for index, (large, rows, columns) in enumerate(image.enlarged(logits, min(level, low, high))):
            large_HW = large.float().cpu().numpy()  # numpy compares several times faster
            mask[rows, columns] = large_HW > level
            packed[index] = packing.pack(mask)
            mask[rows, columns] = False
            if least > 0:
                inner, outer = np.count_nonzero(large_HW > high), np.count_nonzero(large_HW > low)
                stable[index] = outer > 0 and np.float32(inner) / np.float32(outer) >= least
        return packed, stable

    def _tidied(self, found: Proposals, quality: Scores) -> Found:
        """Remove holes and islands; if that makes masks alike, untouched ones are kept, as in the package."""
        packed, untouched = found.packed.copy(), np.ones(len(found), np.float32)
        for index in range(len(found)):
            mask, changed = tidy(found.mask(index), self.settings.min_mask_region_area)
            if changed:
                packed[index], untouched[index] = packing.pack(mask), 0
        chosen = self._unlike(Proposals.from_packed(packed, found.size), untouched)
        return Proposals.from_packed(packed[chosen], found.size, found.quality[chosen]), quality[chosen]

    def _unlike(self, found: Proposals, scores: Scores) -> npt.NDArray[np.int64]:
        if self.settings.duplicates == "none":
            return np.argsort(-scores, kind="stable")
        choose = unlike if self.settings.duplicates == "mask" else unlike_boxes
        return choose(found, scores, self.settings.duplicate_iou)


def _batches(rows: npt.NDArray[Any], length: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), length):
        yield rows[start : start + length]
