"""`LabelSession`: photos that are labelled by words, corrected here and there, and labelled again by what that teaches.

Shape letters: H/W pixels, Y/X tokens of all windows, T texts.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from densevl.backbones import Backbone
from densevl.errors import LabelError, OptionError, ProposalError, suggest
from densevl.files import atomic_write, json_text
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.features import Encoded, Shown
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.segmentation.segmenter import Labels
from densevl.proposals.base import Proposals
from densevl.regions.exports.contents import coco_categories
from densevl.regions.operators.pull import token_plan
from densevl.results import UNLABELLED, SegmentationResult
from densevl.rle import class_runs, coco_segmentation
from densevl.saved import Kind, read_json
from densevl.vocabulary import LabelSet
from densevl.vocabulary.parsing import short

Mask = npt.NDArray[np.bool_]
SAVED = Kind("labelling session", LabelError, "save it anew")
UNKNOWN = -1  # in a map of what was said
MOST_MEGABYTES = 4096
LEAST = 2  # corrections from which a class is learned: of one example a head makes too much


@dataclass(frozen=True, eq=False)
class Correction:
    """What a person said of some pixels of a photo. Attributes: name: of the class, or "nothing"."""

    photo: str
    name: str
    size: tuple[int, int]
    _packed: bytes

    @classmethod
    def of(cls, photo: str, name: str, mask: Mask) -> Correction:
        """Of a mask, bool (H, W)."""
        return cls(photo, name, mask.shape, zlib.compress(np.packbits(mask).tobytes(), 1))

    @property
    def mask(self) -> Mask:
        """Bool (H, W)."""
        bits = np.frombuffer(zlib.decompress(self._packed), np.uint8)
        return np.unpackbits(bits, count=self.size[0] * self.size[1]).reshape(self.size).astype(bool)


@dataclass(eq=False)
class _Photo:
    """A photo of a session.

    Attributes:
        said: int16 (H, W), what was said of each pixel. shown: what that shows. open: (Y, X) float32, the share of each
            token of which nothing was said. words: (Y, X), the class of each token by words alone. doubt: see `order`.
    """

    encoded: Encoded
    said: npt.NDArray[np.int16]
    open: torch.Tensor
    shown: Shown | None = None
    words: torch.Tensor = field(default_factory=torch.Tensor)
    doubt: tuple[float, float] = (0.0, 0.0)


class LabelSession:
    """Photos labelled by words; a few corrections teach the rest.

    Photos are encoded once. Corrections are examples for a few-shot head on their features (`FewShot`, level "pixel"),
    so that all photos are labelled anew at once; a class is learned from its second correction on. What was said of a
    pixel stays.

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
        head: str = "gda",
        proposals: Any = None,
        most: int = MOST_MEGABYTES,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: as `FewShot` takes it. labels: the classes to begin with; see `LabelSet.parse`. Corrections add to
                them.
            head: of `FewShot`. options: what else `FewShot` takes, such as recipe and background.
            proposals: makes masks of boxes, a SAM or its name; None leaves boxes as they are.
            most: megabytes that photos and their features may take.

        Raises:
            ModelError, RecipeError, OptionError: as `FewShot`. LabelError: unusable labels, or none.
        """
        self.labels = LabelSet.parse(labels)
        self.proposals, self.most = proposals, most
        self.learner = FewShot(model, head, level="pixel", **options)
        self._photos: dict[str, _Photo] = {}
        self._steps: list[list[Correction]] = []
        self._begun = self.labels

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
        """Classes that are learned: those corrected twice or more. "nothing" never is: it is too many things."""
        counts = Counter(one.name for one in self.corrections)
        return [name for name in self.labels.names if counts[name] >= LEAST]

    @property
    def untaught(self) -> list[str]:
        """Classes that corrections name, none of which fills a token: they hold for their own pixels alone."""
        shown = [photo.shown for photo in self._photos.values() if photo.shown is not None]
        taught = {name for one in shown for name in one.owners}
        return sorted({name for one in shown for name in one.names} - taught - {UNLABELLED})

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
        photo = _Photo(encoded, np.full(encoded.rgb.shape[:2], UNKNOWN, np.int16), _open(encoded))
        taken = sum(map(_bytes, (*self._photos.values(), photo)))
        if taken > self.most * 1_000_000:
            raise OptionError(
                f"{len(self._photos) + 1} photos and their features take more than {self.most} MB: "
                "begin another session, or give most="
            )
        self._photos[name] = photo
        self._read([name])
        self._judge([name])
        return name

    def result(self, photo: str) -> SegmentationResult:
        """A photo labelled by words and by all corrections so far; those of itself stand, at confidence 1.

        Raises:
            OptionError: no such photo.
        """
        one, learner = self._photo(photo), self.learner
        policy, taught = learner.segmenter.background, learner._taught() if learner.heads else ()
        evidence = learner.judge(one.encoded, None if learner.heads else self.labels)
        found = learner.segmenter.decide(evidence, one.encoded.rgb, self.labels, policy, image=photo, taught=taught)
        said = one.said != UNKNOWN
        numbers = np.where(one.said == len(self.labels), -1, one.said)
        own = [one for one in self.corrections if one.photo == photo]
        return replace(
            found,
            labels=np.where(said, numbers, found.labels).astype(np.int16),
            confidence=np.where(said, 1, found.confidence).astype(np.float32),
            meta={**found.meta, "image": photo, "corrections": len(own), "examples": dict(learner.counts)},
        )

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
                finds in it. point: x, y: the connected pixels of one label there, as `result` shows them.

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
        correction = Correction.of(photo, self._known(name), found)
        self._say([correction])
        return correction

    def confirm(self, photo: str) -> list[Correction]:
        """Say that a photo is right as `result` shows it: every label of it becomes an example."""
        one, shown = self._photo(photo), self.result(photo)
        rest = one.said == UNKNOWN
        names = [*self.labels.names, UNLABELLED]
        parts = {names[n]: rest & (shown.labels == n) for n in np.unique(shown.labels[rest]).tolist()}
        step = [Correction.of(photo, name, mask) for name, mask in parts.items()]
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
            rows += _annotations(one.mask.astype(np.int16) - 1, numbers[one.photo], [one.name], names, corrected=True)
        for name, photo in self._photos.items():
            shown = self.result(name)
            found = np.where(photo.said == UNKNOWN, shown.labels, -1)
            rows += _annotations(found, numbers[name], names, names, corrected=False)
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
            names = {row["id"]: str(row["name"]) for row in content["categories"]}
            files = {row["id"]: str(row["file_name"]) for row in content["images"]}
            rows = [row for row in content["annotations"] if row.get("corrected")]
            found: list[tuple[str, str, Mask]] = []
            for row in rows:
                name = files[row["image_id"]]
                if name in self._photos:
                    size = self._photos[name].said.shape
                    mask = Proposals.from_rle([row["segmentation"]], size).mask(0)
                    found.append((name, names[row["category_id"]], mask))
        missing = sorted(set(files.values()) - set(self._photos))
        step = [Correction.of(name, self._known(label), mask) for name, label, mask in found if mask.any()]
        if step:
            self._steps += [[one] for one in step[:-1]]
            for one in step[:-1]:
                self._mark(one)
            self._say([step[-1]], (one.photo for one in step))
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

    def _renumber(self, count: int) -> None:
        """Make room for another class before "nothing"."""
        for photo in self._photos.values():
            photo.said[photo.said == count] += 1

    def _around(self, photo: str, x: int, y: int) -> Mask:
        labels = self.result(photo).labels
        if not (0 <= y < labels.shape[0] and 0 <= x < labels.shape[1]):
            raise ProposalError(
                f"point ({x}, {y}) is outside the photo of {labels.shape[1]} x {labels.shape[0]} pixels"
            )
        pieces, _ = ndimage.label(labels == labels[y, x])
        found: Mask = pieces == pieces[y, x]
        return found

    def _say(self, step: list[Correction], photos: Iterable[str] = ()) -> None:
        self._steps.append(step)
        for one in step:
            self._mark(one)
        self._learn({*photos, *(one.photo for one in step)})

    def _mark(self, one: Correction) -> None:
        names = [*self.labels.names, UNLABELLED]
        self._photos[one.photo].said[one.mask] = names.index(one.name)

    def _learn(self, changed: Iterable[str]) -> None:
        """Fit the head to all that was said, and judge every photo."""
        names = [*self.labels.names, UNLABELLED]
        for name in changed:
            photo = self._photos[name]
            photo.open = _open(photo.encoded, photo.said)
            told = (photo.said != UNKNOWN).any()
            photo.shown = self.learner.show(photo.encoded, photo.said, names) if told else None
        self._read(self._photos)  # labels may have changed
        known = [_only(photo.shown, self.taught) for photo in self._photos.values() if photo.shown is not None]
        known = [one for one in known if one.owners]
        if known:
            self.learner.fit(known, self.labels)
        else:
            self.learner.heads, self.learner.labels = {}, None
        self._judge(self._photos)

    def _read(self, names: Iterable[str]) -> None:
        """What words alone say of photos."""
        for photo in map(self._photo, names):
            words = self.learner.judge(photo.encoded, self.labels)
            photo.words = words.text.classes[words.scores[0].argmax(dim=-1)]

    def _judge(self, names: Iterable[str]) -> None:
        """How far words and corrections disagree in photos, and how unsure they are."""
        scale = self.learner.segmenter.protocol.logit_scale
        for photo in map(self._photo, names):
            now = self.learner.judge(photo.encoded, None if self.learner.heads else self.labels)
            chances, best = (scale * now.scores[0]).softmax(dim=-1).max(dim=-1)
            open_YX = photo.open.to(chances.device)
            apart = float(((photo.words != now.text.classes[best]) * open_YX).mean())
            photo.doubt = apart, float(((1 - chances) * open_YX).mean())


def _only(shown: Shown, names: list[str]) -> Shown:
    """The examples of some classes."""
    kept = [index for index, owner in enumerate(shown.owners) if owner in names]
    owners = [shown.owners[index] for index in kept]
    rows = {kind: features[kept] for kind, features in shown.features.items()}
    return Shown(list(dict.fromkeys(owners)), rows, owners, shown.weights[kept])


def _open(encoded: Encoded, said: npt.NDArray[np.int16] | None = None) -> torch.Tensor:
    """The share (Y, X) of each token of which nothing was said."""
    height, width = encoded.rgb.shape[:2]
    rows_HY, cols_WX = token_plan(encoded.windows, (height, width))
    free = torch.ones(height, width) if said is None else torch.from_numpy((said == UNKNOWN).astype(np.float32))
    return rows_HY.mT @ free @ cols_WX


def _bytes(photo: _Photo) -> int:
    own = photo.encoded
    return own.rgb.nbytes + own.features.numel() * own.features.element_size() + photo.said.nbytes


def _annotations(
    labels: npt.NDArray[np.integer[Any]], image: int, own: list[str], names: list[str], *, corrected: bool
) -> list[dict[str, Any]]:
    """COCO's rows for the classes `own` of a map; category ids are those of `names`."""
    height, width = labels.shape
    return [
        {
            "image_id": image,
            "category_id": names.index(own[index]) + 1,
            "segmentation": coco_segmentation(runs.counts, height, width, compressed=True),
            "area": runs.area,
            "bbox": [float(side) for side in runs.box],
            "iscrowd": 0,
            "corrected": corrected,
        }
        for index, runs in class_runs(labels).items()
    ]
