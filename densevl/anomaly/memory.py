"""`NearestMemory`: rows of normal features, and the nearest of them to each query, without the matrix of all pairs.

Used as WinCLIP+ (CVPR 2023), AnomalyDINO (WACV 2025) and PatchCore (CVPR 2022) use theirs. Shape letters: M rows of
the memory, Q queries, D width, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.errors import ModelError

METRICS = ("cosine", "euclid")
STEP = 2048  # queries, and rows, that are compared at a time
SPARE = 3  # candidates more than asked for: rounding of the products cannot hide the nearest
PROJECTED = 128  # width in which the coreset is chosen


@dataclass(frozen=True, eq=False)
class NearestMemory:
    """Rows to compare with.

    Attributes:
        rows: (M, D) float32; unit rows where the metric is the cosine.
        owner: (M,) int64, the number of the reference a row comes from.
        metric: "cosine", distance 1 - cos, 0..2; or "euclid".
    """

    rows: torch.Tensor
    owner: torch.Tensor
    metric: str = "cosine"

    @classmethod
    def of(cls, features: list[torch.Tensor], metric: str = "cosine") -> NearestMemory:
        """Remember the features of references, each (M_i, D).

        Raises:
            ModelError: none are given, or an unknown metric.
        """
        if metric not in METRICS:
            raise ModelError(f"memory metric is {metric!r}; it is {' or '.join(METRICS)}")
        if not features:
            raise ModelError("a memory needs at least one normal image")
        rows = torch.cat([part.float() for part in features])
        owner = torch.cat([torch.full((len(part),), index) for index, part in enumerate(features)])
        return cls(F.normalize(rows, dim=-1) if metric == "cosine" else rows, owner.to(rows.device), metric)

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries_QD: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest rows of each query: distances (Q, k) float32, ascending, and their row numbers (Q, k).

        Neighbours are found by chunked products and a running best; their distances are then computed anew from the
        two rows, so they do not depend on chunks, and a query that is itself a row has distance 0 exactly.
        """
        queries = queries_QD.to(self.rows).float()
        queries = F.normalize(queries, dim=-1) if self.metric == "cosine" else queries
        k = min(k, len(self.rows))
        pairs = [self._nearest(part, k) for part in queries.split(STEP)]
        if not pairs:
            return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long, device=queries.device)
        return torch.cat([distance for distance, _ in pairs]), torch.cat([index for _, index in pairs])

    def without(self, reference: int) -> NearestMemory:
        """The memory without the rows of one reference."""
        kept = self.owner != reference
        return NearestMemory(self.rows[kept], self.owner[kept], self.metric)

    def compress(self, most: int, seed: int = 0) -> NearestMemory:
        """At most this many rows, chosen so that no row is far from a chosen one (greedy k-center, PatchCore)."""
        if len(self) <= most:
            return self
        kept = coreset(self.rows, most, seed)
        return NearestMemory(self.rows[kept], self.owner[kept], self.metric)

    def to(self, device: torch.device) -> NearestMemory:
        """The memory on another device."""
        return NearestMemory(self.rows.to(device), self.owner.to(device), self.metric)

    def weight(self, queries_QD: torch.Tensor, b: int) -> torch.Tensor:
        """PatchCore's weight, 0..1, of an image's largest distance: low where its nearest row has like neighbours.

        1 - softmax over the b rows nearest to the farthest query's nearest row, at that row, of their distances to it.
        """
        distance, index = self.nearest(queries_QD)
        worst = int(distance[:, 0].argmax())
        near = int(index[worst, 0])
        around = self.nearest(self.rows[near : near + 1], b)[1][0]
        query = queries_QD[worst : worst + 1].to(self.rows)
        query = F.normalize(query, dim=-1) if self.metric == "cosine" else query
        apart = (query - self.rows[around]).norm(dim=1)
        return 1 - (distance[worst, 0] - torch.logsumexp(apart, dim=0)).exp() if len(around) > 1 else torch.tensor(1.0)

    def _nearest(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = self._search(queries, min(k + SPARE, len(self.rows)))
        apart = (queries[:, None] - self.rows[index]).square().sum(dim=-1)
        distance, order = (apart / 2 if self.metric == "cosine" else apart.sqrt()).sort(dim=1, stable=True)
        return distance[:, :k], index.gather(1, order)[:, :k]

    def _search(self, queries: torch.Tensor, k: int) -> torch.Tensor:
        best = queries.new_empty(len(queries), 0)
        index = torch.zeros(len(queries), 0, dtype=torch.long, device=queries.device)
        start = 0
        for rows in self.rows.split(STEP):
            closeness = queries @ rows.mT
            if self.metric == "euclid":
                closeness = closeness - rows.square().sum(dim=1) / 2
            value, place = closeness.topk(min(k, len(rows)), dim=1)
            best, index = torch.cat([best, value], dim=1), torch.cat([index, place + start], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            index = index.gather(1, order)
            start += len(rows)
        return index


def coreset(rows_MD: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Row numbers (count,) of a greedy k-center cover: each next row is the farthest from those chosen.

    The first row is drawn by the seed and is part of the cover. Wide rows are compared after a random projection.
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
