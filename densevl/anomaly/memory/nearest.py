"""`NearestMemory`: rows of normal features, and the nearest one to each query, without the matrix of all pairs.

WinCLIP+ (CVPR 2023), AnomalyDINO (WACV 2025) and PatchCore (CVPR 2022) use such memories. Shape letters: M rows of the
memory, Q queries, D width, B images, h/w grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.kernels import nearest
from densevl.weights import require_finite

METRICS = ("cosine", "euclid")
PROJECTED = 128  # width after the random projection for choosing the coreset


@dataclass(frozen=True, eq=False)
class NearestMemory:
    """Rows to compare with.

    Attributes:
        rows: (M, D) float32; unit rows if the metric is the cosine.
        owner: (M,) int64, the number of each row's reference image.
        metric: "cosine", distance 1 - cos, 0..2; or "euclid".
        place: (M, 2) int64, each row's grid row and column, or None if places do not matter.
    """

    rows: torch.Tensor
    owner: torch.Tensor
    metric: str = "cosine"
    place: torch.Tensor | None = None

    @classmethod
    def of(
        cls, features: list[torch.Tensor], metric: str = "cosine", places: list[torch.Tensor] | None = None
    ) -> NearestMemory:
        """Store the features of references, each (M_i, D), and optionally their places (M_i, 2).

        Raises:
            ModelError: there are none, or the metric is unknown.
        """
        if metric not in METRICS:
            raise ModelError(f"memory metric is {metric!r}; use {' or '.join(METRICS)}")
        if not features:
            raise ModelError("a memory needs at least one normal image")
        rows = torch.cat([part.float() for part in features])
        require_finite(rows, "features of the normal images")
        owner = torch.cat([torch.full((len(part),), index) for index, part in enumerate(features)])
        place = None if places is None else torch.cat(places).to(rows.device)
        return cls(F.normalize(rows, dim=-1) if metric == "cosine" else rows, owner.to(rows.device), metric, place)

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries_QD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest row of each query: distances (Q,) float32 and row numbers (Q,); ties go to the smallest number.

        `kernels.nearest` finds the row. The distance is then recomputed from the two rows, so a query that is itself a
        row has distance exactly 0. Rows whose distances differ by less than the rounding of a product are ties.
        """
        queries = self._like_rows(queries_QD)
        lifted = queries if self.metric == "cosine" else F.pad(queries - self._centre, (0, 1), value=1.0)
        index = nearest(lifted, self._keys)[1]
        apart = (queries - self.rows[index]).square().sum(dim=-1)
        return (apart / 2 if self.metric == "cosine" else apart.sqrt()), index

    def look_up(self, features_BhwD: torch.Tensor, near: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`nearest` of every cell of a grid: (B, h, w) each.

        Args:
            near: compare a cell only with rows from at most this many cells away along each axis; a cell without such
                rows is compared with all. None compares with all.
        """
        shape = features_BhwD.shape[:3]
        if near is None or self.place is None:
            distance, index = self.nearest(features_BhwD.flatten(0, 2))
            return distance.view(shape), index.view(shape)
        distance = torch.empty(shape, device=self.rows.device)
        index = torch.empty(shape, dtype=torch.long, device=self.rows.device)
        for y in range(shape[1]):
            for x in range(shape[2]):
                apart = (self.place - self.place.new_tensor((y, x))).abs().amax(dim=1)
                kept = (apart <= near).nonzero()[:, 0]
                part = self.kept(kept) if len(kept) else self
                distance[:, y, x], found = part.nearest(features_BhwD[:, y, x])
                index[:, y, x] = kept[found] if len(kept) else found
        return distance, index

    def kept(self, which: torch.Tensor) -> NearestMemory:
        """The memory with some rows only, by number or mask."""
        place = None if self.place is None else self.place[which]
        return NearestMemory(self.rows[which], self.owner[which], self.metric, place)

    def without(self, reference: int) -> NearestMemory:
        """The memory without the rows of one reference."""
        return self.kept(self.owner != reference)

    def compress(self, most: int, seed: int = 0) -> NearestMemory:
        """Keep at most this many rows, chosen so that no row is far from a chosen one (greedy k-center, PatchCore)."""
        return self if len(self) <= most else self.kept(coreset(self.rows, most, seed))

    def to(self, device: torch.device) -> NearestMemory:
        """The memory on another device."""
        place = None if self.place is None else self.place.to(device)
        return NearestMemory(self.rows.to(device), self.owner.to(device), self.metric, place)

    def weight(self, queries_QD: torch.Tensor, b: int) -> torch.Tensor:
        """PatchCore's weight, 0..1, of an image's largest distance: low if its nearest row has similar neighbours.

        1 minus the softmax, over the b rows nearest to the farthest query's nearest row, of their distances to the
        query, at that nearest row.
        """
        distance, index = self.nearest(queries_QD)
        worst = int(distance.argmax())
        away = (self.rows - self.rows[index[worst]]).square().sum(dim=1)
        around = away.topk(min(b, len(self)), largest=False).indices
        query = self._like_rows(queries_QD[worst : worst + 1])
        apart = (query - self.rows[around]).norm(dim=1)
        own = (query - self.rows[index[worst]]).norm()
        return 1 - (own - torch.logsumexp(apart, dim=0)).exp() if len(around) > 1 else torch.tensor(1.0)

    @cached_property
    def _keys(self) -> torch.Tensor:
        """Rows whose dot product with a lifted query is largest where the distance is smallest."""
        if self.metric == "cosine":
            return self.rows
        centred = self.rows - self._centre
        return torch.cat([centred, -centred.square().sum(dim=1, keepdim=True) / 2], dim=1)

    @cached_property
    def _centre(self) -> torch.Tensor:
        """The mean, subtracted before products of rows without unit length, which large means would make imprecise."""
        return self.rows.mean(dim=0)

    def _like_rows(self, queries_QD: torch.Tensor) -> torch.Tensor:
        queries = queries_QD.to(self.rows).float()
        return F.normalize(queries, dim=-1) if self.metric == "cosine" else queries


def coreset(rows_MD: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Row numbers (count,) of a greedy k-center cover: each next row is the farthest from those chosen.

    The seed draws the first row, which is part of the cover. Wide rows are compared after a random projection.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = rows_MD.float()
    if rows.shape[1] > PROJECTED:
        projection = torch.randn(rows.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
        rows = rows @ projection.to(rows)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    far = torch.full((len(rows),), torch.inf, device=rows.device)
    while len(chosen) < min(count, len(rows)):
        far = torch.minimum(far, (rows - rows[chosen[-1]]).square().sum(dim=1))
        far[chosen[-1]] = -1
        chosen.append(int(far.argmax()))
    return torch.tensor(chosen, device=rows_MD.device)
