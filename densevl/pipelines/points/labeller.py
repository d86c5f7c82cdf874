"""`PointLabeller`: a point cloud, posed photos and words to a label for each point.

Features of the views that see a point are averaged, not labels (OpenNeRF, ICLR 2024; CLIP-FO3D, ICCVW 2023).
Shape letters: N points, E joint space, T strings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from densevl import digest, fitted
from densevl.drawing import palette
from densevl.errors import DatasetError, DensevlError, ModelError, OptionError, OutputError
from densevl.files import atomic_write_all, shown
from densevl.pipelines.features.extractor import FeatureExtractor
from densevl.pipelines.many import hearing
from densevl.pipelines.points.cameras import View
from densevl.pipelines.points.clouds import ply_bytes, read_cloud
from densevl.pipelines.settings import checked
from densevl.regions.naming import decide, log_probs
from densevl.results.base import RESULT, UNLABELLED, VOLATILE, to_json
from densevl.saved import read_json
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.text_classifier import TextClassifier

TOLERANCE = 0.05
"""Of depth, as a share of it."""
LARGEST = 2**32
"""Bytes of the features of all points."""
AT_ONCE = 2**16
GREY = 128


@dataclass(frozen=True, eq=False)
class PointLabels:
    """Labels of the points of a cloud, in its order.

    Attributes:
        points: (N, 3) float64. names: the classes.
        labels: (N,) int16, -1 for nothing and for points that no view sees. confidence: (N,) float32, 0..1.
        seen: (N,) int32, how many views see each point.
        features: (N, E) float32 unit rows, zeros where nothing was seen.
        meta: what made it. warnings: a sentence each.
    """

    points: npt.NDArray[np.float64]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int16]
    confidence: npt.NDArray[np.float32]
    seen: npt.NDArray[np.int32]
    features: npt.NDArray[np.float32]
    meta: dict[str, Any]
    warnings: tuple[str, ...]

    @cached_property
    def colours(self) -> npt.NDArray[np.uint8]:
        """(N, 3) uint8 RGB by label, grey for nothing."""
        table = np.concatenate([palette(len(self.names)), np.full((1, 3), GREY, np.uint8)])
        return table[self.labels]

    def counts(self) -> dict[str, int]:
        """How many points each class has, and how many have none."""
        found = {name: int((self.labels == index).sum()) for index, name in enumerate(self.names)}
        return {**found, UNLABELLED: int((self.labels < 0).sum())}

    def facts(self) -> dict[str, Any]:
        """All but the points themselves, ready for JSON."""
        return {
            "points": len(self.points),
            "seen": int((self.seen > 0).sum()),
            "names": list(self.names),
            "counts": self.counts(),
            "colours": palette(len(self.names)).tolist(),
            "meta": {key: value for key, value in self.meta.items() if key not in VOLATILE},
            "warnings": list(self.warnings),
        }

    def save(self, path: str | os.PathLike[str], *, features: bool = False) -> list[Path]:
        """Write the points with their labels, and a JSON beside them.

        Args:
            path: ends in .ply: a binary PLY in the order of the cloud, with x, y, z, red, green, blue (of the label),
                label, confidence and seen. features: also write them, float16 (N, E), as .npy.

        Raises:
            OutputError: another ending, or the disk refuses.
        """
        path = Path(path)
        if path.suffix.lower() != ".ply":
            raise OutputError(f"cannot save points to {shown(path)}: give a name that ends in .ply")
        table = ply_bytes(self.points, self.colours, self.labels, self.confidence, self.seen)
        files: dict[Path, Any] = {path: table, path.with_suffix(".json"): to_json(self.facts())}
        if features:
            import io

            buffer = io.BytesIO()
            np.save(buffer, self.features.astype(np.float16), allow_pickle=False)
            files[path.with_suffix(".npy")] = buffer.getvalue()
        return atomic_write_all(files)


class PointLabeller:
    """Labels points by what posed photos show of them.

    Examples:
        >>> label = PointLabeller(FeatureExtractor("mini", stride=4))
        >>> found = label("room.ply", read_views("transforms.json"), ["cat", "dog"])
        >>> found.save("out/room.ply")
    """

    @checked
    def __init__(self, extractor: FeatureExtractor, *, tolerance: float = TOLERANCE) -> None:
        """Prepare.

        Args:
            extractor: makes the features of the photos, in the joint space.
            tolerance: a point is seen where its depth and that of the view differ by at most this share of its depth.

        Raises:
            ModelError: an extractor of a layer.
            OptionError: no extractor, or a tolerance that is not above 0, up to 1.
        """
        if extractor.layer is not None:
            raise ModelError("tokens of a layer are not compared with words; leave layer out")
        self.extractor, self.tolerance = extractor, tolerance

    @hearing
    def __call__(
        self,
        cloud: Any,
        views: Iterable[View],
        labels: Any,
        *,
        background: Any = "none",
        watch: Callable[[int, int], None] | None = None,
    ) -> PointLabels:
        """Label the points of a cloud.

        Args:
            cloud: as `clouds.read_cloud` takes it; it is not changed. views: posed photos. labels: as `LabelSet.parse`
                takes them. background: when a point is none of them, see `Background.parse`.
            watch: told how many views are done, and of how many.

        Raises:
            DatasetError: an unusable cloud, no views, or depth that cannot be read.
            ImageError: a photo that cannot be read, or not that of its camera.
            LabelError: unusable labels.
            OptionError: a background that cannot be, or something else than views.
        """
        asked, policy, points = LabelSet.parse(labels), Background.parse(background), read_cloud(cloud)
        views = _listed(views)
        backbone = self.extractor.backbone
        text = TextClassifier(backbone).encode(asked, policy)
        sums, seen = self.gather(points, views, watch)
        rows = F.normalize(torch.from_numpy(sums), dim=1)
        found, confidence = np.full(len(points), -1, np.int16), np.zeros(len(points), np.float32)
        for start in range(0, len(points), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            logp = log_probs(rows[part].to(text.vectors.device), text, backbone.logit_scale)
            valid = torch.from_numpy(seen[part] > 0).to(logp.device)
            decided = decide(logp, text.classes, len(asked), policy, valid=valid)
            found[part], confidence[part] = decided.labels.cpu().numpy(), decided.scores.cpu().numpy()
        meta = {
            "cloud": os.fspath(cloud) if isinstance(cloud, str | os.PathLike) else None,
            **self.facts(points, views, asked, policy),
        }
        warned = (*asked.warnings, *self._warnings(views, seen))
        return PointLabels(points, asked.names, found, confidence, seen, rows.numpy(), meta, warned)

    def facts(
        self, points_N3: npt.NDArray[np.float64], views: Sequence[View], asked: LabelSet, policy: Background
    ) -> dict[str, Any]:
        """All that decides the labels, ready for JSON; of cloud and views a digest."""
        given = [[str(getattr(view, field.name)) for field in fields(view)] for view in views]
        return {
            "views": len(views),
            "scene": digest.of_text(digest.of_bytes(points_N3.tobytes()), repr(given)),
            "labels": asked.facts(),
            "tolerance": self.tolerance,
            "background": str(policy),
            **self.extractor.facts(),
        }

    def gather(
        self,
        points_N3: npt.NDArray[np.float64],
        views: Sequence[View],
        watch: Callable[[int, int], None] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Sums of the features of all views that see each point, (N, E) float32, and how many do, (N,) int32.

        Raises:
            DatasetError: more points than fit in memory.
        """
        width = self.extractor.width
        if (taken := len(points_N3) * width * 4) > LARGEST:
            raise DatasetError(
                f"features of {len(points_N3):,} points take {taken / 2**30:.1f} GiB, the limit is "
                f"{LARGEST / 2**30:g}; thin the cloud to {LARGEST // (width * 4):,} points, or label it in parts"
            )
        sums, seen = np.zeros((len(points_N3), width), np.float32), np.zeros(len(points_N3), np.int32)
        for number, view in enumerate(views):
            photo = self.extractor(view.photo())
            places, z, visible = view.project(points_N3, photo.size)
            visible[visible] = view.usable(places[visible], photo.size)
            if (depth := view.depths(places[visible], photo.size)) is not None:
                near = (
                    np.abs(depth - z[visible]) <= self.tolerance * z[visible]
                )  # an unknown depth is NaN, and not near
                visible[visible] = near
            chosen = np.flatnonzero(visible)
            for start in range(0, len(chosen), AT_ONCE):
                part = chosen[start : start + AT_ONCE]
                sums[part] += photo.at(places[part])
            seen[chosen] += 1
            if watch is not None:
                watch(number + 1, len(views))
        return sums, seen

    def _warnings(self, views: Sequence[View], seen: npt.NDArray[np.int32]) -> list[str]:
        found = []
        if blind := sum(view.depth is None for view in views):
            found.append(
                f"{blind} of {len(views)} views have no depth, so points that are hidden there get the features of "
                "what hides them; give depth_file_path in transforms.json"
            )
        if not seen.any():
            found.append(
                "no view sees any point: look at the convention of the poses (opengl or opencv), the unit of the "
                "depth, and whether cloud and poses have the same axes"
            )
        elif (share := float((seen == 0).mean())) > 0.5:
            found.append(f"{share:.0%} of the points are seen by no view, and have no label")
        return found


def require_same(path: Path, facts: dict[str, Any]) -> None:
    """Refuse to replace labels of points that something else made.

    Args:
        path: of their JSON, which need not exist. facts: of what is to be made, see `PointLabeller.facts`.

    Raises:
        OutputError: with what differs.
    """
    if not path.exists():
        return
    try:
        before = dict(read_json(path, RESULT, ("meta",))["meta"])
    except (DensevlError, TypeError, ValueError):
        before = {}
    if told := fitted.differing({name: before.get(name) for name in facts}, facts):
        raise OutputError(
            f"{shown(path)} is of another run ({told}); name another --out, or start over with --overwrite"
        )


def _listed(views: Iterable[View]) -> list[View]:
    """Views in a list.

    Raises:
        OptionError: they are something else.
        DatasetError: there are none.
    """
    found = list(views) if isinstance(views, Iterable) else [views]
    odd = [type(one).__name__ for one in found if not isinstance(one, View)]
    if odd or isinstance(views, View):
        raise OptionError(f"views are a list of View, as read_views gives it; got {odd[0] if odd else 'one View'}")
    if not found:
        raise DatasetError("there are no views; give at least one posed photo")
    return found
