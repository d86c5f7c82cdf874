"""`LabelSession`: photos that are labelled by words, corrected here and there, and labelled again by what that teaches.

Shape letters: H/W pixels, Y/X tokens of all windows, R regions, D features.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from densevl.backbones import Backbone
from densevl.errors import OptionError, ProposalError, suggest
from densevl.files import atomic_write, json_text
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.corrections import SAVED, Correction, Mask, coco_session, corrected
from densevl.pipelines.fewshot.features import Encoded
from densevl.pipelines.fewshot.likeness import LIKE, Looks, named
from densevl.pipelines.fewshot.photos import UNKNOWN, Photo
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.segmentation.segmenter import Labels
from densevl.pipelines.segmentation.segments import whole_things
from densevl.results import UNLABELLED, SegmentationResult
from densevl.saved import read_json
from densevl.vocabulary import LabelSet
from densevl.vocabulary.parsing import short

MOST_MEGABYTES = 4096


class LabelSession:
    """Photos labelled by words; a few corrections teach the rest.

    Photos are encoded once, and so is each of their regions. Words label pixels, of which those of one region agree;
    a correction is an example of its class, and regions that look like it, in whichever photo, take its name at once.
    What was said of a pixel stays.

    Examples:
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
            ModelError, RecipeError, OptionError: as `FewShot`.
            LabelError: unusable labels, or none.
        """
        if not -1 <= like <= 1:
            raise OptionError(f"like is {like}; it is a cosine, from -1 to 1")
        self.labels = LabelSet.parse(labels)
        self.proposals = whole_things(proposals) if isinstance(proposals, str) else proposals
        self.like, self.most = like, most
        self.learner = FewShot(model, level="pixel", **options)
        self._looks = Looks(self.learner.backbone, self.proposals)
        self._photos: dict[str, Photo] = {}
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
            ImageError: unreadable.
            OptionError: the name is taken, or there is no more room.
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
        photo = Photo(encoded, np.full(size, UNKNOWN, np.int16), regions, vectors)
        taken = sum(one.nbytes for one in (*self._photos.values(), photo))
        if taken > self.most * 1_000_000:
            raise OptionError(
                f"{len(self._photos) + 1} photos and their features take more than {self.most} MB: "
                "begin another session, or give most="
            )
        self._photos[name] = photo
        photo.uncover()
        photo.read(self.learner, self.labels)
        self._judge()
        return name

    def result(self, photo: str) -> SegmentationResult:
        """A photo labelled by words and by all corrections so far; those of itself stand, at confidence 1.

        Raises:
            OptionError: no such photo.
        """
        one = self._photo(photo)
        found = self._by_words(one.encoded, photo, self.taught)
        labels, confidence = one.settled(found, [self._number(name) for name in self._owners])
        own = [each for each in self.corrections if each.photo == photo]
        return replace(
            found,
            labels=labels,
            confidence=confidence,
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
        return self._photo(photo).units((shown or self.result(photo)).labels, len(self.labels))

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
            OptionError: not one of mask, box and point, or no such photo.
            ProposalError: outside the photo, or empty.
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
        said = [(one.photo, one.name, one.mask) for one in self.corrections]
        found = {
            name: np.where(photo.said == UNKNOWN, self.result(name).labels, -1) for name, photo in self._photos.items()
        }
        return {
            "info": {"description": "densevl labelling session", "labels": self._begun.facts()},
            **coco_session(said, found, names),
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
            for _ in corrected(content, sizes):  # all can be read before any is said; masks of thousands are not kept
                pass
            missing = sorted({str(row["file_name"]) for row in content["images"]} - set(sizes))
        step = [self._correction(name, self._known(label), mask) for name, label, mask in corrected(content, sizes)]
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
            LabelError: it is no session.
            ImageError: a photo is missing or unreadable. Else as the constructor.
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

    def _photo(self, name: str) -> Photo:
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
            self._photos[name].uncover()
        if self._read_by != self.labels:
            for photo in self._photos.values():
                photo.read(self.learner, self.labels)
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

    def _judge(self) -> None:
        """Name regions by all examples; how far words and examples disagree in photos, and how unsure they are."""
        said, owners, photos = self.corrections, self._owners, list(self._photos.values())
        regions = torch.cat([photo.vectors for photo in photos]) if photos else torch.empty(0)
        examples = torch.stack([one.vector for one in said]) if said else torch.empty(0)
        numbers, owned = [self._number(name) for name in owners], [owners.index(one.name) for one in said]
        for photo in photos:
            told = bool(said) and len(photo.vectors) > 0
            found = named(photo.vectors, regions.mean(dim=0), examples, owned, self.like) if told else None
            photo.weigh(found, numbers)
