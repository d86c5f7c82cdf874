"""`RegionSearch`: index the regions of a folder of photos, and find those that match words or an example.

It is training-free and answers the question of "FOR: Finetuning for Object Level Open Vocabulary Image Retrieval" (WACV
2025): which thing in a photo matches, rather than which photo as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from densevl.errors import LabelError
from densevl.fitted import differing
from densevl.images.listing import Sources
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.storing import open_store
from densevl.pipelines.folder.watch import Watch
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.filling import Built, Taking, fill, settled
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.index import INDEX, Hit, Photo, RegionIndex, RegionIndexError
from densevl.vocabulary import NOTHING, Background, LabelSet


class RegionSearch:
    """Find things in a folder of photos by words or by example.

    Examples:
        >>> search = RegionSearch(RegionClassifier("mini"), "photos.npz")
        >>> search.build("photos")
        >>> search.find("umbrella")
    """

    def __init__(
        self, classifier: RegionClassifier, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False
    ) -> None:
        """Open or create an index.

        Args:
            classifier: proposes and embeds regions, by one operator. path: the .npz file; None keeps it in memory.
            overwrite: start over, discarding the file's content.

        Raises:
            OptionError: If the classifier has several operators, or keeps no vectors.
            RegionIndexError: If the file is damaged or was made with another model.
        """
        self.operator, facts = settled(classifier, "an index")
        self.classifier, self.path = classifier, None if path is None else Path(path)
        self._model = json.dumps(facts, sort_keys=True, default=str)
        self.index = RegionIndex.empty(self._model, classifier.backbone.embed_dim)
        if self.path is not None and self.path.exists() and not overwrite:
            self.index = RegionIndex.load(self.path)
            if self.index.model != self._model:
                with INDEX.sense(self.path):
                    settings = differing(json.loads(self.index.model), facts)
                raise RegionIndexError(
                    f"index {str(self.path)!r} was made with other settings ({settings}); use those, name another "
                    "--index, or start over with --overwrite"
                )

    def build(
        self,
        photos: Sources,
        *,
        forget: bool = False,
        skip: str | os.PathLike[str] | None = None,
        strict: bool = False,
        watch: Watch | None = None,
    ) -> Built:
        """Add photos that are new or changed. Unreadable photos are listed in the report, and the others are indexed.

        Args:
            photos: folders (searched recursively), files, or patterns; see `images.find_images`.
            forget: also drop photos of the index that are not among them. skip: a folder that is left out, such as that
                of results. strict: stop at the first bad photo.
            watch: receives progress.

        Returns:
            The report. Bad photos are also listed in a file next to the index, whose name ends in .errors.jsonl.

        Raises:
            ImageError: If there are no photos, or one is bad and `strict`.
            OutputError: If the index cannot be written; what is in memory is kept.
            MissingExtraError, ModelError, ...: If the proposer or the model cannot be used.
        """
        listed = None
        if self.path is not None:
            listed = ErrorList(open_store(self.path.parent), f"{self.path.stem}.errors.jsonl")

        def look(path: str) -> tuple[tuple[int, int], RegionEmbeddings]:
            found = self.classifier.embed(path)
            return found.regions.size, found

        def take(new: Sequence[tuple[Photo, RegionEmbeddings]]) -> None:
            rows = [(photo, found.regions, found.vectors[self.operator].cpu()) for photo, found in new]
            self._keep(self.index.with_photos(rows))

        def drop(paths: Sequence[str]) -> None:
            self._keep(self.index.without(paths))

        how = Taking(forget=forget, skip=skip, strict=strict, watch=watch or Watch())
        return fill(photos, self.index.photos, look, take, drop, listed, how)

    def _keep(self, index: RegionIndex) -> None:
        """Replace the index, also on disk."""
        self.index = index
        if self.path is not None:
            self.index.save(self.path)

    def warnings(self, query: Any, against: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return what the user should know about the words of a query, one sentence each; none for an example."""
        if isinstance(query, RegionEmbeddings):
            return ()
        words = LabelSet.parse([query]).words
        usual = self.classifier.policy().words if words and against is None else against or ()
        return self.classifier.backbone.doubts([*words, *usual])

    def find(self, query: Any, top: int = 10, *, each: int = 1, against: Sequence[str] | None = None) -> list[Hit]:
        """Find the regions most similar to words or an example.

        Args:
            query: words, such as "umbrella | parasol" (two words for one thing); an image or a vector, as in a list for
                `LabelSet.parse`; or an example from `classifier.embed`.
            top: maximum number of regions. each: maximum number per photo.
            against: words that a region should be less similar to; None takes the model's background words, if the
                query is words.

        Returns:
            Best first. With `against`, scores are differences of cosines, above 0 where the query wins.

        Raises:
            LabelError: If words are unusable, or the example has no region.
        """
        if isinstance(query, RegionEmbeddings):
            mean = F.normalize(query.vectors[self.operator].sum(dim=0), dim=0)
            if not bool(mean.any()):
                raise LabelError("the example has no region; embed at least one that is not empty")
            return self.index.nearest(mean.cpu(), top, each=each)
        asked = LabelSet.parse([query])
        usual = (
            self.classifier.policy() if asked.words else Background()
        )  # images are closer to images than to any word
        policy = usual if against is None else Background.parse(list(against) or None)
        text = self.classifier.embed_text(asked, replace(policy, unknown=False))
        own, other = (text.vectors[mask].cpu() for mask in (text.classes != NOTHING, text.classes == NOTHING))
        if len(own) == 1:
            return self.index.nearest(own[0], top, each=each, against=other)
        hits = [hit for row in own for hit in self.index.nearest(row, top, each=each, against=other)]
        return _best(hits, top, each)


def _best(hits: list[Hit], top: int, each: int) -> list[Hit]:
    """Merge several lists: the best hits, each region once and at most `each` per photo."""
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
