"""Tasks: segment images, find and name their regions, score them for anomalies, classify them, or write their features.

A work (`Segmenting`, `Naming`, `Scoring`, `Classifying`, `Extracting`) is plain data, so that it can be sent to other
machines. Its task holds the loaded model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from densevl import digest
from densevl.errors import OptionError
from densevl.files import CONFIDENCE_MARK, OVERLAY_MARK
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.features.extractor import FeatureExtractor
from densevl.pipelines.features.result import FORMATS, require_format
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.folder.each import Failed, Run, one_by_one
from densevl.pipelines.many import hearing
from densevl.pipelines.rasters.result import BlockSegmenter
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.regions.san import name_with_san
from densevl.pipelines.segmentation.concepts import Concepts, concept_settings, for_concepts
from densevl.pipelines.segmentation.ensemble import Ensemble
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.pipelines.video.result import VideoSegmenter
from densevl.proposals import load_proposer
from densevl.proposals.decoded import DecodedFiles
from densevl.proposals.load import asking, is_concepts
from densevl.proposals.pieces import PieceProposer
from densevl.regions.san import OPERATOR, San, is_san
from densevl.vocabulary import LabelSet


@dataclass(frozen=True)
class Kind:
    """The files written for an image named x.

    Attributes:
        use: the command. endings: the files are x + ending; the first is the JSON that describes the others.
        main: the ending passed to the result's `save`. picture: the file shown on contact sheets.
        tells: keys of the JSON that are reported for each image. max_pixels: limit of an image; None is that of
            `images.pixel_limit`.
    """

    use: str
    endings: tuple[str, ...]
    main: str
    picture: str
    tells: tuple[str, ...]
    max_pixels: int | None = None


OVERLAY = f"{OVERLAY_MARK}.png"
SEGMENT = Kind("segment", (".json", ".png", f"{CONFIDENCE_MARK}.png", OVERLAY), ".png", OVERLAY, ("fractions",))
REGIONS = Kind("regions", (".json", OVERLAY), ".json", OVERLAY, ("regions",))
ANOMALY = Kind(
    "anomaly", (".json", ".png", ".npy"), ".png", ".png", ("score", "is_anomalous", "anomalous_share", "peak")
)
GEOTIFF = Kind(
    "geotiff", (".json", ".tif", f"{CONFIDENCE_MARK}.tif", OVERLAY), ".tif", OVERLAY, ("fractions",), max_pixels=2**40
)
VIDEO = Kind(
    "video", (".json", ".mp4", "_labels.zip", "_frames.jsonl"), ".mp4", ".mp4", ("fractions", "frames", "cuts")
)
POLYGONS = replace(GEOTIFF, use="geotiff+polygons", endings=(*GEOTIFF.endings, ".geojson"))
CLASSIFY = Kind("classify", (".json", OVERLAY), ".json", OVERLAY, ("name", "confidence", "plausible"))
FEATURES = {
    form: Kind("features" if form == "npy" else f"features+{form}", (".json", end), end, "", ("grid",))
    for form, end in FORMATS.items()
}
GROUP = 16
KINDS = {kind.use: kind for kind in (SEGMENT, GEOTIFF, POLYGONS, VIDEO, REGIONS, ANOMALY, CLASSIFY, *FEATURES.values())}


@dataclass(frozen=True)
class Task:
    """A loaded model and what it is used for.

    Attributes:
        kind: the files written. run: runs it. facts: everything that affects a result, ready for JSON. pipeline: the
            model.
        group: number of images that may share a pass, counted from the first. A group always runs as a whole, even if
            part of it is done: sharing a pass affects the last bits, and a resumed run must give the same.
    """

    kind: Kind
    run: Run
    facts: dict[str, Any]
    pipeline: Any
    group: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that affects the results, as JSON stores it: the facts, and what is written."""
        return json.loads(json.dumps({"use": self.kind.use, **self.facts}, default=str))


class Work(Protocol):
    """A task as plain data."""

    def task(self, device: str | None = None) -> Task:
        """Load the model, on `device` instead of that in the options, if given."""


@dataclass(frozen=True)
class Segmenting:
    """Segment images.

    Attributes:
        labels: as for `LabelSet.parse`. options: of `Segmenter`, or of `Concepts` for a concept model.
        fitted: file that a `FewShot` of level "pixel" saved, instead of labels; options are then those of its `load`.
    """

    labels: LabelSet | None
    options: Mapping[str, Any] = field(default_factory=dict)
    fitted: str | Path | None = None

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        options = _on(self.options, device)
        if self.fitted is not None or self.labels is None:
            return by_example(FewShot.load(self.fitted or "", **options), "pixel")
        if for_concepts(options):
            return segmenting(Concepts(**concept_settings(options)), self.labels)
        return segmenting(Segmenter(**_asking(options, self.labels)), self.labels)


def segmenting(segmenter: Segmenter | Ensemble | Concepts, labels: Any) -> Task:
    """Return the task of a loaded segmenter."""
    asked = LabelSet.parse(labels)
    facts = {**segmenter.facts(), "labels": asked.facts()}

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return segmenter.many(images, asked, on_error=failed)

    return Task(SEGMENT, run, facts, segmenter, GROUP)


