"""`BlockSegmenter`: from a picture of any size and words to a label map, which is decided while it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl.errors import LabelError, OptionError, ProtocolError, RecipeError
from densevl.files import guard_saved, target_of
from densevl.images.resizing import Band, resized_rows
from densevl.inference import LabelMap, WindowGrid, decode
from densevl.inference.blocks import block_rows, decoded_blocks, window_rows
from densevl.inference.sliding import windows_a_pass
from densevl.kernels import DecodePlan
from densevl.pipelines import remarks
from densevl.pipelines.feeding import fed_size
from densevl.pipelines.rasters import writing
from densevl.pipelines.rasters.source import Range, Raster
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.vocabulary import NOTHING, Background, LabelSet
from densevl.weights import require_finite

SIDE = 448  # of windows, for a model that normally takes whole photos and gives no size
LOOKED_AT = 1024  # pixels in the middle that are checked for warnings
OVERLAY_SIDE = 1600  # pixels of the overlay
UNLIMITED = 2**31
Block = tuple[int, np.ndarray, np.ndarray]
"""First row, labels (rows, W) int16 with -1 for nothing, and confidence (rows, W) float32."""


class BlockSegmenter:
    """Segment pictures of any size at their own resolution, block by block, with the same result as all at once.

    Examples:
        >>> segment = BlockSegmenter("mini")
        >>> segment("field.tif", ["forest", "road", "water"]).save("out/field.tif")

    Attributes:
        segmenter: the `Segmenter` that is used.
    """

    def __init__(self, model: Any = "auto", recipe: Any = None, **settings: Any) -> None:
        """Load the model.

        Args:
            model, recipe, settings: as for `Segmenter`. Without `short_side` in the protocol a picture keeps its size.
                A model that takes whole photos gets windows of the size it would resize them to.

        Raises:
            RecipeError, OptionError, ProtocolError: If a setting needs the whole picture at once. Other errors as for
                `Segmenter`.
        """
        given = settings.pop("protocol", None) or {}
        if not isinstance(given, dict):
            raise ProtocolError("block by block, protocol must be a dict of changes to the model's own")
        if given.get("plan") == "whole" or given.get("crop", 1) is None:
            raise ProtocolError("one window over the whole picture does not work block by block; give windows a crop")
        own = {"short_side": None, "long_side": UNLIMITED, **given}
        whole = Segmenter(model, recipe, **settings)
        if whole.protocol.crop is None and "crop" not in own:
            own["crop"] = whole.protocol.short_side or SIDE
        self.segmenter = Segmenter(whole.backbone, recipe, **_loaded(settings), protocol=own)
        self._require_local()

    def __call__(
        self,
        path: str | os.PathLike[str],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        bands: Sequence[int] | None = None,
        value_range: Range | None = None,
    ) -> BlockResult:
        """Read the header of a picture. The model runs when blocks are requested or written.

        Args:
            path: a TIFF, PNG, JPEG or JPEG 2000. labels, background: as for `Segmenter`.
            bands, value_range: see `Raster`.

        Raises:
            ImageError: If the picture is unreadable.
            LabelError, OptionError: If the labels are unusable or mix images and words, or the background, bands or
                range are unusable.
        """
        label_set, policy = LabelSet.parse(labels), self.segmenter.policy(background)
        if self.segmenter.embed_text(label_set, policy).shown is not None:
            raise LabelError(
                "images and words are mixed, which needs the whole photo to put them on one scale; block by block use "
                "only one kind"
            )
        with Raster(path, bands=bands, value_range=value_range):
            pass
        return BlockResult(self.segmenter, os.fspath(path), label_set, policy, bands, value_range)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the picture and the labels; see `Segmenter.facts`."""
        return self.segmenter.facts()

    def _require_local(self) -> None:
        """Refuse settings that read more than a window.

        Raises:
            RecipeError, OptionError: With the way out.
        """
        segment = self.segmenter
        if segment.refine or segment.presence is not None:
            what, way = ("refine", "take 'none'") if segment.refine else ("presence", "leave it out")
            raise OptionError(f"{what} needs the whole picture, which does not work block by block; {way}")
        if not segment.separable:
            what = f"recipe '{segment.recipe.name}'" if segment.recipe is not None else "this"
            what = "views" if segment.views is not None else what
            raise RecipeError(
                f"{what} reads the whole picture, which does not work block by block; take a recipe that reads one "
                "window at a time, such as sclip, without views"
            )


def _loaded(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in ("weights", "device", "precision")}


