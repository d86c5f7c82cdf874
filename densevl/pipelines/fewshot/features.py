"""Compute the features that few-shot heads learn from: of whole images, regions or places.

Shape letters: N features, D their width, R regions, Y/X tokens of all windows.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl import digest
from densevl.backbones import Backbone
from densevl.errors import ImageError, LabelError, ModelError
from densevl.fewshot.choosing import spread
from densevl.fewshot.tokens import COVERAGE, MOST, chosen_tokens, token_labels
from densevl.fewshot.views import view
from densevl.files import shown
from densevl.images import read_image
from densevl.inference import WindowGrid
from densevl.pipelines.anomaly.setup import each_image
from densevl.pipelines.feeding import Embeds, embed_images, feed, whole_pictures
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.scores import default_operators
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.proposals.maps import class_map
from densevl.recipes import Hints
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.operators.dense import unit_features
from densevl.vocabulary.parsing import short

BATCH = 32  # images read together
WANTED = "give a folder with one folder of images for each class, named after it"


@dataclass(frozen=True, eq=False)
class Shown:
    """Features of one example.

    Attributes:
        names: classes in it. features: (N, D) float32 by kind of feature; a class may have none.
        owners: the class of each feature. weights: (N,) float32, one per feature.
        pictures: one hash per whole image.
    """

    names: list[str]
    features: dict[str, torch.Tensor]
    owners: list[str]
    weights: torch.Tensor
    pictures: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Encoded:
    """A photo encoded for level "pixel". It is accepted wherever the photo is, and is not encoded again.

    Attributes:
        rgb: uint8 (H, W, 3), the photo. features: (Y, X, D) float32, unit rows of the tokens of all windows.
        windows: their positions.
    """

    rgb: np.ndarray
    features: torch.Tensor
    windows: WindowGrid


class Features(ABC):
    """Base class of feature sources. Attributes: scales: factor of text cosines, by kind of feature."""

    scales: dict[str, float]

    @abstractmethod
    def named(self, examples: Any) -> list[str]:
        """Return the class names in examples, in order of first appearance. Nothing is encoded.

        Raises:
            LabelError: If the examples do not have this level's form.
        """

    @abstractmethod
    def rows(self, examples: Any) -> Iterator[Shown]:
        """Encode examples one by one."""

    @abstractmethod
    def unnamed(self, images: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield features (N, D) by kind for unlabelled images, a few images at a time."""


class ImageFeatures(Features):
    """Features of whole images. Examples are {name: images}.

    Attributes: pixels: number of pixels fed per image. plain: the model. look: what embeds: the model, or the model
    with the vision prompts that a head learned.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.plain: Embeds = backbone
        self.look: Embeds = backbone
        self.scales = {"image": backbone.logit_scale}
        self.pixels = math.prod(backbone.picture_size)

    def named(self, examples: Any) -> list[str]:
        if not isinstance(examples, Mapping):
            raise LabelError("examples of images must be {name: images}, with a folder, paths or arrays for each class")
        if not examples:
            raise LabelError(
                "{} holds no examples: give {name: images}; words alone name images without fit, by a call with labels"
            )
        return list(examples)

    def rows(self, examples: Mapping[str, Any]) -> Iterator[Shown]:
        for name, images in examples.items():
            waiting = iter(each_image(images))
            while pictures := [read_image(image) for image in islice(waiting, BATCH)]:
                found = self.embed(pictures)
                hashes = frozenset(map(picture, pictures))
                yield Shown([name], {"image": found}, [name] * len(found), torch.ones(len(found)), hashes)

    def unnamed(self, images: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
        for at in range(0, len(images), BATCH):
            yield {"image": self.embed([read_image(image) for image in images[at : at + BATCH]])}

    def views(self, images: Sequence[Any], count: int, seed: int) -> torch.Tensor:
        """Return features of `count` random views of each image: (N, V, D) float32."""
        rng = np.random.default_rng(seed)
        pictures = (read_image(image) for image in images)
        return torch.stack([self.embed([view(rgb, rng) for _ in range(count)]) for rgb in pictures])

    def fed(self, images: Sequence[Any]) -> torch.Tensor:
        """Return images as the model takes them, (N, 3, S, S) float32."""
        return torch.stack([own for image in images for own in whole_pictures(self.look, [read_image(image)])])

    def embed(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Embed pictures as (N, D) float32. They are resized without a crop, so that no border is lost."""
        return embed_images(self.look, pictures)


def picture(rgb: np.ndarray) -> str:
    """Hash the pixels of a uint8 RGB image (H, W, 3), which identifies it in any file."""
    return digest.of_text(str(rgb.shape), digest.of_bytes(rgb.tobytes()))[:16]