@dataclass(frozen=True)
class BlockSegmenting:
    """Segment images of any size block by block, to GeoTIFF.

    Attributes:
        labels: as for `LabelSet.parse`. options: of `BlockSegmenter`. bands, value_range: see `Raster`.
        polygons: also write polygons.
    """

    labels: LabelSet
    options: Mapping[str, Any] = field(default_factory=dict)
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    polygons: bool = False

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        segment = BlockSegmenter(**_on(self.options, device))
        read: dict[str, Any] = {"bands": self.bands, "value_range": self.value_range}

        def call(image: Any) -> Any:
            return replace(segment(image, self.labels, **read), polygons=self.polygons)

        facts = {**segment.facts(), "labels": self.labels.facts(), **read}
        return Task(POLYGONS if self.polygons else GEOTIFF, one_by_one(call), facts, segment.segmenter)


@dataclass(frozen=True)
class VideoSegmenting:
    """Segment videos. Attributes: as for `Segmenting`; smooth, every: of `VideoSegmenter`."""

    labels: LabelSet
    options: Mapping[str, Any] = field(default_factory=dict)
    smooth: float = 0.0
    every: int = 1

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        options = _asking(_on(self.options, device), self.labels)
        segment = VideoSegmenter(Segmenter(**options), smooth=self.smooth, every=self.every)
        facts = {**segment.facts(), "labels": self.labels.facts()}
        return Task(VIDEO, one_by_one(lambda video: segment(video, self.labels)), facts, segment)


