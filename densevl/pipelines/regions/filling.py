"""Photos into what grows by photos, an index or a bank: new and changed ones are looked at, and kept part by part.

Both hold a vector a region: `settled` says by which operator a classifier makes it, and on what else it depends.
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
"""Facts of a classifier that the vectors of regions do not depend on."""
KEPT_BACK = 256  # photos that are held before they are written; an interrupted build goes on from there
Found = TypeVar("Found")


@dataclass(frozen=True)
class Built:
    """What a build did. Attributes: added, kept and removed photos, by path; failed, the reason by path."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    failed: dict[str, str]


@dataclass(frozen=True)
class Taking:
    """How photos are taken.

    Attributes:
        forget: photos that are not among those given are dropped. skip: a folder that is left out, such as that of
            results. strict: stop at the first bad photo. watch: is told what happens.
    """

    forget: bool
    skip: str | os.PathLike[str] | None
    strict: bool
    watch: Watch


def settled(classifier: RegionClassifier, holds: str) -> tuple[str, dict[str, Any]]:
    """The operator that makes a classifier's vectors, and the facts that they depend on, ready for JSON.

    Args:
        holds: what is to hold the vectors, "an index", for messages.

    Raises:
        OptionError: several operators, or a model that names regions without vectors.
    """
    if len(classifier.operators) != 1:
        raise OptionError(
            f"{holds} holds one vector a region, and the operators are {'+'.join(classifier.operators)}; take one, "
            "RegionClassifier(model, 'pool')"
        )
    if classifier.order == NAME_FIRST:
        raise OptionError(
            f"model '{classifier.backbone.name}' scores words and embeds no regions here, so there is nothing for "
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
    """Take the photos that are new or changed; a bad one is named in the report, and the others are taken.

    Args:
        photos: see `images.find_images`. known: what is held. look: a path to the size (H, W) of the photo and what is
            found there. take: takes what was found, in place of what is held of those paths. drop: photos, by path.
        listed: takes the bad ones.

    Raises:
        ImageError: no photos, or a bad one with `strict`. What `look` and `take` raise; what is in memory is taken.
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