@dataclass
class BlockResult:
    """The label map of one picture, computed block by block on demand.

    Attributes:
        progress: called with the share of rows that are done, 0 to 1.
    """

    segmenter: Segmenter
    path: str
    labels: LabelSet
    background: Background
    bands: Sequence[int] | None = None
    value_range: Range | None = None
    polygons: bool = False
    progress: Callable[[float], None] = field(default=lambda share: None, repr=False)
    warnings: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.labels.names

    def fractions(self) -> dict[str, float]:
        """Return the share of pixels (0-1) of each class, and of "nothing", after saving."""
        return self.shares

    def open(self) -> Raster:
        """Open the picture. The caller closes it."""
        return Raster(self.path, bands=self.bands, value_range=self.value_range)

    def blocks(self, raster: Raster | None = None, start: int = 0) -> Iterator[Block]:
        """Decide the picture from top to bottom, and yield its blocks.

        Args:
            raster: the open picture; None opens it. start: first row, a multiple of `self.rows`.

        Raises:
            ImageError: If it cannot be read completely.
        """
        if raster is None:
            with self.open() as own:
                yield from self.blocks(own, start)
            return
        segment, windows = self.segmenter, self.windows(raster)
        text = segment.embed_text(self.labels, self.background)
        scale = segment.protocol.logit_scale

        @torch.no_grad()
        def score(parts: torch.Tensor) -> torch.Tensor:
            scores = segment.score(segment.run(parts), text)
            require_finite(scores, f"scores of model '{segment.backbone.name}'")
            return scores

        def decide(scores: torch.Tensor, plan: DecodePlan) -> LabelMap:
            if text.bias is not None:
                scores = scores + text.bias / scale
            policy = self.background
            return decode(
                scores,
                plan,
                text.classes,
                scale=scale,
                threshold=policy.threshold,
                rest=policy.rest,
                calibration=segment.protocol.calibration,
            )

        fed = (windows.rows.length, windows.cols.length)
        read = raster.rows if fed == raster.size else resized_rows(Band(raster.rows), raster.size, fed)
        batch = windows_a_pass(segment.backbone, windows)
        scored = partial(window_rows, read, windows, segment.backbone.normalize, score, batch)
        rows = self.rows(raster)
        for top, labels, confidence in decoded_blocks(scored, windows, raster.size, decide, rows, start):
            nothing = ~raster.valid(top, top + len(labels))
            labels[nothing], confidence[nothing] = NOTHING, 0
            yield top, labels, confidence

    def windows(self, raster: Raster) -> WindowGrid:
        """Return the windows over the picture."""
        protocol, patch = self.segmenter.protocol, self.segmenter.backbone.patch_size
        size = fed_size(raster.size, protocol, patch)
        return WindowGrid.place(*size, protocol.crop, protocol.stride, patch, protocol.blend)

    def rows(self, raster: Raster) -> int:
        """Return the number of rows in a block."""
        text = self.segmenter.embed_text(self.labels, self.background)
        return block_rows(self.windows(raster), raster.size[0], len(text.classes))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Decide the picture and write it: all files, or none.

        For "out/field.tif":

        - `field.tif`: the class of each pixel, a tiled GeoTIFF with the CRS of the picture, a palette, and 255 for
          nothing; with more than 255 classes it has 16 bits, and 65535 for nothing;
        - `field_confidence.tif`: confidence in 255 steps;
        - `field.json`: names, colours, fractions, size, meta and warnings, as in `SegmentationResult.save`;
        - `field_overlay.png`: a small picture of the result;
        - `field.geojson`: polygons of the classes, if `polygons`; in longitude and latitude, or in pixels if the
          picture is not georeferenced.

        An interrupted run leaves `.densevl-field.rows` next to them, and the next run resumes from it.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Returns:
            The paths written.

        Raises:
            ImageError: If the picture cannot be read completely.
            OutputError: If a file is the picture or was not written by densevl, or the files cannot be written.
        """
        path = target_of(path)
        with self.open() as raster:
            self._describe(raster)
            facts = {"meta": self.meta, "names": self.names, "file": os.stat(raster.path).st_mtime_ns}
            target = writing.Target(path, raster, self.names, self.meta, polygons=self.polygons)
            guard_saved(target.paths, inputs=[raster.path], overwrite=overwrite)
            with target.rows(facts, self.rows(raster)) as kept:
                for top, labels, confidence in self.blocks(raster, kept.done):
                    kept.append(labels, confidence)
                    self.progress((top + len(labels)) / raster.size[0])
            self.shares = kept.shares(self.names)
            if self.shares["nothing"] == 1:
                self.warnings += remarks.of_labels(np.full((1, 1), NOTHING))
            return target.write(kept, self.shares, self.warnings, OVERLAY_SIDE)

    def _describe(self, raster: Raster) -> None:
        segment = self.segmenter
        meta = segment.meta(raster.path, self.background)
        middle = raster.middle(LOOKED_AT)
        self.meta = {**meta, "raster": raster.facts()}
        said = segment.words.warnings(self.labels, self.background, middle)
        self.warnings = tuple(dict.fromkeys((*said, *raster.notes)))
