"""Captions of example images for head "tipx": one sentence each, from a mapping or a JSON file {image: caption}."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from densevl.backbones import Backbone
from densevl.errors import LabelError
from densevl.saved import Kind, read_json
from densevl.vocabulary import LabelSet
from densevl.vocabulary.parsing import short
from densevl.vocabulary.text_classifier import AS_IT_IS, TextClassifier

SAVED = Kind("file of captions", LabelError, "write a JSON object, {image: caption}")


def read_captions(given: Mapping[str, str] | str | os.PathLike[str]) -> dict[str, str]:
    """Return captions by path or file name of the image.

    Raises:
        LabelError: If there are none, it is not a JSON object, or a caption is empty or not text.
    """
    content = dict(given) if isinstance(given, Mapping) else read_json(given, SAVED)
    if not content:
        raise LabelError("no captions: give {image: caption}")
    for image, caption in content.items():
        if not isinstance(caption, str) or not caption.strip():
            raise LabelError(f"the caption of {short(str(image))} is {short(str(caption))!r}: it must be a sentence")
    return {str(image): caption.strip() for image, caption in content.items()}


def of_images(images: Sequence[Any], captions: Mapping[str, str]) -> list[str]:
    """Return the caption of each image, found by its path or else its file name.

    Raises:
        LabelError: If an image is not a file, or has no caption.
    """
    found = []
    for image in images:
        if not isinstance(image, str | os.PathLike):
            raise LabelError(f"captions are for files, and an example is a {type(image).__name__}: give paths")
        caption = captions.get(os.fspath(image), captions.get(Path(image).name))
        if caption is None:
            raise LabelError(f"no caption of {short(os.fspath(image))}: give one for each example")
        found.append(caption)
    return found


def caption_rows(backbone: Backbone, captions: Sequence[str]) -> torch.Tensor:
    """Embed captions without templates as unit rows (N, E). Long captions use all their windows."""
    unique = {caption.casefold(): caption for caption in captions}
    numbers = {key: number for number, key in enumerate(unique)}
    labels = LabelSet(tuple(map(str, range(len(unique)))), tuple((caption,) for caption in unique.values()))
    rows = TextClassifier(backbone, AS_IT_IS).encode(labels).vectors
    return rows[[numbers[caption.casefold()] for caption in captions]]
