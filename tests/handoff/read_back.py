"""Read what densevl handed on with the library of the tool it is for: python read_back.py TOOL FOLDER OUT.npz

Runs in an environment of its own, without densevl and without torch. FOLDER holds photos/ and out/, the exports. OUT
gets what the tool understood: masks (R, H, W) bool, names (R,) and photos (R,), a row for each mask.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Row = tuple[str, str, np.ndarray]


def datumaro(folder: Path) -> Iterator[Row]:
    """COCO as CVAT's own library reads it."""
    from datumaro import AnnotationType, Dataset

    for item in _coco_dataset(folder):
        for found in item.annotations:
            if found.type == AnnotationType.mask:
                yield item.id, _label(found), np.asarray(found.image, bool)
    del Dataset


def cvat(folder: Path) -> Iterator[Row]:
    """COCO, written as CVAT's XML by CVAT's own library and read again."""
    from datumaro import AnnotationType, Dataset

    there = folder / "cvat"
    shutil.rmtree(there, ignore_errors=True)
    _coco_dataset(folder).export(str(there), "cvat", save_media=True, allow_undeclared_attrs=True)
    dataset = Dataset.import_from(str(there), "cvat")
    _name(dataset)
    for item in dataset:
        for found in item.annotations:
            if found.type == AnnotationType.mask:
                yield item.id, _label(found), np.asarray(found.image, bool)


def label_studio(folder: Path) -> Iterator[Row]:
    """Brush masks as Label Studio's SDK decodes them, under the labels that its own reader finds in the interface."""
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
    from label_studio_sdk.converter.brush import decode_rle

    interface = parse_config((folder / "out" / "labelstudio.xml").read_text())
    allowed = {name for tag in interface.values() for name in tag["labels"]}
    for task in json.loads((folder / "out" / "labelstudio.json").read_text()):
        for found in task["predictions"][0]["result"]:
            (name,) = found["value"]["brushlabels"]
            if name not in allowed:
                raise SystemExit(f"{name!r} is no label of the interface")
            shape = (found["original_height"], found["original_width"], 4)
            yield Path(task["data"]["image"]).stem, name, decode_rle(found["value"]["rle"]).reshape(shape)[..., 3] > 0


def labelme(folder: Path) -> Iterator[Row]:
    """Polygons as LabelMe opens them, filled as its own converters to VOC and COCO do it."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    from labelme.utils import shape_to_mask

    try:
        from labelme import LabelFile
    except ImportError:
        from labelme.label_file import LabelFile

    for path in sorted((folder / "out" / "labelme").glob("*.json")):
        content = json.loads(path.read_text())
        size = (content["imageHeight"], content["imageWidth"])
        for shape in LabelFile(str(path)).shapes:
            read = shape if isinstance(shape, dict) else vars(shape)
            points = [list(map(float, point)) for point in read["points"]]
            yield path.stem, read["label"], shape_to_mask(size, points, read["shape_type"])


def fiftyone(folder: Path) -> Iterator[Row]:
    """COCO as FiftyOne imports it."""
    import fiftyone as fo

    dataset = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(folder / "photos"),
        labels_path=str(folder / "out" / "coco.json"),
        label_types="segmentations",
    )
    dataset.compute_metadata()
    for sample in dataset:
        height, width = sample.metadata.height, sample.metadata.width
        field = next(name for name in ("segmentations", "ground_truth") if sample.has_field(name))
        for found in sample[field].detections:
            left, top = round(found.bounding_box[0] * width), round(found.bounding_box[1] * height)
            mask = np.zeros((height, width), bool)
            part = np.asarray(found.mask, bool)
            mask[top : top + part.shape[0], left : left + part.shape[1]] = part
            yield Path(sample.filepath).stem, found.label, mask
    dataset.delete()


def _coco_dataset(folder: Path):
    """The exports in the places where Datumaro looks for COCO."""
    from datumaro import Dataset

    there = folder / "datumaro"
    shutil.rmtree(there, ignore_errors=True)
    (there / "annotations").mkdir(parents=True)
    shutil.copy(folder / "out" / "coco.json", there / "annotations" / "instances_train.json")
    shutil.copytree(folder / "photos", there / "images" / "train")
    dataset = Dataset.import_from(str(there), "coco")
    _name(dataset)
    return dataset


NAMES: list[str] = []


def _name(dataset) -> None:
    from datumaro import AnnotationType

    NAMES[:] = [category.name for category in dataset.categories()[AnnotationType.label]]


def _label(annotation) -> str:
    return NAMES[annotation.label]


def main() -> None:
    """Read with one tool."""
    tool, folder, out = sys.argv[1:]
    rows = list(globals()[tool](Path(folder)))
    photos, names, masks = zip(*rows, strict=True) if rows else ((), (), ())
    sizes = [mask.shape for mask in masks]
    np.savez(
        out,
        photos=np.array(photos),
        names=np.array(names),
        sizes=np.array(sizes),
        masks=np.concatenate([mask.ravel() for mask in masks]) if rows else np.zeros(0, bool),
    )


if __name__ == "__main__":
    main()
