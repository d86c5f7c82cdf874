"""`RegionSearch`: a folder of photos to an index, and words or an example to the regions that show them.

Training-free in the manner of "FOR: Finetuning for Object Level Open Vocabulary Image Retrieval" (WACV 2025), whose
question it answers: not which photo as a whole, but which thing in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from densevl.errors import DensevlError, LabelError, OptionError
from densevl.fitted import differing
from densevl.images import list_images
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals import Proposals
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.index import Hit, Photo, RegionIndex, RegionIndexError
from densevl.vocabulary import NOTHING, Background, LabelSet

WORDS = frozenset({"templates", "text", "text_side", "background", "presence", "margin", "second_look"})
"""Facts of a classifier that the vectors of an index do not depend on."""
KEPT_BACK = 256  # photos that a build holds before it writes the index; an interrupted build goes on from there


@dataclass(frozen=True)
class Built:
    """What a build did. Attributes: added, kept and removed photos, by path; failed, the reason by path."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    failed: dict[str, str]


class RegionSearch:
    """Finds things in a folder of photos by words or by example.

    >>> search = RegionSearch(RegionClassifier("mini"), "photos.npz")
    >>> search.build("photos")
    >>> search.find("umbrella")
    """

    def __init__(self, classifier: RegionClassifier, path: str | os.PathLike[str] | None = None) -> None:
        """Open or begin an index.

        Args:
            classifier: proposes and embeds regions, by one operator. path: the .npz file; None keeps it in memory.

        Raises:
            OptionError: the classifier has several operators. RegionIndexError: a file that is damaged or of another
                model.
        """
        if len(classifier.operators) != 1:
            raise OptionError(
                f"an index holds one vector a region, and the operators are {'+'.join(classifier.operators)}; take "
                "one, RegionClassifier(model, 'cls_mask')"
            )
        self.classifier, self.path = classifier, None if path is None else Path(path)
        self.operator = next(iter(classifier.operators))
        facts = {key: value for key, value in classifier.facts().items() if key not in WORDS}
        self._model = json.dumps(facts, sort_keys=True, default=str)
        self.index = RegionIndex.empty(self._model, classifier.backbone.embed_dim)
        if self.path is not None and self.path.exists():
            self.index = RegionIndex.load(self.path)
            if self.index.model != self._model:
                settings = differing(json.loads(self.index.model), facts)
                raise RegionIndexError(
                    f"index {str(self.path)!r} was made with other settings ({settings}); use those, or another file"
                )

    def build(
        self,
        photos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        forget: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Built:
        """Add photos that are new or changed; a bad one is named in the report, and the others are indexed.

        Args:
            photos: a folder, files, or a pattern; see `images.list_images`.
            forget: also drop photos of the index that are not among them.
            progress: called with the path of each photo before it is read.

        Raises:
            ImageError: no photos. OutputError: the index cannot be written; what is in memory is kept.
        """
        paths = list_images(photos)
        held = {(photo.path, photo.bytes, photo.changed) for photo in self.index.photos}
        new: list[tuple[Photo, Proposals, Any]] = []
        added: list[str] = []
        kept: list[str] = []
        failed: dict[str, str] = {}
        for path in paths:
            name = str(path)
            try:
                facts = path.stat()
                if (name, facts.st_size, facts.st_mtime_ns) in held:
                    kept.append(name)
                    continue
                if progress is not None:
                    progress(name)
                found = self.classifier.embed(path)
            except (DensevlError, OSError) as error:
                failed[name] = str(error)
                continue
            photo = Photo(name, found.regions.size, facts.st_size, facts.st_mtime_ns)
            new.append((photo, found.regions, found.vectors[self.operator].cpu()))
            added.append(name)
            if len(new) == KEPT_BACK:
                self._take(new)
        listed = {str(path) for path in paths}
        removed = [photo.path for photo in self.index.photos if forget and photo.path not in listed]
        self.index = self.index.without(removed)
        if new or removed:
            self._take(new)
        return Built(tuple(added), tuple(kept), tuple(removed), failed)

    def _take(self, new: list[tuple[Photo, Proposals, Any]]) -> None:
        """Move photos into the index, and the index to the disk."""
        self.index = self.index.with_photos(new)
        new.clear()
        if self.path is not None:
            self.index.save(self.path)

    def find(
        self, query: str | RegionEmbeddings, top: int = 10, *, each: int = 1, against: Sequence[str] | None = None
    ) -> list[Hit]:
        """The regions most like some words or an example.

        Args:
            query: words, "umbrella | parasol" being two for one thing, or an example that `classifier.embed` made.
            top: at most so many. each: at most so many of one photo.
            against: for words, others that a region should be less like; None takes the model's background words.

        Returns:
            Best first. With `against`, scores are differences of cosines, above 0 where the query wins.

        Raises:
            LabelError: unusable words, or an example without a region.
        """
        if isinstance(query, RegionEmbeddings):
            mean = F.normalize(query.vectors[self.operator].sum(dim=0), dim=0)
            if not bool(mean.any()):
                raise LabelError("the example holds no region; embed at least one that is not empty")
            return self.index.nearest(mean.cpu(), top, each=each)
        policy = self.classifier.policy() if against is None else Background.parse(list(against) or None)
        text = self.classifier.embed_text(LabelSet.parse([query]), replace(policy, unknown=False))
        own, other = (text.vectors[mask].cpu() for mask in (text.classes != NOTHING, text.classes == NOTHING))
        if len(own) == 1:
            return self.index.nearest(own[0], top, each=each, against=other)
        hits = [hit for row in own for hit in self.index.nearest(row, top, each=each, against=other)]
        return _best(hits, top, each)


def _best(hits: list[Hit], top: int, each: int) -> list[Hit]:
    """The best of several lists, a region once and at most `each` of a photo."""
    count: dict[str, int] = {}
    seen: set[tuple[Any, ...]] = set()
    best: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: -hit.score):
        key = (hit.path, hit.region.packed.tobytes())
        if len(best) < top and key not in seen and count.get(hit.path, 0) < each:
            seen.add(key)
            count[hit.path] = count.get(hit.path, 0) + 1
            best.append(hit)
    return best
