"""What was fitted on a model, on disk: tensors in a safetensors file, all else in a JSON file of the same stem.

No pickles. The two files name each other by a checksum, and the facts may name the model by a hash of its weights, so
that vectors of one model are not compared with those of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import digest
from densevl.errors import WeightsError
from densevl.files import atomic_write_all
from densevl.weights import read_checkpoint

if TYPE_CHECKING:
    import torch


def fingerprint(model: Any) -> str:
    """SHA-256 over the weights of every network a model object holds: equal for equal weights, on any machine."""
    from torch import nn

    return digest.of_tensors(
        (f"{name}.{key}", tensor)
        for name, value in sorted(vars(model).items())
        if isinstance(value, nn.Module)
        for key, tensor in value.state_dict().items()
    )


def require_same(model: Any, weights: str, name: str, what: str) -> None:
    """Refuse a model with other weights than those something was fitted with.

    Args:
        model: with a `name`. weights: the `fingerprint` wanted. name: of the model it was. what: for the message.

    Raises:
        WeightsError: it has.
    """
    if fingerprint(model) != weights:
        raise WeightsError(
            f"{what} was fitted with model '{name}', and '{model.name}' has other weights: its vectors mean nothing "
            "to them; load it with that model, or fit again"
        )


def save(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`.safetensors and `path`.json, both or neither.

    Args:
        path: with or without one of the endings. kind: what it is and its version, for `read`. facts: JSON types.

    Raises:
        OutputError: the disk refuses.
    """
    from safetensors.torch import save as to_bytes

    blob = to_bytes({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"format": kind})
    content = {"format": kind, **facts, "tensors_sha256": digest.of_bytes(blob)}
    tensor_file, fact_file = files(path)
    return atomic_write_all({tensor_file: blob, fact_file: json.dumps(content, indent=1).encode()})


def read(path: Path, kind: str, what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and facts that `save` wrote.

    Args:
        what: it should be, in a word or two, for messages.

    Raises:
        WeightsError: a file is missing, damaged, of another kind, or the two do not belong together.
    """
    tensor_file, fact_file = files(path)
    try:
        facts = json.loads(fact_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{what} file {fact_file} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != kind:
        raise WeightsError(f"{fact_file} is no saved {what} of this version; fit and save it again")
    tensors = read_checkpoint(tensor_file).tensors
    if digest.of_file(tensor_file) != facts.get("tensors_sha256"):
        raise WeightsError(f"{tensor_file} does not belong to {fact_file.name}, or is damaged; save the {what} again")
    return tensors, facts


def files(path: Path) -> tuple[Path, Path]:
    """The tensor and the fact file of a name; other dots than those of our endings belong to the name."""
    base = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return base.with_name(base.name + ".safetensors"), base.with_name(base.name + ".json")
