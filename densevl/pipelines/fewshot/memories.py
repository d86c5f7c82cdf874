"""A `Memory` from images with captions, and its beta from images with labels."""

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
    """Images of a folder and their captions: of captions.json in it, or of a text file beside each image.

    Raises:
        ImageError: no images.
        LabelError: an image without a caption.
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
                f"no caption of {short(image)}: write it in {beside.name} beside it, or all in {CAPTIONS}"
            ) from error
        found.append((image, caption))
    return found


def build_memory(
    pairs: Sequence[tuple[Any, str]] | str | os.PathLike[str], backbone: Backbone, **settings: Any
) -> Memory:
    """Embed images and captions.

    Args:
        pairs: (image, caption) of each, or a folder as `pairs_of` reads it. settings: of `Memory`.

    Raises:
        LabelError: no pairs, or a caption that is empty.
        ImageError: an unreadable image.
        ModelError: a model whose words and whole images cannot be compared.
        OptionError: impossible settings.
    """
    require_joint_space(backbone)
    given = pairs_of(pairs) if isinstance(pairs, str | os.PathLike) else list(pairs)
    if not given or not all(isinstance(caption, str) and caption.strip() for _, caption in given):
        raise LabelError("a memory is made of pairs, an image and a sentence each: give some, none of them empty")
    rows = _embedded(backbone, [image for image, _ in given])
    return Memory(rows, caption_rows(backbone, [caption for _, caption in given]).cpu(), **settings)


def fit_beta(memory: Memory, backbone: Backbone, examples: Mapping[str, Sequence[Any]]) -> Memory:
    """The memory with the beta that suits images of known classes; one of its own images is judged without itself.

    Args:
        examples: images by the words for their class.

    Raises:
        LabelError: unusable words.
        ImageError: an unreadable image.
        OptionError: a memory of another model.
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
    """Refuse a model whose words and whole images cannot be compared.

    Raises:
        ModelError: it is one.
    """
    if backbone.default_recipe is None:
        raise ModelError(f"model '{backbone.name}' has no words for whole images, so no captions either: take a CLIP")


def _embedded(backbone: Backbone, images: Sequence[Any]) -> torch.Tensor:
    """Unit rows (N, E) of whole images, on the CPU."""
    parts = [
        embed_images(backbone, [read_image(image) for image in images[at : at + BATCH]])
        for at in range(0, len(images), BATCH)
    ]
    return F.normalize(torch.cat(parts).float(), dim=1).cpu()
