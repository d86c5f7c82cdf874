"""A fitted detector on disk: the contents of its two files; see `densevl.fitted`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from densevl import fitted
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.scoring import Scoring, get_scoring
from densevl.fitted import fingerprint as fingerprint
from densevl.weights import below

FORMAT = "densevl-anomaly-1"
SAVED = fitted.kind_of("anomaly detector")


def save(
    path: Path,
    memories: Mapping[str, NearestMemory],
    prototypes: torch.Tensor | None,
    facts: dict,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write `path`.safetensors and `path`.json, both or neither.

    Raises:
        OutputError: without `overwrite`, a file was not written by densevl; or the disk refuses.
    """
    tensors = {f"rows.{level}": memory.rows for level, memory in memories.items()}
    tensors |= {f"owner.{level}": memory.owner for level, memory in memories.items()}
    tensors |= {f"place.{level}": memory.place for level, memory in memories.items() if memory.place is not None}
    if prototypes is not None:
        tensors["prototypes"] = prototypes
    return fitted.save(path, FORMAT, tensors, facts, overwrite=overwrite)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NearestMemory], torch.Tensor | None, dict[str, Any]]:
    """Read what `save` wrote: memories by level, prototypes (2, E) or None, and the facts.

    Raises:
        WeightsError: a file is missing, damaged, of another kind, or the two do not belong together.
    """
    tensors, facts = fitted.read(path, FORMAT, SAVED)
    metric = scoring_of(facts, path).metric
    levels, places = below(tensors, "rows."), below(tensors, "place.")
    with SAVED.sense(path):
        for level, rows in levels.items():
            owner, place = tensors[f"owner.{level}"], places.get(level)
            fits = rows.ndim == 2 and rows.is_floating_point() and owner.shape == rows.shape[:1]
            if fits and not torch.isfinite(rows).all():
                raise ValueError(f"its memory '{level}' holds NaN or infinite numbers")
            if not fits or (place is not None and place.shape != (len(rows), 2)):
                raise ValueError(f"the parts of its memory '{level}' do not fit each other")
        memories = {
            level: NearestMemory(rows, tensors[f"owner.{level}"], metric, places.get(level))
            for level, rows in levels.items()
        }
    return memories, tensors.get("prototypes"), facts


def scoring_of(facts: Mapping[str, Any], path: str | os.PathLike[str]) -> Scoring:
    """The scoring that a file was saved with.

    Raises:
        WeightsError: it has none that this version knows.
    """
    with SAVED.sense(path, inner=True):
        return get_scoring(Scoring("saved"), **facts["scoring"])


def scoring_facts(scoring: Scoring) -> dict[str, Any]:
    """A scoring in JSON types."""
    return asdict(scoring)
