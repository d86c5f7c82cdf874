"""`PointLabeller`: from a point cloud, posed photos and words to a label for each point.

Features of the views that see a point are averaged, rather than labels (OpenNeRF, ICLR 2024; CLIP-FO3D, ICCVW 2023).
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
from densevl.files import save_all, shown, target_of
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
"""Depth tolerance, as a share of the depth."""
LARGEST = 2**32
"""Limit in bytes of the features of all points."""
AT_ONCE = 2**16
GREY = 128


@dataclass(frozen=True, eq=False)
class PointLabels:
    """Labels of the points of a cloud, in the order of the cloud.

    Attributes:
        points: (N, 3) float64. names: the classes.
        labels: (N,) int16, -1 for nothing and for points that no view sees. confidence: (N,) float32, 0..1.
        seen: (N,) int32, how many views see each point.
        features: (N, E) float32 unit rows, zeros for points that no view sees.
        meta: what it was made with. warnings: one sentence each.
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
        """Colours by label, (N, 3) uint8 RGB, grey for nothing."""
        table = np.concatenate([palette(len(self.names)), np.full((1, 3), GREY, np.uint8)])
        return table[self.labels]

    def counts(self) -> dict[str, int]:
        """Count the points of each class, and those without one."""
        found = {name: int((self.labels == index).sum()) for index, name in enumerate(self.names)}
        return {**found, UNLABELLED: int((self.labels < 0).sum())}

    def facts(self) -> dict[str, Any]:
        """Return everything except the points themselves, ready for JSON."""
        return {
            "points": len(self.points),
            "seen": int((self.seen > 0).sum()),
            "names": list(self.names),
            "counts": self.counts(),
            "colours": palette(len(self.names)).tolist(),
            "meta": {key: value for key, value in self.meta.items() if key not in VOLATILE},
            "warnings": list(self.warnings),
        }

    def save(self, path: str | os.PathLike[str], *, features: bool = False, overwrite: bool = False) -> list[Path]:
        """Write the points with their labels, and a JSON of the same stem.

        Args:
            path: ends in .ply. A binary PLY in the order of the cloud, with x, y, z, red, green, blue (of the label),
                label, confidence and seen. features: also write the features, float16 (N, E), as .npy.
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: If the extension is another one, a file is the cloud or was not written by densevl, or the
                files cannot be written.
        """
        path = target_of(path, ".ply", "labelled points are PLY files")
        table = ply_bytes(self.points, self.colours, self.labels, self.confidence, self.seen)
        files: dict[Path, Any] = {path: table, path.with_suffix(".json"): to_json(self.facts())}
        if features:
            import io

            buffer = io.BytesIO()
            np.save(buffer, self.features.astype(np.float16), allow_pickle=False)
            files[path.with_suffix(".npy")] = buffer.getvalue()
        return save_all(files, inputs=[self.meta.get("cloud")], overwrite=overwrite)


class PointLabeller:
    """Label points by what posed photos show of them.

    Examples:
        >>> label = PointLabeller(FeatureExtractor("mini", stride=4))
        >>> found = label("room.ply", read_views("transforms.json"), ["cat", "dog"])
        >>> found.save("out/room.ply")
    """

    @checked
    def __init__(self, extractor: FeatureExtractor, *, tolerance: float = TOLERANCE) -> None:
        """Prepare.

        Args:
            extractor: computes the features of the photos, in the joint space.
            tolerance: a point is seen if its depth and that of the view differ by at most this share of its depth.

        Raises:
            ModelError: If the extractor reads a layer.
            OptionError: If it is not an extractor, or the tolerance is not above 0 and at most 1.
        """
        if extractor.layer is not None:
            raise ModelError("tokens of a layer cannot be compared with words; leave layer out")
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
            cloud: as for `clouds.read_cloud`. views: posed photos. labels: as for `LabelSet.parse`. background: when a
                point is none of the labels, see `Background.parse`.
            watch: called with the number of views done and their total.

        Raises:
            DatasetError: If the cloud is unusable, there are no views, or depth cannot be read.
            ImageError: If a photo cannot be read, or does not belong to its camera.
            LabelError: If the labels are unusable.
            OptionError: If the background is impossible, or views are not `View` objects.
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
        """Return everything that affects the labels, ready for JSON, with a digest of cloud and views."""
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
        """Sum the features of all views that see each point, (N, E) float32, and count these views, (N,) int32.

        Raises:
            DatasetError: If the features of all points exceed the memory limit.
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
                f"{blind} of {len(views)} views have no depth, so points that are hidden in them get the features of "
                "what hides them; give depth_file_path in transforms.json"
            )
        if not seen.any():
            found.append(
                "no view sees any point: check the convention of the poses (opengl or opencv), the unit of the depth, "
                "and whether cloud and poses have the same axes"
            )
        elif (share := float((seen == 0).mean())) > 0.5:
            found.append(f"{share:.0%} of the points are not seen by any view, and have no label")
        return found


def require_same(path: Path, facts: dict[str, Any]) -> None:
    """Refuse to replace labels of points that were made with other settings.

    Args:
        path: of their JSON, which need not exist. facts: of the new labels, see `PointLabeller.facts`.

    Raises:
        OutputError: With what differs.
    """
    if not path.exists():
        return
    try:
        before = dict(read_json(path, RESULT, ("meta",))["meta"])
    except (DensevlError, TypeError, ValueError):
        before = {}
    if changes := fitted.differing({name: before.get(name) for name in facts}, facts):
        raise OutputError(
            f"{shown(path)} is of another run ({changes}); name another --out, or start over with --overwrite"
        )


def _listed(views: Iterable[View]) -> list[View]:
    """Return views as a list.

    Raises:
        OptionError: If they are not views.
        DatasetError: If there are none.
    """
    found = list(views) if isinstance(views, Iterable) else [views]
    odd = [type(one).__name__ for one in found if not isinstance(one, View)]
    if odd or isinstance(views, View):
        raise OptionError(f"views must be a list of View, as from read_views; got {odd[0] if odd else 'one View'}")
    if not found:
        raise DatasetError("there are no views; give at least one posed photo")
    return found