def cut_out(rgb: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Crop a uint8 RGB image to a box from `box_edges`."""
    left, top, right, bottom = box
    return np.ascontiguousarray(rgb[top:bottom, left:right])


def by_folder(root: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """List images by class from a folder of folders, in the form `FewShot.fit` takes for whole images.

    An empty folder is a class without examples, known only by its words.

    Raises:
        ImageError: If there is no folder of folders, all are empty, or one holds only other files.
    """
    folder = Path(root)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise ImageError(f"{shown(folder)} {found}; {WANTED}")
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not inner:
        raise ImageError(f"{shown(folder)} holds no folders; {WANTED}")
    images = {path.name: list(each_image(path)) if _filled(path) else [] for path in inner}
    if not any(images.values()):
        raise ImageError(f"all folders in {shown(folder)} are empty; put images in at least one")
    return images


def _filled(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in folder.iterdir())


class RegionFeatures(Features):
    """Features of regions. Examples are (image, masks or boxes, a name for each)."""

    def __init__(self, classify: RegionClassifier) -> None:
        self.classify = classify
        self.scales = {name: classify.scorer.scale(name) for name in classify.operators}

    def named(self, examples: Any) -> list[str]:
        return list(dict.fromkeys(str(name) for example in _triples(examples, "regions") for name in example[2]))

    def rows(self, examples: Any) -> Iterator[Shown]:
        for image, regions, names in _triples(examples, "regions"):
            found = self.embed(image, **(regions if isinstance(regions, Mapping) else {"regions": regions}))
            if len(names) != len(found):
                raise LabelError(f"{len(names)} names for {len(found)} regions: give one for each")
            owners = list(map(str, names))
            yield Shown(owners, found.vectors, owners, torch.ones(len(owners)))

    def unnamed(self, images: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
        for image in images:
            found = self.embed(image)
            filled = torch.from_numpy(found.regions.areas > 0)
            yield {kind: rows[filled.to(rows.device)] for kind, rows in found.vectors.items()}

    def embed(self, image: Any, **regions: Any) -> RegionEmbeddings:
        """Embed the regions of a photo, as `RegionClassifier.embed` does."""
        return self.classify.embed(image, **regions)


class PixelFeatures(Features):
    """Features of places in photos. Examples are (image, label map, names), where the map holds indices of names, or
    results of `show`. An image may be `Encoded`.
    """

    def __init__(self, segment: Segmenter, backbone: Backbone, coverage: float = COVERAGE, tokens: int = MOST) -> None:
        """Prepare. `backbone` encodes; everything else is as the segmenter does it."""
        self._segment, self._backbone = segment, backbone
        self._coverage, self._tokens = coverage, tokens
        self.scales = {"pixel": segment.protocol.logit_scale}

    def named(self, examples: Any) -> list[str]:
        known, given = _shown(examples)
        named = [name for shown in known for name in shown.names]
        named += [str(name) for example in _triples(given, "a label map") for name in example[2]] if given else []
        return list(dict.fromkeys(named))

    def rows(self, examples: Any) -> Iterator[Shown]:
        known, given = _shown(examples)
        yield from known
        yield from (self.show(*example) for example in (_triples(given, "a label map") if given else ()))

    def unnamed(self, images: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
        for image in images:
            rows = self.encode(image).features.flatten(0, 1)
            yield {"pixel": rows[spread(len(rows), self._tokens).to(rows.device)]}

    def show(self, image: Any, given: Any, names: Sequence[str]) -> Shown:
        """Encode one photo with its label map."""
        encoded = self.encode(image)
        labels_HW = class_map(given, names, encoded.rgb.shape[:2])
        labels_YX, share_YX = token_labels(labels_HW, encoded.windows, self._coverage)
        chosen = chosen_tokens(labels_YX, self._tokens)
        owners = [str(names[index]) for index in labels_YX.flatten()[chosen].tolist()]
        shown = [str(names[index]) for index in np.unique(labels_HW[labels_HW >= 0])]
        rows = encoded.features.flatten(0, 1)[chosen.to(encoded.features.device)]
        return Shown(shown, {"pixel": rows}, owners, share_YX.flatten()[chosen])

    def encode(self, image: Any) -> Encoded:
        """Encode a photo. An encoded photo is returned unchanged."""
        if isinstance(image, Encoded):
            return image
        rgb = read_image(image)
        return Encoded(rgb, *self.embed(rgb))

    def embed(self, rgb: np.ndarray) -> tuple[torch.Tensor, WindowGrid]:
        """Return unit features (Y, X, D) of a uint8 RGB photo, with their windows."""
        segment = self._segment
        pixels, windows = feed(rgb, self._backbone, segment.protocol)
        hints = Hints(proxy=segment.proxy, sam=segment.sam)
        return unit_features(self._backbone, pixels, windows, segment.recipe, hints, segment.proxy_scope)


def region_features(
    segment: Segmenter, encoder: Backbone, operator: Any, options: Any, proposals: Any, *, one: bool
) -> RegionFeatures:
    """Create the features of regions, with the settings of a segmenter.

    Args:
        operator, options, proposals: as for `RegionClassifier`. one: allow only one operator.

    Raises:
        ModelError: If there are several operators and only one is allowed. Other errors as for `RegionClassifier`.
    """
    if one and operator is None:
        operator = list(default_operators(encoder))[-1]
    classify = RegionClassifier(
        encoder,
        operator,
        recipe=segment.recipe,
        proposals=proposals,
        options=options,
        background="none",
        protocol=segment.protocol,
        proxy=segment.proxy,
        proxy_scope=segment.proxy_scope,
        sam=segment.sam,
    )
    if one and len(classify.operators) > 1:
        raise ModelError(f"this head trains one thing for all features: take one operator, not {[*classify.operators]}")
    return RegionFeatures(classify)


def _shown(examples: Any) -> tuple[list[Shown], Any]:
    """Split examples into encoded ones and others."""
    if not isinstance(examples, (list, tuple)):
        return [], examples
    known = [example for example in examples if isinstance(example, Shown)]
    return known, [example for example in examples if not isinstance(example, Shown)] if known else examples


def _triples(examples: Any, middle: str) -> list[tuple[Any, Any, Sequence[str]]]:
    found = [] if isinstance(examples, (str, Mapping)) or not hasattr(examples, "__iter__") else list(examples)
    if not found or not all(isinstance(example, (tuple, list)) and len(example) == 3 for example in found):
        raise LabelError(f"examples must be a list of (image, {middle}, names), at least one")
    for _, _, names in found:
        if isinstance(names, str):
            raise LabelError(f"names of an example are a single string, '{short(names)}': give a list")
    return [(image, thing, list(names)) for image, thing, names in found]
