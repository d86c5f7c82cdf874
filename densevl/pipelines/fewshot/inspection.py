"""`Inspector`: a few example images of each class to a verdict with calibrated confidence, for images and regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones import Backbone, load_backbone
from densevl.errors import ImageError, ModelError
from densevl.fewshot.exemplars import SHARPNESS, Exemplars
from densevl.images import read_image
from densevl.pipelines.anomaly.setup import each_image
from densevl.pipelines.feeding import embed_images

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inspection:
    """What one image, or one region of it, is.

    Attributes:
        name: the likeliest class; confidence: its probability 0..1, calibrated after `Inspector.calibrate`.
        probabilities: of all classes. plausible: the classes that hold the true one except in a share alpha of images;
            None before calibration. May be empty: like no class.
        distance: 1 - cosine to the nearest exemplar. regions: verdicts of the boxes that were asked for.
    """

    name: str
    confidence: float
    probabilities: dict[str, float]
    plausible: tuple[str, ...] | None
    distance: float
    regions: tuple[Inspection, ...] = field(default=())


class Inspector:
    """Few-shot image inspection by whole-image embeddings.

    >>> inspect = Inspector("mini").fit({"sound": "sound/", "hole": ["a.png", "b.png"]}).calibrate(alpha=0.1)
    >>> inspect("new.png").plausible
    """

    def __init__(
        self, model: str | Backbone = "auto", *, sharpness: float = SHARPNESS, device: str | None = None
    ) -> None:
        """Load the model; `sharpness` above 0, larger for the nearest exemplar only.

        Raises:
            ModelError: the model cannot be loaded, or an impossible sharpness.
        """
        if not sharpness > 0:
            raise ModelError(f"sharpness is {sharpness}: it is above 0")
        self.backbone = model if isinstance(model, Backbone) else load_backbone(model, device=device)
        self.sharpness = sharpness
        self.exemplars: Exemplars | None = None

    def fit(self, examples: Mapping[str, Any]) -> Inspector:
        """Remember examples: a folder, a path or images by class name.

        Raises:
            ModelError: no class. ImageError: a class without images, or an unreadable one.
        """
        if not examples:
            raise ModelError("no classes to inspect for: give {name: images}")
        rows, classes = self._labelled(examples, tuple(examples))
        self.exemplars = Exemplars(F.normalize(rows, dim=-1), classes, tuple(examples), self.sharpness)
        return self

    def calibrate(self, examples: Mapping[str, Any] | None = None, *, alpha: float = 0.1) -> Inspector:
        """Fit confidence to images that are no exemplars; None judges every exemplar by the others.

        Args:
            alpha: the share of images whose true class may be missing from `plausible`. With n images nothing below
                1 / (n + 1) can be had: then all classes are plausible.

        Raises:
            ModelError: nothing fitted, an unknown class, an impossible alpha, or too few images.
        """
        known = self._fitted()
        rows, classes = (None, None) if examples is None else self._labelled(examples, known.names)
        self.exemplars = known.calibrated(rows, classes, alpha)
        return self

    def __call__(self, image: Any, regions: Sequence[Box] = ()) -> Inspection:
        """Judge one image, and boxes (x0, y0, x1, y1) of it in pixels, right and bottom exclusive.

        Raises:
            ModelError: nothing fitted. ImageError: unreadable, or a box without a pixel inside.
        """
        known, rgb = self._fitted(), read_image(image)
        verdicts = [
            self._verdict(known, row)
            for row in embed_images(self.backbone, [rgb, *(_cut(rgb, box) for box in regions)])
        ]
        whole = verdicts[0]
        return Inspection(**{**vars(whole), "regions": tuple(verdicts[1:])})

    def _fitted(self) -> Exemplars:
        if self.exemplars is None:
            raise ModelError("no exemplars yet: call fit({name: images}) first")
        return self.exemplars

    def _labelled(self, examples: Mapping[str, Any], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows, classes = [], []
        for name, images in examples.items():
            if name not in names:
                raise ModelError(f"class '{name}' was not fitted; fitted are {', '.join(names)}")
            found = [read_image(image) for image in each_image(images)]
            if not found:
                raise ImageError(f"class '{name}' has no images: give at least one")
            rows.append(embed_images(self.backbone, found))
            classes += [names.index(name)] * len(found)
        return torch.cat(rows), torch.tensor(classes, device=rows[0].device)

    def _verdict(self, known: Exemplars, row: torch.Tensor) -> Inspection:
        p = known.probabilities(row[None])[0].tolist()
        best = max(range(len(p)), key=p.__getitem__)
        plausible = None
        if known.margin is not None:
            plausible = tuple(name for name, one in zip(known.names, p, strict=True) if 1 - one <= known.margin)
        distance = float(known.distance(row[None])[0])
        return Inspection(known.names[best], p[best], dict(zip(known.names, p, strict=True)), plausible, distance)


def _cut(rgb: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = (int(side) for side in box)
    part = rgb[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    if 0 in part.shape:
        raise ImageError(f"box {tuple(box)} holds no pixel of the {rgb.shape[1]}x{rgb.shape[0]} image")
    return np.ascontiguousarray(part)


def by_folder(root: str | Path) -> dict[str, list[Path]]:
    """Images by class from a folder of folders, as `Inspector.fit` takes them.

    Raises:
        ImageError: no folder with images in it.
    """
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir()) if Path(root).is_dir() else []
    found = {folder.name: list(each_image(folder)) for folder in folders if not folder.name.startswith(".")}
    if not found:
        raise ImageError(f"{root} holds no folders of images; give one folder per class")
    return found
