"""Identify models by their weights, compare the settings of two runs, and save fitted state.

A model is identified by a hash of its weights, so that state fitted with one is never used with another. Fitted state
is saved as tensors in a safetensors file and everything else in a JSON file of the same stem. A checksum ties the two
together. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import digest
from densevl.errors import WeightsError
from densevl.files import atomic_write_all, guard_saved, json_text
from densevl.saved import Kind, read_json
from densevl.weights import read_checkpoint

if TYPE_CHECKING:
    import torch


TAKEN = ("image_activation", "text_activation", "mean", "std", "muted")
SHOWN, LISTED = 60, 6  # characters per value, and facts, shown in a message


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of the weights of all networks in a model object. Equal weights give the same on any machine.

    The activation and the pixel statistics of a backbone are included, because weights depend on them. The result is
    stored on the object and computed again when a tensor has changed.
    """
    tensors = list(_tensors(model))
    reading = getattr(model, "reading", {})
    facts = [f"{name} {reading[name][0]}" for name in TAKEN if name in reading]
    key = *facts, *((name, tensor.data_ptr(), _changes(tensor)) for name, tensor in tensors)
    known = vars(model).get("_weights_stamp")
    if known is None or known[0] != key:
        known = key, digest.of_text(digest.of_tensors(tensors), *facts) if facts else digest.of_tensors(tensors)
        object.__setattr__(model, "_weights_stamp", known)
    return known[1]


def _tensors(thing: Any, above: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the networks in an object, or else those of the densevl objects it consists of."""
    import torch

    parts = sorted(getattr(thing, "__dict__", {}).items())
    networks = [(name, part) for name, part in parts if isinstance(part, torch.nn.Module)]
    for name, network in networks:
        yield from ((f"{above}{name}.{key}", tensor) for key, tensor in network.state_dict().items())
    for name, part in parts if not networks else ():
        if isinstance(part, dict):
            yield from ((f"{above}{name}.{key}", row) for key, row in part.items() if isinstance(row, torch.Tensor))
        elif type(part).__module__.startswith("densevl."):
            yield from _tensors(part, f"{above}{name}.")


def _changes(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def identity(part: Any) -> Any:
    """Describe a component (a proxy, a proposer, a function) by values that JSON can hold.

    Returns:
        None and names unchanged; else the name, the settings, and the fingerprint of the weights if there are any.
    """
    if part is None or isinstance(part, str):
        return part
    name = getattr(part, "name", None) or getattr(part, "__qualname__", None) or type(part).__name__
    found = {"name": str(name), **_settings(part)}
    return found | {"weights": fingerprint(part)} if next(_tensors(part), None) is not None else found


def _settings(part: Any) -> dict[str, Any]:
    """Return the plain public attributes of a component and of the components inside it."""
    if not type(part).__module__.startswith("densevl."):
        return {}
    found: dict[str, Any] = {}
    for name, value in sorted(vars(part).items()):
        if isinstance(value, bool | int | float | str | tuple) and not name.startswith("_"):
            found[name] = value
        elif is_dataclass(value) and name == "settings":
            found[name] = asdict(value)  # type: ignore[arg-type]
        elif name in ("inner", "proposer"):
            found[name] = identity(value)
    return found


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """List the facts in which two runs differ on one line: "model 'mini' -> 'photo', protocol.crop 224 -> 336"."""
    before, after = (json.loads(json.dumps(facts, default=str)) for facts in (old, new))
    found = list(_changed(before, after))
    return ", ".join(found[:LISTED]) + f" and {len(found) - LISTED} more" * (len(found) > LISTED)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(before, after, f"{above}{key}.")
        elif before != after:
            yield f"{above}{key} {_brief(before)} -> {_brief(after)}"


def _brief(value: Any) -> str:
    """Return a value for a message: the first digits of a hash, the name of a component."""
    if isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"):
        return value[:12]
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    text = "none" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def require_same(model: Any, weights: str, name: str, what: str) -> None:
    """Refuse a model whose weights are not those that something was fitted with.

    Args:
        model: has a `name`. weights: the expected `fingerprint`. name: the original model. what: for the message.

    Raises:
        WeightsError: If the weights differ.
    """
    if fingerprint(model) != weights:
        raise WeightsError(
            f"{what} was fitted with model '{name}', and '{model.name}' has other weights, or another activation, mean "
            "or std: their vectors are not comparable; load it with that model, or fit again"
        )


def kind_of(what: str) -> Kind:
    """Return the kind of a fitted file, for reading it."""
    return Kind(what, WeightsError, "fit and save it again")


def to_bytes(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> bytes:
    """Return a safetensors file with a sorted header. safetensors orders it differently each time."""
    from safetensors.torch import save

    blob = save(dict(tensors), dict(header))
    start = 8 + int.from_bytes(blob[:8], "little")
    entries = json.loads(blob[8:start])
    entries["__metadata__"] = dict(sorted(header.items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[start:]


def save(
    path: Path, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], *, overwrite: bool = False
) -> list[Path]:
    """Write `path`.safetensors and `path`.json, either both or neither.

    Args:
        path: with or without one of the extensions. kind: kind and version, for `read`. facts: of JSON types.
        overwrite: allow replacing files that densevl did not write.

    Raises:
        OutputError: If a file was not written by densevl, or the files cannot be written.
    """
    guard_saved(files(path), overwrite=overwrite)
    blob = to_bytes(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, {"format": kind}
    )
    content = {"format": kind, **facts, "tensors_sha256": digest.of_bytes(blob)}
    content["facts_sha256"] = stamp(content)
    tensor_file, fact_file = files(path)
    return atomic_write_all({tensor_file: blob, fact_file: json_text(content, indent=1).encode()})


def read(path: str | os.PathLike[str], kind: str, saved: Kind) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and facts that `save` wrote.

    Args:
        kind: the kind it was saved with. saved: the kind of file, for messages.

    Raises:
        WeightsError: If a file is missing, damaged or of another kind, or the two do not belong together.
    """
    tensor_file, fact_file = files(saved.path(path))
    facts = read_json(fact_file, saved)
    if (found := facts.get("format")) != kind:
        other = f"a file of the kind {str(found)[:80]!r}" if found is not None else "not a file that densevl saved"
        raise saved.bad(fact_file, f"is {other}, not {kind!r}")
    if facts.pop("facts_sha256", None) != stamp(facts):
        raise saved.bad(fact_file, "was changed after it was saved, or is damaged")
    tensors = read_checkpoint(tensor_file).tensors
    if digest.of_file(tensor_file) != facts.get("tensors_sha256"):
        raise saved.bad(tensor_file, f"does not belong to {fact_file.name}, or is damaged")
    if odd := next((name for name, value in tensors.items() if not _finite(value)), None):
        raise saved.bad(tensor_file, f"is damaged: {odd[:80]!r} is not finite")
    return tensors, facts


def stamp(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the facts of a file."""
    return digest.of_text(json.dumps(facts, sort_keys=True))


def _finite(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def files(path: Path) -> tuple[Path, Path]:
    """Return the tensor file and the fact file of a name. Dots other than those of the two extensions are kept."""
    base = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return base.with_name(base.name + ".safetensors"), base.with_name(base.name + ".json")
