"""What is done with every image of a run: segmented, its regions named, scored for anomalies, named as a whole, or its
features written.

A work (`Segmenting`, `Naming`, `Scoring`, `Classifying`, `Extracting`) is plain data, so it travels
to other machines; its task holds the model.
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
    """What is written for an image that is called x.

    Attributes:
        use: the command. endings: of the files, x + ending; the first is the JSON that tells of the others.
        main: the ending that the result's `save` is given. picture: what a contact sheet shows.
        tells: the keys of the JSON that are told of each image. max_pixels: of an image; None is that of
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
    """A loaded model and what it does.

    Attributes:
        kind: what is written. run: does it. facts: all that decides a result, ready for JSON. pipeline: the model.
        group: images that may share a pass, counted from the first. A group is always run as a whole, also where some
            of it is done already: what shares a pass decides the last bits, and a resumed run has the same.
    """

    kind: Kind
    run: Run
    facts: dict[str, Any]
    pipeline: Any
    group: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the results, as JSON has it: the facts, and what is written."""
        return json.loads(json.dumps({"use": self.kind.use, **self.facts}, default=str))


class Work(Protocol):
    """What is done, as data."""

    def task(self, device: str | None = None) -> Task:
        """Load the model, on a device other than that of the options if one is given."""


@dataclass(frozen=True)
class Segmenting:
    """Segment images.

    Attributes:
        labels: as `LabelSet.parse` takes them. options: of `Segmenter`, or with a concept model of `Concepts`.
        fitted: what a `FewShot` of level "pixel" saved, in place of labels; options are then those of its `load`.
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
    """The task of a segmenter that is loaded."""
    asked = LabelSet.parse(labels)
    facts = {**segmenter.facts(), "labels": asked.facts()}

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return segmenter.many(images, asked, on_error=failed)

    return Task(SEGMENT, run, facts, segmenter, GROUP)


@dataclass(frozen=True)
class BlockSegmenting:
    """Segment images of any size block by block, to GeoTIFF.

    Attributes:
        labels: as `LabelSet.parse` takes them. options: of `BlockSegmenter`. bands, value_range: see `Raster`.
        polygons: also write them.
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
    """Segment videos. Attributes: as `Segmenting`; smooth, every: of `VideoSegmenter`."""

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
        labels: None names them from a list of nouns. options: of `RegionClassifier`, but for its proposals.
        proposals: a name of `proposals.NAMES`. checkpoint: of SAM. tile, pieces: see `load_proposer` and
            `PieceProposer`. points, boxes: in pixels; regions are then what is there, and not proposed.
        objects: only regions that are a label, each thing once. parts: see `RegionResult.instances`.
        merge: see `RegionClassifier.discover`.
        decoder: a file of `Decoded`, or a folder of them, which has the regions, see `DecodedFiles`; or the file of
            SAN, which finds and embeds them, see `name_with_san`.
        fitted: what a `FewShot` of level "region" saved, in place of labels; options are then those of its `load`.
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
            OptionError: `pieces` of clusters, or points without a SAM.
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
            raise OptionError("points need a SAM to make masks of them; take the proposals mini-sam or sam")
        classify = RegionClassifier(**options, proposals=finder)
        given: dict[str, Any] = {"points": [*self.points], "boxes": [*self.boxes]}
        clicked, named = bool(self.points or self.boxes), self.labels

        def call(image: Any) -> Any:
            found: dict[str, Any] = {}
            if clicked:
                found["regions"] = prompted(image, **given, proposer=None if isinstance(finder, str) else finder)
            elif decoder is not None:
                decoded = decoder.of(image)
                found["regions"] = decoded.select(decoded.areas > 0)
            if named is None:  # clicks are answered one by one, so nothing is joined
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
        """SAN's regions, named by its own vectors of them.

        Raises:
            OptionError: another operator, or a share for scores that it has not.
        """
        file, background = Path(str(self.decoder)), options.pop("background", "auto")
        if options.pop("operator", None) not in (None, OPERATOR) or options.pop("options", None):
            raise OptionError("SAN embeds its regions itself: leave the operator out (--operator)")
        if options.pop("clip_share", "fc-clip") != "fc-clip":
            raise OptionError(
                "SAN has no class scores of its own to weigh with CLIP's: leave clip_share out (--clip-share)"
            )
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
            finder = self.proposals  # of the classifier's own features
        else:
            finder = load_proposer(self.proposals, device=device, tile=self.tile, **_words(self.proposals, self.labels))
        if self.pieces and isinstance(finder, str):
            raise OptionError("pieces go with all proposals but clusters, which are in one piece as they are")
        return PieceProposer(finder) if self.pieces else finder


@dataclass(frozen=True)
class Scoring:
    """Score images for anomalies. Attributes: options: of `AnomalyDetector`; fitted: what `save` wrote, if anything."""

    options: Mapping[str, Any] = field(default_factory=dict)
    fitted: str | Path | None = None

    def task(self, device: str | None = None) -> Task:
        """See `Work`."""
        options = _on(self.options, device)
        detect = AnomalyDetector(**options) if self.fitted is None else AnomalyDetector.load(self.fitted, **options)
        return scoring(detect)


def scoring(detect: AnomalyDetector) -> Task:
    """The task of a detector that is loaded."""

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return detect.many(images, on_error=failed)

    return Task(ANOMALY, run, detect.facts(), detect, GROUP)


@dataclass(frozen=True)
class Classifying:
    """Name whole images.

    Attributes:
        labels: for words alone. options: of `FewShot`. fitted: what `save` wrote, in place of labels.
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
    """The task of a classifier that is loaded; labels where it has no examples.

    Raises:
        OptionError: it names regions or pixels.
    """
    _require_level(name, "image")
    asked = None if labels is None else LabelSet.parse(labels)

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        return name.many(images, asked, on_error=failed)

    facts = {**name.facts(), **({} if asked is None else {"labels": asked.facts()})}
    return Task(CLASSIFY, run, facts, name, GROUP)


def by_example(name: FewShot, level: str) -> Task:
    """The task of what was learned from regions or pixels.

    Raises:
        OptionError: it was learned from something else.
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
    """Write dense features. Attributes: options: of `FeatureExtractor`; form: of the files, one of `FORMATS`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    form: str = "npy"

    def task(self, device: str | None = None) -> Task:
        """See `Work`.

        Raises:
            OptionError: no such format.
            MissingExtraError: its package is not installed.
        """
        require_format(self.form)
        extract = FeatureExtractor(**_on(self.options, device))

        def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
            return extract.many(images, on_error=failed)

        return Task(FEATURES[self.form], run, extract.facts(), extract)


def _words(proposals: Any, labels: LabelSet | None) -> dict[str, Any]:
    """What a proposer that is asked for words is asked."""
    return {"words": labels.words if labels is not None else ()} if is_concepts(proposals) else {}


def _asking(options: dict[str, Any], labels: LabelSet) -> dict[str, Any]:
    """Options whose proposals, if a concept model makes them, are of the labels."""
    return {**options, "proposals": asking(options.get("proposals"), labels.words, options.get("device"))}


def _on(options: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    return {**options, "device": device} if device is not None else dict(options)
