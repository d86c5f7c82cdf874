"""`LabelSession`: photos that are labelled by words, corrected here and there, and labelled again by what that teaches.

Shape letters: H/W pixels, Y/X tokens of all windows, R regions, D features.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from densevl.backbones import Backbone
from densevl.errors import OptionError, ProposalError, suggest
from densevl.files import atomic_write, json_text
from densevl.inference.decoding import LabelMap
from densevl.lazy import ndimage
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.corrections import SAVED, Correction, Mask, coco_rows, corrected
from densevl.pipelines.fewshot.features import Encoded
from densevl.pipelines.fewshot.likeness import LIKE, Looks, Named, named
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.segmenter import Labels
from densevl.pipelines.segmentation.segments import Segments, whole_things
from densevl.proposals.base import Proposals
from densevl.regions.exports.contents import coco_categories
from densevl.regions.operators.pull import pull, token_plan
from densevl.results import UNLABELLED, SegmentationResult
from densevl.saved import read_json
from densevl.vocabulary import LabelSet
from densevl.vocabulary.parsing import short

UNKNOWN = -1  # in a map of what was said
MOST_MEGABYTES = 4096


@dataclass(eq=False)
class _Photo:
    """A photo of a session.

    Attributes:
        said: int16 (H, W), what was said of each pixel. regions: R masks without overlap. vectors: (R, D), what they
            look like. named: by examples. open: (Y, X) float32, the share of each token of which nothing was said, and
            cover: (R, Y, X) that of each region. words: (Y, X), the class of each token by words alone, and sure: its
            probability. doubt: see `order`.
    """

    encoded: Encoded
    said: npt.NDArray[np.int16]
    regions: Proposals
    vectors: torch.Tensor
    named: Named | None = None
    open: torch.Tensor = field(default_factory=torch.Tensor)
    cover: torch.Tensor = field(default_factory=torch.Tensor)
    words: torch.Tensor = field(default_factory=torch.Tensor)
    sure: torch.Tensor = field(default_factory=torch.Tensor)
    doubt: tuple[float, float] = (0.0, 0.0)


class LabelSession:
    """Photos labelled by words; a few corrections teach the rest.

    Photos are encoded once, and so is each of their regions. Words label pixels, of which those of one region agree;
    a correction is an example of its class, and regions that look like it, in whichever photo, take its name at once.
    What was said of a pixel stays.

    >>> session = LabelSession("mini", ["penguin", "pizza"])
    >>> name = session.add("wood.png")
    >>> session.correct(name, "mushroom", box=(99, 74, 156, 159))
    >>> session.result(name).labels
    >>> session.order()  # the photos to look at next first
    >>> session.save("session.json")  # COCO
    """

    def __init__(
        self,
        model: str | Backbone = "auto",
        labels: Labels = (),
        *,
        proposals: Any = "mini-sam",
        like: float = LIKE,
        most: int = MOST_MEGABYTES,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: as `FewShot` takes it. labels: the classes to begin with; see `LabelSet.parse`. Corrections add to
                them.
            proposals: finds regions, and makes masks of boxes: a SAM, another proposer, or its name. None takes the
                connected pixels of one label for regions, and leaves boxes as they are.
            like: how like an example a region must be to take its name, a cosine in -1..1.
            most: megabytes that photos and their features may take.
            options: what else `FewShot` takes, such as recipe, background and refine.

        Raises:
            ModelError, RecipeError, OptionError: as `FewShot`. LabelError: unusable labels, or none.
        """
        if not -1 <= like <= 1:
            raise OptionError(f"like is {like}; it is a cosine, from -1 to 1")
        self.labels = LabelSet.parse(labels)
        self.proposals = whole_things(proposals) if isinstance(proposals, str) else proposals
        self.like, self.most = like, most
        self.learner = FewShot(model, level="pixel", **options)
        self._looks = Looks(self.learner.backbone, self.proposals)
        self._photos: dict[str, _Photo] = {}
        self._steps: list[list[Correction]] = []
        self._begun = self._read_by = self.labels

    @property
    def photos(self) -> list[str]:
        """The names of the photos, as they were added."""
        return list(self._photos)

    @property
    def corrections(self) -> list[Correction]:
        """What was said, in order."""
        return [one for step in self._steps for one in step]

    @property
    def taught(self) -> list[str]:
        """Classes that have examples: those that were corrected."""
        said = {one.name for one in self.corrections}
        return [name for name in self.labels.names if name in said]

    def add(self, image: Any, name: str | None = None) -> str:
        """Encode a photo.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W). name: what it is called here; None
                takes its file's, or a number.

        Returns:
            The name.

        Raises:
            ImageError: unreadable. OptionError: the name is taken, or there is no more room.
        """
        if name is None:
            named = isinstance(image, (str, os.PathLike))
            name = Path(image).name if named else f"photo {len(self._photos) + 1}"
        if name in self._photos:
            raise OptionError(f"two photos are called '{short(name)}'; give one of them another name=")
        encoded = self.learner.encode(image)
        size = encoded.rgb.shape[:2]
        regions = self._looks.regions(encoded.rgb, self._by_words(encoded).labels)
        vectors = self._looks.vectors(encoded.rgb, regions)
        photo = _Photo(encoded, np.full(size, UNKNOWN, np.int16), regions, vectors)
        taken = sum(map(_bytes, (*self._photos.values(), photo)))
        if taken > self.most * 1_000_000:
            raise OptionError(
                f"{len(self._photos) + 1} photos and their features take more than {self.most} MB: "
                "begin another session, or give most="
            )
        self._photos[name] = photo
        self._open(photo)
        self._read(photo)
        self._judge()
        return name

    def result(self, photo: str) -> SegmentationResult:
        """A photo labelled by words and by all corrections so far; those of itself stand, at confidence 1.

        Raises:
            OptionError: no such photo.
        """
        one = self._photo(photo)
        found = self._by_words(one.encoded, photo, self.taught)
        decided = LabelMap(torch.from_numpy(found.labels)[None], torch.from_numpy(found.confidence)[None])
        ids = one.regions.segment_map()
        if len(one.regions):
            decided = refinement.vote(decided, Segments(torch.from_numpy(ids.astype(np.int64))))
        labels, confidence = decided.labels[0].numpy(), decided.confidence[0].numpy()
        if one.named is not None:
            owners = np.append(-1, one.named.owners)[ids]
            numbers = np.array([self._number(name) for name in self._owners], np.int16)
            labels = np.where(owners >= 0, numbers[owners], labels)
            confidence = np.where(owners >= 0, np.append(np.float32(0), one.named.chances)[ids], confidence)
        said = one.said != UNKNOWN
        own = [each for each in self.corrections if each.photo == photo]
        return replace(
            found,
            labels=np.where(said, np.where(one.said == len(self.labels), -1, one.said), labels).astype(np.int16),
            confidence=np.where(said, 1, confidence).astype(np.float32),
            meta={
                **found.meta,
                "image": photo,
                "corrections": len(own),
                "examples": dict(Counter(each.name for each in self.corrections)),
            },
        )

    def units(self, photo: str, shown: SegmentationResult | None = None) -> npt.NDArray[np.int32]:
        """What a click takes: int32 (H, W), a number from 0 for each region, and outside of regions for the connected
        pixels of one label; where a region has several labels, because somebody said so, for each of them.

        Args:
            shown: what `result` gave, if it is at hand.
        """
        regions, labels = self._photo(photo).regions.segment_map(), (shown or self.result(photo)).labels
        pieces = np.zeros(labels.shape, np.int64)
        for label in np.unique(labels[regions == 0]):
            own, _ = ndimage.label((labels == label) & (regions == 0))
            pieces = np.where(own > 0, own + pieces.max(), pieces)
        keys = np.where(regions > 0, -(regions.astype(np.int64) * (len(self.labels) + 2) + labels), pieces)
        return np.unique(keys, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)

    def correct(
        self,
        photo: str,
        name: str,
        *,
        mask: Any = None,
        box: Iterable[float] | None = None,
        point: tuple[int, int] | None = None,
    ) -> Correction:
        """Say what some pixels show; all photos are judged anew.

        Args:
            name: of the class; a new one is added to the labels; "nothing" for none of them.
            mask: bool (H, W), the pixels. box: x0, y0, x1, y1 in pixels, right and bottom exclusive: what `proposals`
                finds in it. point: x, y: what a click takes there; see `units`.

        Raises:
            OptionError: not one of mask, box and point, or no such photo. ProposalError: outside the photo, or empty.
            LabelError: an unusable name.
        """
        one = self._photo(photo)
        if sum(given is not None for given in (mask, box, point)) != 1:
            raise OptionError("give one of mask=, box= and point=")
        if mask is not None:
            found = np.asarray(mask)
            if found.shape != one.said.shape or found.dtype != bool:
                raise ProposalError(f"mask is {found.dtype} {found.shape}: bool {one.said.shape}, as the photo")
        elif box is not None:
            found = prompted(one.encoded.rgb, boxes=[list(box)], proposer=self.proposals or "grid").mask(0)
        else:
            found = self._around(photo, *(point or (0, 0)))
        if not found.any():
            raise ProposalError("a correction of no pixels; mark some")
        made = self._correction(photo, self._known(name), found)
        self._say([made])
        return made

    def confirm(self, photo: str) -> list[Correction]:
        """Say that a photo is right as `result` shows it: each of its regions becomes an example, and the rest of each
        label another."""
        one, shown = self._photo(photo), self.result(photo)
        rest, ids = one.said == UNKNOWN, one.regions.segment_map()
        names = [*self.labels.names, UNLABELLED]
        keys = np.where(rest, ids.astype(np.int64) * len(names) + shown.labels % len(names), -1)
        step = [self._correction(photo, names[key % len(names)], keys == key) for key in np.unique(keys[rest]).tolist()]
        if step:
            self._say(step)
        return step

    def undo(self) -> list[Correction]:
        """Take back the last correction, or confirmation; what it said is returned, nothing if there is none."""
        if not self._steps:
            return []
        step = self._steps.pop()
        left = list(dict.fromkeys(one.name for one in self.corrections))
        self.labels = self._begun
        for name in left:
            self._known(name)
        for photo in self._photos.values():
            photo.said[:] = UNKNOWN
        for one in self.corrections:
            self._mark(one)
        self._learn(self._photos)
        return step

    def order(self) -> list[tuple[str, float]]:
        """The photos, those first where words and corrections disagree most, then the least sure; and the share of
        places of each, 0..1, at which they do. What a person said is not counted."""
        return [
            (name, photo.doubt[0])
            for name, photo in sorted(self._photos.items(), key=lambda item: item[1].doubt, reverse=True)
        ]

    def to_coco(self) -> dict[str, Any]:
        """All photos as COCO, ready for JSON: what was said, in order, then what was found, each class once a photo.

        What was said has `"corrected": true`, and is read again by `restore`.
        """
        names = [*self.labels.names, UNLABELLED]
        numbers = {name: number for number, name in enumerate(self._photos)}
        rows: list[dict[str, Any]] = []
        for one in self.corrections:
            rows += coco_rows(one.mask.astype(np.int16) - 1, numbers[one.photo], [one.name], names, corrected=True)
        for name, photo in self._photos.items():
            shown = self.result(name)
            found = np.where(photo.said == UNKNOWN, shown.labels, -1)
            rows += coco_rows(found, numbers[name], names, names, corrected=False)
        sizes = [photo.said.shape for photo in self._photos.values()]
        return {
            "info": {"description": "densevl labelling session", "labels": self._begun.facts()},
            "images": [
                {"id": number, "file_name": name, "height": height, "width": width}
                for (name, number), (height, width) in zip(numbers.items(), sizes, strict=True)
            ],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
            "categories": coco_categories(names),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_coco` as JSON.

        Raises:
            OutputError: the disk refuses.
        """
        return atomic_write(path, json_text(self.to_coco()).encode())

    def restore(self, content: Mapping[str, Any]) -> list[str]:
        """Say again what a saved session says of the photos that were added, by their names.

        Returns:
            The names of photos that it speaks of and that are not here.

        Raises:
            LabelError: it is no session, or of photos of another size.
        """
        with SAVED.sense("of these photos"):
            sizes = {name: photo.said.shape for name, photo in self._photos.items()}
            found = list(corrected(content, sizes))
            missing = sorted({str(row["file_name"]) for row in content["images"]} - set(sizes))
        step = [self._correction(name, self._known(label), mask) for name, label, mask in found]
        if step:
            self._steps += [[one] for one in step]
            for one in step:
                self._mark(one)
            self._learn({one.photo for one in step})
        return missing

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        model: str | Backbone = "auto",
        **options: Any,
    ) -> Self:
        """A saved session, with its photos from a folder.

        Args:
            path: of what `save` wrote. folder: where the photos are. model, options: as the constructor takes them.

        Raises:
            LabelError: it is no session. ImageError: a photo is missing or unreadable. Else as the constructor.
        """
        content = read_json(path, SAVED, ("info", "images", "annotations", "categories"))
        with SAVED.sense(path):
            labels = LabelSet(**content["info"]["labels"])
            files = [str(row["file_name"]) for row in content["images"]]
        session = cls(model, labels, **options)
        for file in files:
            session.add(Path(folder) / Path(file).name, file)
        session.restore(content)
        return session

    def _photo(self, name: str) -> _Photo:
        if name not in self._photos:
            raise OptionError(f"no photo is called '{short(name)}'{suggest(name, self._photos)}; add it first")
        return self._photos[name]

    def _known(self, name: str) -> str:
        """A name that is one of the labels, or becomes one."""
        if name.strip() == UNLABELLED:
            return UNLABELLED
        (name,) = LabelSet.parse([name]).names
        if name not in self.labels.names:
            owners = {
                word: own for own, words in zip(self.labels.names, self.labels.synonyms, strict=True) for word in words
            }
            if name in owners:
                return owners[name]
            self._renumber(len(self.labels))
            self.labels = replace(
                self.labels, names=(*self.labels.names, name), synonyms=(*self.labels.synonyms, (name,))
            )
        return name

    def _number(self, name: str) -> int:
        """The number of a class in a result, -1 for "nothing"."""
        return -1 if name == UNLABELLED else self.labels.names.index(name)

    def _renumber(self, count: int) -> None:
        """Make room for another class before "nothing"."""
        for photo in self._photos.values():
            photo.said[photo.said == count] += 1

    def _around(self, photo: str, x: int, y: int) -> Mask:
        units = self.units(photo)
        if not (0 <= y < units.shape[0] and 0 <= x < units.shape[1]):
            raise ProposalError(f"point ({x}, {y}) is outside the photo of {units.shape[1]} x {units.shape[0]} pixels")
        found: Mask = units == units[y, x]
        return found

    def _correction(self, photo: str, name: str, mask: Mask) -> Correction:
        return Correction.of(photo, name, mask, self._looks.vectors(self._photos[photo].encoded.rgb, mask[None])[0])

    def _say(self, step: list[Correction]) -> None:
        self._steps.append(step)
        for one in step:
            self._mark(one)
        self._learn({one.photo for one in step})

    def _mark(self, one: Correction) -> None:
        names = [*self.labels.names, UNLABELLED]
        self._photos[one.photo].said[one.mask] = names.index(one.name)

    def _learn(self, changed: Iterable[str]) -> None:
        """Take in what was said of some photos, and judge all."""
        for name in changed:
            self._open(self._photos[name])
        if self._read_by != self.labels:
            for photo in self._photos.values():
                self._read(photo)
            self._read_by = self.labels
        self._judge()

    @property
    def _owners(self) -> list[str]:
        """The names of examples, each once."""
        return list(dict.fromkeys(one.name for one in self.corrections))

    def _by_words(self, encoded: Encoded, image: Any = None, taught: Iterable[str] = ()) -> SegmentationResult:
        """What words alone say of a photo."""
        segmenter = self.learner.segmenter
        evidence = self.learner.judge(encoded, self.labels)
        policy = segmenter.background
        return segmenter.decide(evidence, encoded.rgb, self.labels, policy, image=image, taught=tuple(taught))

    def _read(self, photo: _Photo) -> None:
        """The class of each token by words alone."""
        found = self.learner.judge(photo.encoded, self.labels)
        chances = (self.learner.segmenter.protocol.logit_scale * found.scores[0]).softmax(dim=-1)
        sure, best = chances.max(dim=-1)
        photo.sure, photo.words = sure.cpu(), found.text.classes.cpu()[best.cpu()]

    def _open(self, photo: _Photo) -> None:
        """Of how much of each token, and of each region in it, nothing was said."""
        rows_HY, cols_WX = token_plan(photo.encoded.windows, photo.said.shape)
        free = photo.said == UNKNOWN
        whole = Proposals.from_masks(free[None])
        photo.open = pull(whole, rows_HY, cols_WX)[0]
        regions = photo.regions if free.all() else Proposals.from_masks(photo.regions.masks() & free, free.shape)
        photo.cover = pull(regions, rows_HY, cols_WX)

    def _judge(self) -> None:
        """Name regions by all examples; how far words and examples disagree in photos, and how unsure they are."""
        said, owners, photos = self.corrections, self._owners, list(self._photos.values())
        regions = torch.cat([photo.vectors for photo in photos]) if photos else torch.empty(0)
        examples = torch.stack([one.vector for one in said]) if said else torch.empty(0)
        numbers = torch.tensor([self._number(name) for name in owners])
        for photo in photos:
            photo.named, apart, doubtful = None, 0.0, (1 - photo.sure) * photo.open
            if said and len(photo.vectors):
                owned = [owners.index(one.name) for one in said]
                photo.named = named(photo.vectors, regions.mean(dim=0), examples, owned, self.like)
                own = torch.from_numpy(photo.named.owners)
                taken = photo.cover * (own >= 0)[:, None, None]
                other = photo.words != numbers[own][:, None, None]
                apart = float((taken * other).sum()) / photo.words.numel()
                unsure = 1 - torch.from_numpy(photo.named.chances)[:, None, None]
                doubtful = doubtful * (1 - taken.sum(dim=0)) + (taken * unsure).sum(dim=0)
            photo.doubt = apart, float(doubtful.mean())


def _bytes(photo: _Photo) -> int:
    own = photo.encoded
    tokens = own.features.numel() * own.features.element_size()
    return own.rgb.nbytes + tokens + photo.said.nbytes + photo.regions.packed.nbytes
