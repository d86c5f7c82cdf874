"""Weights in a folder: finding the files, and joining shards by their index."""

from __future__ import annotations

import os
from pathlib import Path

from densevl.saved import read_json
from densevl.weights.forms.dinotxt import joined
from densevl.weights.names import ENDINGS, INDEX, OWN_NAMES, SHARD, THEIR_NAMES
from densevl.weights.reading import Checkpoint, State, bad_file, read_checkpoint

PARTS = 3
"""The most files of a dino.txt."""


def weights_in(folder: Path, *, own: bool) -> Path | None:
    """The weights file, or the index of shards, of a folder; None if there is none.

    Args:
        own: whether the folder has open_clip's config, whose file names are then preferred; a folder may hold the same
            model in two forms.

    Raises:
        WeightsError: there are several files, and none has a known name.
    """
    names = (*OWN_NAMES, *THEIR_NAMES) if own else (*THEIR_NAMES, *OWN_NAMES)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if len(others) > 1 and all(SHARD.search(path.stem) for path in others):
        raise bad_file(
            others[0], f"is one of {len(others)} shards, and their index ({THEIR_NAMES[1]}) is not beside them"
        )
    if len(others) > 1:
        raise bad_file(others[0], f"is one of {len(others)} in its folder: name the file itself with weights=FILE")
    return others[0] if others else None


def parts_in(folder: Path) -> State | None:
    """The tensors of a folder whose files are the parts of one dino.txt; None for other folders."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not 2 <= len(files) <= PARTS or any(SHARD.search(path.stem) for path in files):
        return None
    return joined({path: read_checkpoint(path).tensors for path in files})


def read_weights(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file, or the shards that an index names, as one.

    Args:
        path: as `read_checkpoint` takes it, or an index: a JSON file with a weight_map from tensors to files beside it.

    Raises:
        WeightsError: see `read_checkpoint`; or the index names other places, or shards lack tensors that it lists.
    """
    path = Path(path)
    if path.suffix != ".json":
        return read_checkpoint(path)
    weight_map = read_json(path, INDEX, ("weight_map",))["weight_map"]
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise INDEX.bad(path, "has no weight_map from tensors to files")
    if odd := next(
        (name for name in weight_map.values() if Path(name).name != name or Path(name).suffix not in ENDINGS), None
    ):
        raise INDEX.bad(path, f"names {odd[:80]!r}, which is not a weights file beside it")
    if absent := [name for name in dict.fromkeys(weight_map.values()) if not os.path.isfile(path.with_name(name))]:
        raise INDEX.bad(path, f"names {len(absent)} files that are not beside it, {absent[0][:80]} first")
    tensors: State = {}
    for name in dict.fromkeys(weight_map.values()):
        tensors |= read_checkpoint(path.with_name(name)).tensors
    missing = [key for key in weight_map if key not in tensors]
    if missing and not any(key.endswith(missing[0].split(".", 1)[-1]) for key in tensors):
        raise INDEX.bad(path, f"names {missing[0][:80]!r}, which {weight_map[missing[0]]!r} does not hold")
    return Checkpoint(path, tensors)
