"""What decides a result, as facts ready for JSON; and what was fitted on a model, on disk.

A model is named by a hash of its weights, so that what was made with one is not taken for another's. What was fitted is
tensors in a safetensors file and all else in a JSON file of the same stem; the two name each other by a checksum. No
pickles.
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
from densevl.files import atomic_write_all, json_text
from densevl.saved import Kind, read_json
from densevl.weights import read_checkpoint

if TYPE_CHECKING:
    import torch


TAKEN = ("image_activation", "text_activation", "mean", "std", "muted")
SHOWN, LISTED = 60, 6  # characters of a value, and facts, in a message


def fingerprint(model: Any) -> str:
    """SHA-256 over the weights of every network a model object holds: equal for equal weights, on any machine.

    The activation and the pixel statistics of a backbone count too: without them weights mean something else. It is
    kept on the object, and computed anew when a tensor has changed.
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
    """The tensors of the networks that an object holds; else those of the objects of densevl that it is made of."""
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
    """What a part that others are built with is (a proxy, a proposer, a function), ready for JSON.

    Returns:
        None and names as they are; else its name, the fingerprint of its weights if it has some, and its settings.
    """
    if part is None or isinstance(part, str):
        return part
    name = getattr(part, "name", None) or getattr(part, "__qualname__", None) or type(part).__name__
    found = {"name": str(name), **_settings(part)}
    return found | {"weights": fingerprint(part)} if next(_tensors(part), None) is not None else found


def _settings(part: Any) -> dict[str, Any]:
    """Plain public attributes, also of the parts it is made of."""
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
    """The facts in which two runs differ, on one line: "model 'mini' -> 'photo', protocol.crop 224 -> 336"."""
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
    """A value in a message: of a hash its first digits, of a part its name."""
    if isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"):
        return value[:12]
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    text = "none" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def require_same(model: Any, weights: str, name: str, what: str) -> None:
    """Refuse a model with other weights than those something was fitted with.

    Args:
        model: with a `name`. weights: the `fingerprint` wanted. name: of the model it was. what: for the message.

    Raises:
        WeightsError: it has.
    """
    if fingerprint(model) != weights:
        raise WeightsError(
            f"{what} was fitted with model '{name}', and '{model.name}' has other weights, or another activation, mean "
            "or std: its vectors mean nothing to them; load it with that model, or fit again"
        )


def kind_of(what: str) -> Kind:
    """A kind of fitted file."""
    return Kind(what, WeightsError, "fit and save it again")


def to_bytes(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content; safetensors itself orders the header anew each time."""
    from safetensors.torch import save

    blob = save(dict(tensors), dict(header))
    start = 8 + int.from_bytes(blob[:8], "little")
    told = json.loads(blob[8:start])
    told["__metadata__"] = dict(sorted(header.items()))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[start:]


def save(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`.safetensors and `path`.json, both or neither.

    Args:
        path: with or without one of the endings. kind: what it is and its version, for `read`. facts: JSON types.

    Raises:
        OutputError: the disk refuses.
    """
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
        kind: as it was saved. saved: what it is, for messages.

    Raises:
        WeightsError: a file is missing, damaged, of another kind, or the two do not belong together.
    """
    tensor_file, fact_file = files(saved.path(path))
    facts = read_json(fact_file, saved)
    if (found := facts.get("format")) != kind:
        other = f"a file of the kind {str(found)[:80]!r}" if found is not None else "no such file"
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
    """SHA-256 of all other facts of a file."""
    return digest.of_text(json.dumps(facts, sort_keys=True))


def _finite(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def files(path: Path) -> tuple[Path, Path]:
    """The tensor and the fact file of a name; other dots than those of our endings belong to the name."""
    base = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return base.with_name(base.name + ".safetensors"), base.with_name(base.name + ".json")
