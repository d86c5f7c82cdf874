"""Masks, run lengths, polygons and label maps as other tools write them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Case, cases
from PIL import Image, ImageFilter
from pycocotools import mask as coco

from conftest import PHOTOS
from densevl import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segments import Segments
from densevl.proposals import Proposals, given
from densevl.proposals.maps import class_map

SIZE = (6, 8)
PHOTO = np.zeros((*SIZE, 3), np.uint8)
MASK = np.zeros(SIZE, bool)
MASK[1:4, 2:6] = True
MAP = MASK.astype(np.uint8)
SCENE = PHOTOS.parent / "scenes" / "water.png"
SMALL = np.array(Image.open(SCENE).convert("RGB").resize((64, 64)))


def regions(masks: Any, form: str = "regions") -> Any:
    return lambda folder: given(PHOTO, **{form: masks}).masks()


def is_mask(masks: np.ndarray) -> bool:
    return masks.shape == (1, *SIZE) and bool((masks[0] == MASK).all())


def classes(labels: Any, names: int = 2) -> Any:
    return lambda folder: class_map(labels, [f"c{index}" for index in range(names)], SIZE)


def is_map(labels: np.ndarray) -> bool:
    return labels.dtype == np.int64 and bool((labels == MAP).all())


def palette(folder: Path) -> Any:
    picture = Image.fromarray(MAP)
    picture.putpalette([0, 0, 0, 200, 20, 20])
    picture.save(folder / "map.png")
    return class_map(folder / "map.png", ["a", "b"], SIZE)


def learned(labels: Any) -> Any:
    return lambda folder: FewShot("mini", "nearest", level="pixel").fit([(SMALL, labels, ["sea", "house"])])


def disc(size: int = 96) -> Image.Image:
    """A hard mask of a disc."""
    y, x = np.mgrid[:size, :size] - size / 2
    return Image.fromarray((np.hypot(x, y) < size / 3).astype(np.uint8) * 255)


def lossy(picture: Image.Image, quality: int) -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def blurred(radius: float) -> np.ndarray:
    return np.array(disc().filter(ImageFilter.GaussianBlur(radius)))


def of_map(numbers: np.ndarray) -> Any:
    """A map as regions of a photo of its size: how many it holds."""
    return lambda folder: len(given(np.zeros((*numbers.shape[:2], 3), np.uint8), regions=numbers))


def of_segmenter(numbers: np.ndarray) -> Any:
    return lambda folder: Segments.parse(numbers, numbers.shape[:2])


def cells(side: int, count: int = 14) -> np.ndarray:
    """Square segments numbered from 1."""
    return np.kron(np.arange(count * count).reshape(count, count) + 1, np.ones((side, side), np.int64))


OBJECTS = np.kron(np.array([[0, 1, 2], [3, 0, 255]], np.uint8), np.ones((4, 4), np.uint8))
COMPRESSED = coco.encode(np.asfortranarray(MAP))
TABLE = (
    *(Case(f"{name} are a mask", name, regions(form), right=is_mask) for name, form in {
        "truth values": MASK, "0 and 1": MAP[None], "0 and 255": [MAP * 255], "floats of 0 and 1": MAP.astype(float),
        "tensors": torch.from_numpy(MASK)[None], "tensors (N, 1, H, W)": torch.from_numpy(MASK)[None, None],
        "half precision": torch.from_numpy(MAP).half()[None], "one-bit pictures": Image.fromarray(MASK),
        "grey pictures": [Image.fromarray(MAP * 255)], "pictures with a channel": MAP[None, :, :, None],
        "compressed RLE": COMPRESSED, "a list of RLE": [COMPRESSED], "int64 segment maps": MAP.astype(np.int64) * 7,
    }.items()),
    Case("soft masks are not cut unasked", "torchvision's 0..1", regions(np.full((1, *SIZE), 0.3)), "soft; .* > 0.5"),
    Case("logits are not cut unasked", "SAM's logits", regions(torch.full((1, *SIZE), -3.2)), "logits; .* > 0"),
    *(Case(f"{name} is no map of segments", name, of_map(numbers), "soft mask.* > 127") for name, numbers in {
        "a soft edge": blurred(2), "a wide soft edge": blurred(8), "a soft mask as int64": blurred(3).astype(np.int64),
        "a soft mask as whole floats": blurred(3).astype(float), "a lossy mask": lossy(disc(), 75),
        "a hardly lossy mask": lossy(disc(), 95), "a grey photo": np.array(Image.open(SCENE).convert("L")),
        "a ramp": np.tile(np.arange(256, dtype=np.uint8).repeat(3), (9, 1)),
        "a mask made smaller": np.array(disc(512).resize((96, 96), Image.Resampling.BOX)),
    }.items()),
    Case("a soft picture of Pillow", "opened", lambda folder: given(
        np.zeros((96, 96, 3), np.uint8), regions=Image.fromarray(blurred(2))), "soft mask.* > 127"),
    Case("a soft mask for Segmenter", "the other door", of_segmenter(blurred(2)), "soft mask.* > 127"),
    Case("soft masks of bytes", "(M, H, W)", lambda folder: given(
        np.zeros((96, 96, 3), np.uint8), regions=blurred(2)[None]), "soft; threshold it, masks > 127"),
    Case("a soft mask of 16 bits", "0-65535", of_map(blurred(2).astype(np.uint16) * 257), "soft mask.* > 32767"),
    Case("a soft mask alone", "(H, W), 0-1", of_map(blurred(2) / 255), "of a soft mask give mask > 0.5"),
    Case("a soft mask of fractions to 255", "(H, W), resized", of_map(blurred(2) * 0.99), "give mask > 127"),
    Case("logits alone", "(H, W)", of_map(blurred(2) / 100 - 1), "give mask > 0$"),
    *(Case(f"{name} are segments", name, of_map(numbers), right=lambda found, want=want: found == want)
      for name, numbers, want in [
        ("superpixels", cells(6), 196), ("superpixels of bytes", cells(6).astype(np.uint8), 196),
        ("the smallest superpixels", cells(2), 196), ("superpixels above 255", cells(4, 20), 400),
        ("0 and 255", np.array(disc()), 1), ("255 segments without a gap", np.minimum(cells(3, 16), 255), 255),
        ("single pixels apart", np.diag(np.arange(40)), 39),
        ("class numbers with gaps", np.kron([[0, 24, 148], [171, 9, 62]], np.ones((4, 4), int)), 5),
        ("unknown as -1", np.where(OBJECTS == 255, -1, OBJECTS.astype(int)), 3),
    ]),
    Case("void beside objects", "VOC's instance maps", of_map(OBJECTS), r"holds 255 beside 3: .*map == 255, 0, map"),
    Case("void beside objects, int64", "the same, widened", of_map(OBJECTS.astype(np.int64)), "255 beside 3"),
    Case("void of 16 bits", "as 8", of_map(np.where(OBJECTS == 255, 65535, OBJECTS.astype(np.uint16))), "65535 be"),
    Case("void for Segmenter", "the other door", of_segmenter(OBJECTS), "255 beside 3"),
    Case("void is where it was told", "zeroed", of_map(np.where(OBJECTS == 255, 0, OBJECTS)),
         right=lambda found: found == 3),
    Case("a colour picture alone", "a mask saved as RGB", regions(np.zeros((*SIZE, 3), np.uint8)), "a colour picture"),
    Case("a colour picture for Segmenter", "the photo itself", of_segmenter(np.zeros((192, 256, 3), np.uint8)),
         r"\(192, 256, 3\), a colour picture"),
    Case("an empty map", "no segments", of_map(np.zeros((6, 8), int)), right=lambda found: found == 0),
    Case("more segments than memory", "each pixel its own", lambda folder: Proposals.from_segments(
        np.kron(np.arange(400 * 400).reshape(400, 400), np.ones((2, 2), int))), "4 GiB"),
    Case("NaN is no mask", "a model that overflowed", regions(np.full((1, *SIZE), np.nan)), "bool, or 0 and 1"),
    Case("a stack of label maps is no mask", "class numbers", regions(np.full((2, *SIZE), 3)), "split it"),
    Case("void beside 1", "VOC's 255 in a mask", regions([np.where(MASK, 1, 255) * (np.arange(8) > 0)]), "unknown"),
    Case("another size", "masks of the network's input",
         regions([np.ones((12, 16), bool)]), r"\(12, 16\), the image \(6"),
    Case("transposed", "(W, H)", regions([MASK.T]), "transposed"),
    Case("masks last", "(H, W, N)", regions(np.ones((*SIZE, 5), bool)), "masks come first"),
    Case("a colour picture", "a mask saved as RGB", regions([np.zeros((*SIZE, 3), np.uint8)]), "colour picture"),
    Case("an empty mask", "a detector's mask without a pixel",
         regions([MASK, MASK & False]), "region 1 of 2 holds no pixel"),
    Case("an empty RLE", "an annotation without a pixel",
         regions([{"size": SIZE, "counts": [48]}], "rle"), "region 0 of 1"),
    Case("empty proposals", "proposals with an empty one",
         regions(Proposals.from_masks([MASK, MASK & False])), "no pixel"),
    Case("a path of masks", "a folder", regions("masks", "boxes"), "boxes are a str"),
    Case("None among masks", "a detector without masks", regions([None]), "NoneType"),
    Case("transposed RLE", '"size" as [W, H]',
         regions([{"size": [8, 6], "counts": [48]}], "rle"), r"looks like \[W, H\]"),
    Case("cut RLE", "runs of another image", regions([{"size": SIZE, "counts": [3, 4]}], "rle"), "add up to 7"),
    Case("RLE that is no RLE", "a number", regions(3, "rle"), "rle is a int"),
    Case("polygons", "COCO's polygons", regions([[[2, 1, 6, 1, 6, 4, 2, 4]]], "rle"), right=is_mask),
    Case("a whole annotation", "COCO's annotations",
         regions([{"segmentation": COMPRESSED, "id": 3}], "rle"), right=is_mask),
    Case("polygons in 0-1", "YOLO's polygons", regions([[[0.2, 0.1, 0.6, 0.1, 0.6, 0.4]]], "rle"), "looks normalised"),
    Case("half a polygon", "two corners", regions([[[2, 1, 6, 1]]], "rle"), "three or more"),
    Case("a polygon outside", "of another image", regions([[[20, 10, 60, 10, 60, 40]]], "rle"), "outside the image"),
    Case("a proposer's empty masks are left out", "superpixels, SAM", lambda folder: len(RegionClassifier(
        "mini", proposals=lambda rgb: np.stack([np.ones(rgb.shape[:2], bool), np.zeros(rgb.shape[:2], bool)])
    )(SMALL, ["house", "fish"])), right=lambda count: count == 1),
    Case("empty example", "few-shot masks", lambda folder: FewShot("mini", "nearest", level="region").fit(
        [(SMALL, np.zeros((1, 64, 64), bool), ["house"])]), "region 0 of 1 holds no pixel"),
    *(Case(f"{name} are a label map", name, classes(form), right=is_map) for name, form in {
        "bytes": MAP, "int64": MAP.astype(np.int64), "whole floats": MAP.astype(np.float32), "truth values": MASK,
        "tensors": torch.from_numpy(MAP).long(), "tensors (1, H, W)": torch.from_numpy(MAP)[None],
        "grey pictures": Image.fromarray(MAP),
    }.items()),
    Case("palette PNGs are numbers", "VOC's files", palette, right=is_map),
    Case("255 is unknown, in any type", "void", classes(np.where(MASK, 255, MAP).astype(np.int64), 1),
         right=lambda got: set(np.unique(got)) == {-1, 0}),
    Case("0 and 255 alone", "a two-class map", classes(MAP * 255), "if 255 is a class"),
    Case("a number without a name", "class numbers beyond the names",
         classes(MAP * 7), "holds 7: 2 names allow 0 to 1"),
    Case("from 1", "ADE's numbers", classes(MAP + np.uint8(1)), "counts from 1, give map - 1"),
    Case("colours", "a picture of the classes", classes(np.zeros((*SIZE, 3), np.uint8)), "colour picture"),
    Case("colours of Pillow", "the same, opened", classes(Image.fromarray(PHOTO)), "mode RGB"),
    Case("scores", "(C, H, W)", classes(np.zeros((2, *SIZE))), "argmax"),
    Case("half numbers", "a map resized with interpolation", classes(MAP * 0.5), "nearest"),
    Case("no class", "all void", classes(np.full(SIZE, 255, np.uint8)), "holds no class"),
    Case("a map transposed", "(W, H)", classes(MAP.T), "transposed"),
    Case("a map that is not there", "a path", classes("none.png"), "none.png"),
    Case("examples of 0 and 255", "few-shot by pixels", learned(np.where(np.eye(64), 255, 0)), "if 255 is a class"),
    Case("examples beyond the names", "few-shot by pixels", learned(np.full((64, 64), 2)), "2 names allow"),
)  # fmt: skip


@cases(*TABLE)
def test_masks_are_what_was_meant_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
