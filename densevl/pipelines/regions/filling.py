"""Add photos to an index or a bank: new and changed ones are embedded, and stored part by part.

Both hold one vector per region: `settled` tells which operator of a classifier makes it, and what else it depends on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from densevl.errors import OptionError
from densevl.images import find_images
from densevl.images.addresses import stamp
from densevl.images.listing import Sources
from densevl.pipelines.folder.each import each, one_by_one
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.watch import Job, Watch
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.settings import NAME_FIRST
from densevl.regions.index import Photo

WORDS = frozenset({"templates", "text", "text_side", "background", "presence", "margin", "clip_share", "second_look"})
"""Facts of a classifier that do not affect the vectors of regions."""
KEPT_BACK = 256  # photos collected before they are written; an interrupted build resumes from there
Found = TypeVar("Found")


@dataclass(frozen=True)
class Built:
    """Report of a build. Attributes: added, kept and removed: photos, by path; failed: the reason by path."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    failed: dict[str, str]


@dataclass(frozen=True)
class Taking:
    """Options of adding photos.

    Attributes:
        forget: drop photos that are not among those given. skip: a folder that is left out, such as that of the
            results. strict: stop at the first bad photo. watch: receives progress.
    """

    forget: bool
    skip: str | os.PathLike[str] | None
    strict: bool
    watch: Watch


def settled(classifier: RegionClassifier, holds: str) -> tuple[str, dict[str, Any]]:
    """Return the operator that makes a classifier's vectors, and the facts they depend on, ready for JSON.

    Args:
        holds: what will hold the vectors, "an index", for messages.

    Raises:
        OptionError: If there are several operators, or the model names regions without vectors.
    """
    if len(classifier.operators) != 1:
        raise OptionError(
            f"{holds} holds one vector per region, but the operators are {'+'.join(classifier.operators)}; take one, "
            "RegionClassifier(model, 'pool')"
        )
    if classifier.order == NAME_FIRST:
        raise OptionError(
            f"model '{classifier.backbone.name}' scores words and has no vectors of regions, so there is nothing for "
            f"{holds} to hold; take a CLIP model, or model 'mini' for drawings (--model), or name the regions of each "
            "photo instead (densevl regions)"
        )
    facts = {key: value for key, value in classifier.facts().items() if key not in WORDS}
    return next(iter(classifier.operators)), facts


def fill(
    photos: Sources,
    known: Sequence[Photo],
    look: Callable[[str], tuple[tuple[int, int], Found]],
    take: Callable[[Sequence[tuple[Photo, Found]]], None],
    drop: Callable[[Sequence[str]], None],
    listed: ErrorList | None,
    how: Taking,
) -> Built:
    """Add the photos that are new or changed. Unreadable photos are listed in the report, and the others are added.

    Args:
        photos: see `images.find_images`. known: the photos already held. look: from a path to the size (H, W) of the
            photo and what is found in it. take: stores what was found, replacing those paths. drop: removes paths.
        listed: receives the bad photos.

    Raises:
        ImageError: If there are no photos, or one is bad and `strict`. Errors of `look` and `take` are raised after
            storing what is in memory.
    """
    watch, paths = how.watch, find_images(photos, skip=how.skip).paths
    states = {path: stamp(path) for path in paths}
    held = {(photo.path, photo.bytes, photo.changed) for photo in known}
    kept = [path for path in paths if (path, *states[path]) in held]
    waiting = [path for path in paths if (path, *states[path]) not in held]
    new: list[tuple[Photo, Found]] = []
    added: list[str] = []
    failed: dict[str, str] = {}

    def bad(path: str, error: Exception) -> None:
        failed[path] = str(error)
        if listed is not None:
            listed.add(path, str(error))
        if how.strict:
            raise error
        watch.failed(Job(path, path), str(error))

    def taken() -> None:
        if new:
            take(new)
            new.clear()

    watch.begin(len(paths), len(kept))
    try:
        try:
            for path, (shape, found) in each(one_by_one(look), waiting, bad):
                size, changed = states[path]
                new.append((Photo(path, shape, size or 0, changed or 0), found))
                added.append(path)
                watch.done(Job(path, path), None, {})
                if len(new) == KEPT_BACK:
                    taken()
        finally:
            watch.end()
            taken()
    except KeyboardInterrupt as stop:
        there = len(kept) + len(added) - len(new)
        stop.add_note(f"{there:,} of {len(paths):,} images are in it; the same command goes on from here")
        raise
    gone = [photo.path for photo in known if how.forget and photo.path not in states]
    if gone:
        drop(gone)
    if listed is not None:
        listed.close(paths, failed)
    return Built(tuple(added), tuple(kept), tuple(gone), failed)
