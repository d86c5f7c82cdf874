"""Build a `Memory` from images with captions, and fit its beta on images with labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones import Backbone
from densevl.errors import LabelError, ModelError
from densevl.fewshot.words import class_rows
from densevl.images import list_images, read_image
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.fewshot.captions import caption_rows, of_images, read_captions
from densevl.pipelines.fewshot.features import BATCH
from densevl.vocabulary import LabelSet
from densevl.vocabulary.parsing import short
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.vocabulary.transforms.memory import Memory

CAPTIONS = "captions.json"


def pairs_of(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return a folder's images with captions, from captions.json in it or a text file beside each image.

    Raises:
        ImageError: If there are no images.
        LabelError: If an image has no caption.
    """
    images = [os.fspath(path) for path in list_images(folder)]
    listed = Path(folder) / CAPTIONS
    if listed.is_file():
        return list(zip(images, of_images(images, read_captions(listed)), strict=True))
    found = []
    for image in images:
        beside = Path(image).with_suffix(".txt")
        try:
            caption = beside.read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            raise LabelError(
                f"no caption of {short(image)}: write it in {beside.name} next to it, or all in {CAPTIONS}"
            ) from error
        found.append((image, caption))
    return found


def build_memory(
    pairs: Sequence[tuple[Any, str]] | str | os.PathLike[str], backbone: Backbone, **settings: Any
) -> Memory:
    """Embed images and captions.

    Args:
        pairs: (image, caption) pairs, or a folder for `pairs_of`. settings: of `Memory`.

    Raises:
        LabelError: If there are no pairs, or a caption is empty.
        ImageError: If an image is unreadable.
        ModelError: If the model cannot compare words with whole images.
        OptionError: If settings are impossible.
    """
    require_joint_space(backbone)
    given = pairs_of(pairs) if isinstance(pairs, str | os.PathLike) else list(pairs)
    if not given or not all(isinstance(caption, str) and caption.strip() for _, caption in given):
        raise LabelError("a memory needs pairs of an image and a caption: give some, none of them empty")
    rows = _embedded(backbone, [image for image, _ in given])
    return Memory(rows, caption_rows(backbone, [caption for _, caption in given]).cpu(), **settings)


def fit_beta(memory: Memory, backbone: Backbone, examples: Mapping[str, Sequence[Any]]) -> Memory:
    """Return the memory with the best beta for images of known classes. Its own images are judged without themselves.

    Args:
        examples: images by the words of their class.

    Raises:
        LabelError: If words are unusable.
        ImageError: If an image is unreadable.
        OptionError: If the memory belongs to another model.
    """
    labels = LabelSet.parse(list(examples))
    text = class_rows(TextClassifier(backbone).encode(labels), len(labels))[: len(labels)].cpu()
    rows = _embedded(backbone, [image for images in examples.values() for image in images])
    owners = [number for number, images in enumerate(examples.values()) for _ in images]
    if rows.shape[1] == memory.width:
        likest, place = (rows @ memory.images.mT).max(dim=1)
        own = torch.where(likest > 1 - 1e-5, place, -1)
    else:
        own = None
    return memory.choose(rows, torch.tensor(owners), text, backbone.logit_scale, own)


def require_joint_space(backbone: Backbone) -> None:
    """Refuse a model that cannot compare words with whole images.

    Raises:
        ModelError: If it cannot.
    """
    if backbone.default_recipe is None:
        raise ModelError(f"model '{backbone.name}' cannot compare whole images with words or captions: take a CLIP")


def _embedded(backbone: Backbone, images: Sequence[Any]) -> torch.Tensor:
    """Embed whole images as unit rows (N, E) on the CPU."""
    parts = [
        embed_images(backbone, [read_image(image) for image in images[at : at + BATCH]])
        for at in range(0, len(images), BATCH)
    ]
    return F.normalize(torch.cat(parts).float(), dim=1).cpu()
