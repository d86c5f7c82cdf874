"""Miniatures of the instance and panoptic benchmarks in their publishers' layouts, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = (24, 32)
NAMES = ("cat", "traffic_light", "sky-other-merged")


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIDE, 3), np.uint8)).save(path)


def square(x: int, y: int, side: int) -> list[list[float]]:
    """A polygon."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number: int, image: int, category: int, x: int, y: int, side: int, **more: Any) -> dict[str, Any]:
    shape = {"segmentation": square(x, y, side), "bbox": [x, y, side, side], "area": float(side * side)}
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **shape, **more}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _images(count: int) -> list[dict[str, Any]]:
    # ids are out of order and COCO's have gaps
    return [{"id": 7 * number + 1, "height": SIDE[0], "width": SIDE[1]} for number in reversed(range(count))]


def make_instances(name: str, root: Path, count: int = 3) -> None:
    """COCO, LVIS, or our own arrangement for anything else: two objects in each image, none in the last."""
    images, annotations = _images(count), []
    for number, image in enumerate(sorted(images, key=lambda own: own["id"])[:-1]):
        first = 2 * number + 1
        annotations.append(annotation(first, image["id"], 5, 2, 3, 8))
        crowd = {"segmentation": {"size": list(SIDE), "counts": [24 * 16, 48, 24 * 14]}, "iscrowd": 1}
        annotations.append(annotation(first + 1, image["id"], 11, 14, 4, 9, **({} if number else crowd)))
    categories: list[dict[str, Any]] = [{"id": 5, "name": NAMES[0]}, {"id": 11, "name": NAMES[1]}]
    if name == "lvis":
        for number, image in enumerate(images):
            folder = ("val2017", "train2017")[number % 2]
            file = f"{image['id']:012d}.jpg"
            image |= {"coco_url": f"http://images.cocodataset.org/{folder}/{file}"}
            image |= {"neg_category_ids": [11], "not_exhaustive_category_ids": [5] if number == 0 else []}
            photo(root / folder / file, number)
        for category in categories:
            category |= {"frequency": "r" if category["id"] == 5 else "f", "synonyms": [category["name"], "thing"]}
        target = root / "lvis_v1_val.json"
    else:
        folder, target = ("val2017", root / "annotations/instances_val2017.json")
        if name != "coco":
            folder, target = "images", root / "instances.json"
        for number, image in enumerate(images):
            image["file_name"] = f"{image['id']:012d}.jpg"
            photo(root / folder / image["file_name"], number)
    write(target, {"images": images, "annotations": annotations, "categories": categories})


def make_panoptic(name: str, root: Path, count: int = 3) -> None:
    """COCO, or our own arrangement with a background, `count` images with two objects on a ground."""
    images, annotations = _images(count), []
    background = name != "coco"
    names = ("background", *NAMES[:2]) if background else NAMES
    ground = 0 if background else 2
    categories = [
        {"id": number + 10, "name": own, "isthing": int(number != ground)} for number, own in enumerate(names)
    ]
    folder, maps = ("val2017", "annotations/panoptic_val2017") if name == "coco" else ("images", "panoptic")
    for number, image in enumerate(images):
        image["file_name"] = f"{image['id']:012d}.jpg"
        photo(root / folder / image["file_name"], number)
        ids = np.full(SIDE, 70000)
        ids[3:11, 2:10], ids[4:13, 14:23], ids[:, 30:] = 300, 2, 0
        picture = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        file = f"{image['id']:012d}.png"
        (root / maps).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / maps / file)
        kinds = ((300, 1 if background else 0), (2, 2 if background else 1), (70000, ground))
        segments = [{"id": own, "category_id": kind + 10, "iscrowd": 0} for own, kind in kinds]
        annotations.append({"image_id": image["id"], "file_name": file, "segments_info": segments})
    target = root / ("annotations/panoptic_val2017.json" if name == "coco" else "panoptic.json")
    write(target, {"images": images, "annotations": annotations, "categories": categories})
