"""What naming an image gives back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densevl.drawing import draw_shares, palette
from densevl.errors import DensevlError
from densevl.files import OVERLAY_MARK, save_all, target_of
from densevl.images import encode_png
from densevl.results import RESULT, UNLABELLED, Result, chosen, from_json, photo_of, to_json


@dataclass(frozen=True, eq=False, repr=False)
class Classification(Result):
    """Which class an image, or a box of it, is.

    Attributes:
        names: of the classes, all different. scores: float32 (C,), raw logits.
        probabilities: float32 (C,), they sum to 1, calibrated after `FewShot.calibrate`.
        image: uint8 RGB (H, W, 3).
        plausible: the classes that hold the true one except in a share alpha of images, possibly none; None before
            calibration.
        distance: 1 - cosine to the nearest example, 0..2; None where the head keeps none.
        box: x0, y0, x1, y1 in pixels, if it is of a part. regions: of the boxes that were asked for.
        meta: what made it; ready for JSON. warnings: what the user should know, a sentence each.
    """

    names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]
    plausible: tuple[str, ...] | None = None
    distance: float | None = None
    box: tuple[int, int, int, int] | None = None
    regions: tuple[Classification, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    others: float = 0.0  # the probability of the likeliest class that `only` left out

    def __post_init__(self) -> None:
        shapes = (self.scores.shape, self.probabilities.shape)
        if not self.names or shapes != ((len(self.names),),) * 2:
            raise DensevlError(f"scores and probabilities are {shapes}; give one of each for {len(self.names)} names")

    def __repr__(self) -> str:
        return f"Classification({', '.join(f'{name} {p:.2f}' for name, p in self.top(3))})"

    @property
    def name(self) -> str:
        """The likeliest class; "nothing" if `only` left that out."""
        best = int(self.probabilities.argmax())
        return self.names[best] if self.probabilities[best] >= self.others else UNLABELLED

    @property
    def confidence(self) -> float:
        """Its probability, 0..1."""
        return max(float(self.probabilities.max()), self.others)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.names[index], float(self.probabilities[index])) for index in order]

    def only(self, names: str | Iterable[str]) -> Classification:
        """The result with only these classes, in the order they have; if the likeliest is another, it is nothing.

        Raises:
            DensevlError: an unknown name, or none.
        """
        kept = chosen(names, self.names)
        left = float(np.delete(self.probabilities, kept).max(initial=self.others))
        few = tuple(self.names[index] for index in kept)
        return replace(
            self,
            names=few,
            scores=self.scores[kept],
            probabilities=self.probabilities[kept],
            plausible=None if self.plausible is None else tuple(name for name in self.plausible if name in few),
            regions=tuple(region.only(few) for region in self.regions),
            others=left,
        )

    def overlay(self, *, legend: bool = True) -> npt.NDArray[np.uint8]:
        """The photo with the boxes that were judged, and the likeliest classes below if `legend`: uint8 RGB."""
        picture = Image.fromarray(self.image)
        colours, draw = palette(len(self.names)).tolist(), ImageDraw.Draw(picture)
        for region in self.regions:
            known = region.name in self.names
            colour = tuple(colours[self.names.index(region.name)]) if known else (128, 128, 128)
            if region.box is not None:
                x0, y0, x1, y1 = region.box
                draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
        drawn = np.array(picture)
        return (
            draw_shares(drawn, dict(zip(self.names, map(float, self.probabilities), strict=True))) if legend else drawn
        )

    def save(self, path: str | os.PathLike[str], *, overlay: bool = True, overwrite: bool = False) -> list[Path]:
        """Write what was found and a picture of it, both or none: "out/cat.json" and "out/cat_overlay.png".

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: the ending is not .json, a file is the photo or was not written by densevl, the disk refuses,
                or meta is no JSON.
        """
        path = target_of(path, ".json", "names of images are JSON files")
        height, width = self.image.shape[:2]
        content = {"size": {"height": height, "width": width}, **self._content()}
        contents = {path: to_json(content)}
        if overlay:
            contents[path.with_name(f"{path.stem}{OVERLAY_MARK}.png")] = encode_png(self.overlay())
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> Classification:
        """Read what `save` wrote.

        Args:
            path: the .json. image: the photo; None looks where `meta["image"]` says, and takes a white one if it is
                not there.

        Raises:
            DensevlError: a missing or damaged file, or a photo of another size.
        """
        path = RESULT.path(path)
        content = from_json(path, ("names", "scores", "probabilities", "regions"))
        photo = photo_of(content, image)
        with RESULT.sense(path, inner=True):
            return cls._of(content, photo)

    @classmethod
    def _of(cls, content: Mapping[str, Any], photo: npt.NDArray[np.uint8]) -> Classification:
        plausible, box = content["plausible"], content["box"]
        chances = np.array(content["probabilities"], np.float32)
        if not (chances >= 0).all() or (box is not None and not all(type(side) is int for side in box)):
            raise DensevlError("a probability is below 0, or a side of a box is no integer")
        return cls(
            tuple(content["names"]),
            np.array(content["scores"], np.float32),
            chances,
            photo,
            None if plausible is None else tuple(plausible),
            content["distance"],
            None if box is None else (box[0], box[1], box[2], box[3]),
            tuple(cls._of(region, photo) for region in content["regions"]),
            content["meta"],
            tuple(content["warnings"]),
            content["others"],
        )

    def _content(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "confidence": self.confidence,
            "names": self.names,
            "scores": self.scores.tolist(),
            "probabilities": self.probabilities.tolist(),
            "plausible": self.plausible,
            "distance": self.distance,
            "box": self.box,
            "others": self.others,
            "regions": [region._content() for region in self.regions],
            **self._facts(),
        }

    def _shares(self) -> dict[str, tuple[int | None, str]]:
        return {name: (self.names.index(name), f"{p:.1%}") for name, p in self.top(5)}
