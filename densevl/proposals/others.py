"""Mask generators of other packages behind the one interface; none is a dependency.

`RecordsProposer` is tested with the generator of `segment-anything`. The functions that build MobileSAM, SAM-HQ and
SAM 2 are tested with stand-ins that take the calls and give the shapes of those packages; the packages themselves were
not run, because their weights were not at hand. SAM 3 is a concept model: `load_proposer("concepts:facebook/sam3")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import MissingExtraError, ProposalError
from densevl.images import UInt8Array, read_image
from densevl.proposals.base import Proposals, Proposer

Records = Sequence[Mapping[str, Any]]


class RecordsProposer(Proposer):
    """A function that returns records, as the automatic mask generators of the SAM family do.

    Args:
        name: for messages.
        generate: uint8 RGB (H, W, 3) to records with "segmentation", a bool (H, W) or COCO RLE, and "predicted_iou".
    """

    def __init__(self, name: str, generate: Callable[[UInt8Array], Records]) -> None:
        self.name, self._generate = name, generate

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`.

        Raises:
            ProposalError: records lack a mask, or masks have another size.
        """
        rgb = read_image(image)
        size = rgb.shape[:2]
        records = self._generate(rgb)
        try:
            masks = [record["segmentation"] for record in records]
        except (KeyError, TypeError) as error:
            raise ProposalError(f"proposer '{self.name}' gave records without 'segmentation'") from error
        quality = np.clip([float(record.get("predicted_iou", 1)) for record in records], 0, 1)
        of_rle = bool(masks) and isinstance(masks[0], Mapping)
        make = Proposals.from_rle if of_rle else Proposals.from_masks
        return make(masks, size, quality=quality).select(np.argsort(-quality, kind="stable"))


def mobile_sam(checkpoint: str | Path, *, device: str = "cpu", **settings: Any) -> RecordsProposer:
    """MobileSAM (Zhang et al. 2023), package `mobile_sam`.

    Args:
        checkpoint: its weights file. settings: of its `SamAutomaticMaskGenerator`.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = _package("mobile_sam", "MobileSAM")
    model = package.sam_model_registry["vit_t"](checkpoint=str(checkpoint)).eval().to(device)
    return RecordsProposer("mobile-sam", package.SamAutomaticMaskGenerator(model, **settings).generate)


def sam_hq(checkpoint: str | Path, kind: str = "vit_b", *, device: str = "cpu", **settings: Any) -> RecordsProposer:
    """SAM-HQ (Ke et al., NeurIPS 2023), package `segment_anything_hq`.

    Args:
        checkpoint: its weights file. kind: vit_tiny, vit_b, vit_l or vit_h. settings: of its
            `SamAutomaticMaskGenerator`.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = _package("segment_anything_hq", "SAM-HQ")
    model = package.sam_model_registry[kind](checkpoint=str(checkpoint)).eval().to(device)
    return RecordsProposer("sam-hq", package.SamAutomaticMaskGenerator(model, **settings).generate)


def sam2(checkpoint: str | Path, config: str, *, device: str = "cpu", **settings: Any) -> RecordsProposer:
    """SAM 2 (Ravi et al. 2024), package `sam2`.

    Args:
        checkpoint: its weights file. config: the package's name of its config. settings: of its
            `SAM2AutomaticMaskGenerator`.

    Raises:
        MissingExtraError: the package is not installed.
    """
    build = _package("sam2.build_sam", "SAM 2")
    generator = _package("sam2.automatic_mask_generator", "SAM 2").SAM2AutomaticMaskGenerator
    model = build.build_sam2(config, str(checkpoint), device=device)
    return RecordsProposer("sam2", generator(model, **settings).generate)


def _package(module: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(module.split(".")[0], purpose) from error


class MissingPackageError(MissingExtraError):
    """A missing package that is not an extra of densevl, because its authors do not publish it on the package index."""

    def __init__(self, package: str, purpose: str) -> None:
        Exception.__init__(
            self, f"{purpose} needs the package '{package}': install it as its authors say, densevl has no extra for it"
        )
        self._own = (package, purpose)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # type: ignore[override]
        return type(self), self._own
