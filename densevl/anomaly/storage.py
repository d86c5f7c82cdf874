"""A fitted detector on disk: tensors in a safetensors file, all else in a JSON file of the same stem, no pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densevl.anomaly.memory import NearestMemory
from densevl.anomaly.scoring import Scoring, get_scoring
from densevl.errors import DensevlError, WeightsError
from densevl.files import atomic_write_all
from densevl.shipped import read_tensors

FORMAT = "densevl-anomaly-1"


def fingerprint(model: Any) -> str:
    """SHA-256 over the weights of every network a model object holds: equal for equal weights, on any machine."""
    digest = hashlib.sha256()
    for name, value in sorted(vars(model).items()):
        if isinstance(value, nn.Module):
            for key, tensor in value.state_dict().items():
                digest.update(f"{name}.{key} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save(path: Path, memories: Mapping[str, NearestMemory], prototypes: torch.Tensor | None, facts: dict) -> list[Path]:
    """Write `path`.safetensors and `path`.json, both or neither.

    Raises:
        OutputError: the disk refuses.
    """
    from safetensors.torch import save as to_bytes

    tensors = {f"rows.{level}": memory.rows.cpu().contiguous() for level, memory in memories.items()}
    tensors |= {f"owner.{level}": memory.owner.cpu().contiguous() for level, memory in memories.items()}
    if prototypes is not None:
        tensors["prototypes"] = prototypes.cpu().contiguous()
    blob = to_bytes(tensors, {"format": FORMAT})
    facts = {"format": FORMAT, **facts, "tensors_sha256": hashlib.sha256(blob).hexdigest()}
    base = stem(path)
    return atomic_write_all(
        {
            base.with_name(base.name + ".safetensors"): blob,
            base.with_name(base.name + ".json"): json.dumps(facts, indent=1).encode(),
        }
    )


def read(path: Path) -> tuple[dict[str, NearestMemory], torch.Tensor | None, dict[str, Any]]:
    """Read what `save` wrote: memories by level, prototypes (2, E) or None, and the facts.

    Raises:
        WeightsError: a file is missing, damaged, of another kind, or the two do not belong together.
    """
    base = stem(path)
    tensor_file, fact_file = base.with_name(base.name + ".safetensors"), base.with_name(base.name + ".json")
    try:
        facts = json.loads(fact_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"detector file {fact_file} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise WeightsError(f"{fact_file} is no saved anomaly detector of this version; fit and save it again")
    tensors, _ = read_tensors(tensor_file)
    if hashlib.sha256(tensor_file.read_bytes()).hexdigest() != facts.get("tensors_sha256"):
        raise WeightsError(f"{tensor_file} does not belong to {fact_file.name}, or is damaged; save the detector again")
    metric = scoring_of(facts, fact_file).metric
    levels = [key.removeprefix("rows.") for key in tensors if key.startswith("rows.")]
    memories = {level: NearestMemory(tensors[f"rows.{level}"], tensors[f"owner.{level}"], metric) for level in levels}
    return memories, tensors.get("prototypes"), facts


def scoring_of(facts: Mapping[str, Any], path: Path) -> Scoring:
    """The scoring a file was saved with.

    Raises:
        WeightsError: it holds none that this version knows.
    """
    try:
        return get_scoring(Scoring("saved"), **facts["scoring"])
    except (KeyError, TypeError, DensevlError) as error:
        raise WeightsError(f"{path} holds no usable scoring: {error}") from error


def scoring_facts(scoring: Scoring) -> dict[str, Any]:
    """A scoring as JSON types."""
    return asdict(scoring)


def stem(path: Path) -> Path:
    """The name without one of our endings; other dots belong to the name."""
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
