"""`LabelSession`: label photos by words, correct a few places, and label them again by what the corrections teach.

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
    """Photos labelled by words and improved by a few corrections.

    Photos are encoded once, and so is each of their regions. Words label pixels, and pixels of one region agree. A
    correction is an example of its class: regions that look like it, in any photo, take its name at once. Corrected
    pixels keep their label.

    Examples:
        >>> session = LabelSession("mini", ["penguin", "pizza"])
        >>> name = session.add("wood.png")
        >>> session.correct(name, "mushroom", box=(99, 74, 156, 159))
        >>> session.result(name).labels
        >>> session.order()  # the photos to look at next come first
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
            model: as for `FewShot`. labels: the initial classes; see `LabelSet.parse`. Corrections add to them.
            proposals: finds regions, and turns boxes into masks: a SAM, another proposer, or its name. None takes
                connected pixels of one label as regions, and leaves boxes as they are.
            like: cosine in -1..1 from which a region takes an example's name.
            most: limit in megabytes for photos and their features.
            options: further options of `FewShot`, such as recipe, background and refine.

        Raises:
            ModelError, RecipeError, OptionError: As for `FewShot`.
            LabelError: If labels are unusable or empty.
        """
        if not -1 <= like <= 1:
            raise OptionError(f"like is {like}; it must be a cosine, from -1 to 1")
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
        """The names of the photos, in the order they were added."""
        return list(self._photos)

    @property
    def corrections(self) -> list[Correction]:
        """The corrections, in order."""
        return [one for step in self._steps for one in step]

    @property
    def taught(self) -> list[str]:
        """Classes with examples, that is, with corrections."""
        said = {one.name for one in self.corrections}
        return [name for name in self.labels.names if name in said]

    def add(self, image: Any, name: str | None = None) -> str:
        """Encode a photo.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W). name: its name in the session; None
                takes its file name, or a number.

        Returns:
            The name.

        Raises:
            ImageError: If the image is unreadable.
            OptionError: If the name is taken, or the memory limit is reached.
        """
        if name is None:
            named = isinstance(image, (str, os.PathLike))
            name = Path(image).name if named else f"photo {len(self._photos) + 1}"
        if name in self._photos:
            raise OptionError(f"a photo '{short(name)}' is already in the session; give this one another name=")
        encoded = self.learner.encode(image)
        size = encoded.rgb.shape[:2]
        regions = self._looks.regions(encoded.rgb, self._by_words(encoded).labels)
        vectors = self._looks.vectors(encoded.rgb, regions)
        photo = Photo(encoded, np.full(size, UNKNOWN, np.int16), regions, vectors)
        taken = sum(one.nbytes for one in (*self._photos.values(), photo))
        if taken > self.most * 1_000_000:
            raise OptionError(
                f"{len(self._photos) + 1} photos and their features take more than {self.most} MB: "
                "start another session, or raise most="
            )
        self._photos[name] = photo
        photo.uncover()
        photo.read(self.learner, self.labels)
        self._judge()
        return name

    def result(self, photo: str) -> SegmentationResult:
        """Label a photo by words and all corrections so far. Its own corrections are kept, at confidence 1.

        Raises:
            OptionError: If there is no such photo.
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
        """Return what a click selects: int32 (H, W), a number from 0 for each region.

        Outside of regions, connected pixels of one label are a unit. A region with several labels, because of
        corrections, is a unit for each of them.

        Args:
            shown: the output of `result`, if already computed.
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
        """Correct the label of some pixels. All photos are labelled again.

        Args:
            name: of the class. A new one is added to the labels; "nothing" means none of them.
            mask: bool (H, W), the pixels. box: x0, y0, x1, y1 in pixels, right and bottom exclusive: takes what
                `proposals` finds in it. point: x, y: takes what a click there selects; see `units`.

        Raises:
            OptionError: If not exactly one of mask, box and point is given, or there is no such photo.
            ProposalError: If it is outside the photo, or empty.
            LabelError: If the name is unusable.
        """
        one = self._photo(photo)
        if sum(given is not None for given in (mask, box, point)) != 1:
            raise OptionError("give one of mask=, box= and point=")
        if mask is not None:
            found = np.asarray(mask)
            if found.shape != one.said.shape or found.dtype != bool:
                raise ProposalError(
                    f"mask is {found.dtype} {found.shape}: it must be bool {one.said.shape}, as the photo"
                )
        elif box is not None:
            found = prompted(one.encoded.rgb, boxes=[list(box)], proposer=self.proposals or "grid").mask(0)
        else:
            found = self._around(photo, *(point or (0, 0)))
        if not found.any():
            raise ProposalError("the correction has no pixels; mark some")
        made = self._correction(photo, self._known(name), found)
        self._say([made])
        return made

    def confirm(self, photo: str) -> list[Correction]:
        """Confirm a photo as `result` shows it. Each region, and the rest of each label, becomes an example."""
        one, shown = self._photo(photo), self.result(photo)
        rest, ids = one.said == UNKNOWN, one.regions.segment_map()
        names = [*self.labels.names, UNLABELLED]
        keys = np.where(rest, ids.astype(np.int64) * len(names) + shown.labels % len(names), -1)
        step = [self._correction(photo, names[key % len(names)], keys == key) for key in np.unique(keys[rest]).tolist()]
        if step:
            self._say(step)
        return step

    def undo(self) -> list[Correction]:
        """Undo the last correction or confirmation. It is returned; the list is empty if there was none."""
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
        """Return the photos, those first where words and examples disagree most, then the least sure.

        Each comes with the share of places, 0..1, where they disagree. Corrected places do not count.
        """
        return [
            (name, photo.doubt[0])
            for name, photo in sorted(self._photos.items(), key=lambda item: item[1].doubt, reverse=True)
        ]

    def to_coco(self) -> dict[str, Any]:
        """Return all photos as COCO, ready for JSON: corrections in order, then results, each class once per photo.

        Corrections have `"corrected": true`, and `restore` reads them again.
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
            OutputError: If the file cannot be written.
        """
        return atomic_write(path, json_text(self.to_coco()).encode())

    def restore(self, content: Mapping[str, Any]) -> list[str]:
        """Apply the corrections of a saved session to the added photos, matched by name.

        Returns:
            The names of its photos that were not added here.

        Raises:
            LabelError: If it is not a session, or its photos have another size.
        """
        with SAVED.sense("of these photos"):
            sizes = {name: photo.said.shape for name, photo in self._photos.items()}
            for _ in corrected(
                content, sizes
            ):  # all must be readable before any is applied; thousands of masks are not kept
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
        """Load a saved session, with its photos from a folder.

        Args:
            path: a file that `save` wrote. folder: contains the photos. model, options: as for the constructor.

        Raises:
            LabelError: If it is not a session.
            ImageError: If a photo is missing or unreadable. Other errors as for the constructor.
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
        """Return the label of this name, adding it if it is new."""
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
        """Return the index of a class in results, -1 for "nothing"."""
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
        """Update photos with changed corrections, and label all photos again."""
        for name in changed:
            self._photos[name].uncover()
        if self._read_by != self.labels:
            for photo in self._photos.values():
                photo.read(self.learner, self.labels)
            self._read_by = self.labels
        self._judge()

    @property
    def _owners(self) -> list[str]:
        """The names of examples, without repeats."""
        return list(dict.fromkeys(one.name for one in self.corrections))

    def _by_words(self, encoded: Encoded, image: Any = None, taught: Iterable[str] = ()) -> SegmentationResult:
        """Label a photo by words alone."""
        segmenter = self.learner.segmenter
        evidence = self.learner.judge(encoded, self.labels)
        policy = segmenter.background
        return segmenter.decide(evidence, encoded.rgb, self.labels, policy, image=image, taught=tuple(taught))

    def _judge(self) -> None:
        """Name regions by all examples, and compute how far words and examples disagree in each photo."""
        said, owners, photos = self.corrections, self._owners, list(self._photos.values())
        regions = torch.cat([photo.vectors for photo in photos]) if photos else torch.empty(0)
        examples = torch.stack([one.vector for one in said]) if said else torch.empty(0)
        numbers, owned = [self._number(name) for name in owners], [owners.index(one.name) for one in said]
        for photo in photos:
            usable = bool(said) and len(photo.vectors) > 0
            found = named(photo.vectors, regions.mean(dim=0), examples, owned, self.like) if usable else None
            photo.weigh(found, numbers)