@dataclass(frozen=True)
class Naming:
    """Find regions and name them.

    Attributes:
        labels: None names regions from a list of nouns. options: of `RegionClassifier`, except its proposals.
        proposals: a name of `proposals.NAMES`. checkpoint: of SAM. tile, pieces: see `load_proposer` and
            `PieceProposer`. points, boxes: in pixels; regions are then taken from them instead of proposed.
        objects: keep only regions that have a label, each object once. parts: see `RegionResult.instances`.
        merge: see `RegionClassifier.discover`.
        decoder: a file of `Decoded`, or a folder of them, that contains the regions, see `DecodedFiles`; or the file of
            SAN, which finds and embeds them, see `name_with_san`.
        fitted: file that a `FewShot` of level "region" saved, instead of labels; options are then those of its `load`.
    """

    labels: LabelSet | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    proposals: str = "mini-sam"
    checkpoint: str | Path | None = None
    tile: int | None = None
    pieces: bool = False
    points: tuple[tuple[float, ...], ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    objects: bool = False
    decoder: str | Path | None = None
    parts: float | None = None
    merge: float | None = None
    fitted: str | Path | None = None

    def task(self, device: str | None = None) -> Task:
        """See `Work`.

        Raises:
            OptionError: If `pieces` is used with clusters, or points without a SAM.
        """
        options = _on(self.options, device)
        if self.fitted is not None:
            finder = self._finder(options.get("device"))
            return by_example(FewShot.load(self.fitted, **options, proposals=finder), "region")
        if self.decoder is not None and is_san(self.decoder):
            return self._by_san(options)
        decoder = None if self.decoder is None else DecodedFiles(self.decoder)
        finder = self._finder(options.get("device")) if decoder is None else None
        if self.points and not hasattr(finder, "prompt"):
            raise OptionError("points need a SAM to turn them into masks; take the proposals mini-sam or sam")
        classify = RegionClassifier(**options, proposals=finder)
        given: dict[str, Any] = {"points": [*self.points], "boxes": [*self.boxes]}
        clicked, named = bool(self.points or self.boxes), self.labels

        @hearing
        def call(image: Any) -> Any:
            found: dict[str, Any] = {}
            if clicked:
                found["regions"] = prompted(image, **given, proposer=None if isinstance(finder, str) else finder)
            elif decoder is not None:
                decoded = decoder.of(image)
                found["regions"] = decoded.select(decoded.areas > 0)
            if named is None:  # each click gets its own answer, so nothing is merged
                return classify.discover(image, overlap=1.0 if clicked else 0.5, merge=self.merge, **found)
            result = classify(image, named, **found)
            return result.instances(parts=self.parts) if self.objects and not clicked else result

        labels = self.labels.facts() if self.labels is not None else None
        facts = {
            **classify.facts(),
            "labels": labels,
            **given,
            "objects": self.objects,
            "parts": self.parts,
            "merge": self.merge,
        }
        if decoder is not None:
            facts["proposals"] = f"decoder {decoder.fingerprint()}"
        if clicked or named is None or self.objects or decoder is not None:
            return Task(REGIONS, one_by_one(call), facts, classify)

        def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
            return classify.many(images, named, on_error=failed)

        return Task(REGIONS, run, facts, classify)

    def _by_san(self, options: dict[str, Any]) -> Task:
        """Return the task of SAN's regions, named by SAN's own vectors.

        Raises:
            OptionError: If another operator is given, or a share for class scores, which SAN does not have.
        """
        file, background = Path(str(self.decoder)), options.pop("background", "auto")
        if options.pop("operator", None) not in (None, OPERATOR) or options.pop("options", None):
            raise OptionError("SAN embeds its regions itself: leave the operator out (--operator)")
        if options.pop("clip_share", "fc-clip") != "fc-clip":
            raise OptionError("SAN has no class scores to combine with CLIP's: leave clip_share out (--clip-share)")
        classify = RegionClassifier(**options, operator=OPERATOR, proposals=None)
        san = San(classify.backbone, file)

        def call(image: Any) -> Any:
            result = name_with_san(classify, san, image, self.labels or (), background=background)
            return result.instances(parts=self.parts) if self.objects else result

        own = {"labels": self.labels and self.labels.facts(), "objects": self.objects, "parts": self.parts}
        facts = {**classify.facts(), **own, "background": str(background), "proposals": f"SAN {digest.of_file(file)}"}
        return Task(REGIONS, one_by_one(call), facts, classify)

    def _finder(self, device: str | None) -> Any:
        if self.checkpoint is not None:
            finder: Any = load_proposer("sam", checkpoint=self.checkpoint, device=device, tile=self.tile)
        elif self.proposals == "clusters" and not self.tile:
            finder = self.proposals  # clusters the classifier's own features
        else:
            finder = load_proposer(self.proposals, device=device, tile=self.tile, **_words(self.proposals, self.labels))
        if self.pieces and isinstance(finder, str):
            raise OptionError("pieces do not work with clusters, which are already in one piece; leave pieces out")
        return PieceProposer(finder) if self.pieces else finder


@dataclass(frozen=True)
class Scoring:
    """Score images for anomalies. Attributes: options: of `AnomalyDetector`; fitted: file that `save` wrote, if any."""

    options: Mapping[str, Any] = field(default_factory=dict)
    fitted: str | Path | None = None

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        options = _on(self.options, device)
        detect = AnomalyDetector(**options) if self.fitted is None else AnomalyDetector.load(self.fitted, **options)
        return scoring(detect)


def scoring(detect: AnomalyDetector) -> Task:
    """Return the task of a loaded detector."""

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return detect.many(images, on_error=failed)

    return Task(ANOMALY, run, detect.facts(), detect, GROUP)


@dataclass(frozen=True)
class Classifying:
    """Classify whole images.

    Attributes:
        labels: for words alone. options: of `FewShot`. fitted: file that `save` wrote, instead of labels.
    """

    labels: LabelSet | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    fitted: str | Path | None = None

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        options = _on(self.options, device)
        return classifying(
            FewShot(**options) if self.fitted is None else FewShot.load(self.fitted, **options), self.labels
        )


def classifying(name: FewShot, labels: Any = None) -> Task:
    """Return the task of a loaded classifier. Labels are needed if it has no examples.

    Raises:
        OptionError: If it is for regions or pixels.
    """
    _require_level(name, "image")
    asked = None if labels is None else LabelSet.parse(labels)

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return name.many(images, asked, on_error=failed)

    facts = {**name.facts(), **({} if asked is None else {"labels": asked.facts()})}
    return Task(CLASSIFY, run, facts, name, GROUP)


def by_example(name: FewShot, level: str) -> Task:
    """Return the task of a head learned from regions or pixels.

    Raises:
        OptionError: If it was learned for another level.
    """
    _require_level(name, level)

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return name.many(images, on_error=failed)

    return Task(SEGMENT if level == "pixel" else REGIONS, run, name.facts(), name)


COMMANDS = {"image": "densevl classify", "region": "densevl regions", "pixel": "densevl segment"}


def _require_level(name: FewShot, level: str) -> None:
    if name.level != level:
        raise OptionError(f"this head names {name.level}s: `{COMMANDS[name.level]} --head` does that")


@dataclass(frozen=True)
class Extracting:
    """Write dense features. Attributes: options: of `FeatureExtractor`; form: file format, one of `FORMATS`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    form: str = "npy"

    def task(self, device: str | None = None) -> Task:
        """See `Work`.

        Raises:
            OptionError: If there is no such format.
            MissingExtraError: If its package is not installed.
        """
        require_format(self.form)
        extract = FeatureExtractor(**_on(self.options, device))

        def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
            return extract.many(images, on_error=failed)

        return Task(FEATURES[self.form], run, extract.facts(), extract)


def _words(proposals: Any, labels: LabelSet | None) -> dict[str, Any]:
    """Return the words for a proposer that needs words."""
    return {"words": labels.words if labels is not None else ()} if is_concepts(proposals) else {}


def _asking(options: dict[str, Any], labels: LabelSet) -> dict[str, Any]:
    """Return options in which a concept model, if it makes the proposals, is asked for the labels."""
    return {**options, "proposals": asking(options.get("proposals"), labels.words, options.get("device"))}


def _on(options: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    return {**options, "device": device} if device is not None else dict(options)
