"""The export formats by name; one registry serves `segment` and `regions`."""

from __future__ import annotations

import hashlib
import io
import os
from base64 import b64encode
from collections.abc import Collection, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densevl.drawing import palette
from densevl.errors import OptionError, OutputError, suggest
from densevl.files import json_text
from densevl.images import encode_png
from densevl.images.addresses import TAR, is_address
from densevl.regions.exports.base import Export, as_regions, twins
from densevl.regions.exports.contents import (
    STUDIO_IMAGE,
    STUDIO_LABELS,
    as_json,
    coco_categories,
    geojson_content,
    labelstudio_task,
    yolo_rows,
)
from densevl.regions.result import RegionResult

GALLERY_SIDE = 640  # longest side of photos, in pixels


class CocoExport(Export):
    """`coco.json`: images, categories, and an annotation with RLE for each named region."""

    file = "coco.json"

    def _take(self, image_id: int, result: Any) -> None:
        for annotation in result.to_coco(image_id):
            self.annotations.append({"id": len(self.annotations) + 1, **annotation})

    def close(self) -> list[Path]:
        """See `Export.close`."""
        plain = coco_categories(self.vocabulary)
        content = {"images": self.images(), "annotations": self.annotations, "categories": plain}
        return [self._write(self.file, content)]


class PanopticExport(Export):
    """`panoptic.json`, and a PNG for each photo in `panoptic/`, as panopticapi reads them."""

    file, part, ending = "panoptic.json", "panoptic", ".png"

    def _take(self, image_id: int, result: Any) -> None:
        name = f"{self._stem()}.png"
        png, annotation = as_regions(result).to_panoptic(image_id, name, stuff=self.stuff)
        self._put(self.folder / self.part / name, encode_png(png))
        self.annotations.append(annotation)

    def close(self) -> list[Path]:
        """See `Export.close`."""
        content = {"images": self.images(), "annotations": self.annotations, "categories": self.categories}
        return [self._write(self.file, content), self.folder / self.part]


class LabelMeExport(Export):
    """A JSON of polygons for each photo, in `labelme/`; open that folder with LabelMe."""

    part, ending = "labelme", ".json"

    def _take(self, image_id: int, result: Any) -> None:
        path = self.folder / self.part / f"{self._stem()}.json"
        seen = self.images_of[-1]
        with suppress(ValueError):  # on another drive
            seen = seen if is_address(seen) else Path(os.path.relpath(seen, path.parent.absolute())).as_posix()
        self._put(path, as_json(as_regions(result).to_labelme(seen)))

    def close(self) -> list[Path]:
        """See `Export.close`; nothing was held."""
        return [self.folder / self.part]


class LabelStudioExport(Export):
    """`labelstudio.json`, tasks with brush masks as predictions, and `labelstudio.xml`, the labelling interface."""

    file = "labelstudio.json"
    others = ("labelstudio.xml",)

    def _take(self, image_id: int, result: Any) -> None:
        found = as_regions(result)
        image = self.images_of[-1]
        model = str(found.meta.get("model") or "densevl")
        self.annotations.append(labelstudio_task(found.regions, found.found, found.confidence, image, model))

    def close(self) -> list[Path]:
        """See `Export.close`."""
        colours = palette(len(self.vocabulary)).tolist()
        labels = "".join(
            f'    <Label value="{escape(name)}" background="#{r:02x}{g:02x}{b:02x}"/>\n'
            for name, (r, g, b) in zip(self.vocabulary, colours, strict=True)
        )
        page = (
            f'<!-- made by densevl -->\n<View>\n  <Image name="{STUDIO_IMAGE}" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="{STUDIO_LABELS}" toName="{STUDIO_IMAGE}">\n{labels}  </BrushLabels>\n</View>\n'
        )
        return [
            self._renew(self.file, as_json(self.annotations)),
            self._renew(self.others[0], page.encode(errors="backslashreplace")),
        ]


class YoloExport(Export):
    """A text file of polygons for each photo, in `labels/`, and `yolo.yaml`, which lists the classes.

    It is an Ultralytics data set once the photos are in `images/` beside it: `images/a/x.jpg` goes with
    `labels/a/x.txt`. Files therefore have the photos' own names, and two photos that differ only in their endings
    cannot be in one data set.
    """

    file, part, ending = "yolo.yaml", "labels", ".txt"

    @classmethod
    def name_of(cls, photo: str, folder: str, name: str) -> str:
        """See `Export.name_of`."""
        member = photo.partition("::")[0] if photo.startswith(TAR) else photo
        return f"{folder}/{Path(member).stem}".lstrip("/")

    @classmethod
    def own_file(cls, name: str) -> str:
        """See `Export.own_file`; Ultralytics looks from the last folder `images` of a path."""
        return f"{cls.part}/".join(f"/images/{name}".rsplit("images/", 1)).lstrip("/") + cls.ending

    def _stem(self) -> str:
        stem = self._name if self._name is not None else self.name_of(self.images_of[-1], "", "")
        if stem.casefold() in self._stems:
            raise OutputError(twins(self.own_file(stem)))
        self._stems.add(stem.casefold())
        return stem

    def _take(self, image_id: int, result: Any) -> None:
        found = as_regions(result)
        self._put(self._own_path(), yolo_rows(found.regions, found.labels.tolist()).encode())

    def close(self) -> list[Path]:
        """See `Export.close`."""
        import yaml

        # Without a `path`, Ultralytics takes the folders beside the file.
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.vocabulary))}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        return [self._renew(self.file, text.encode(errors="backslashreplace")), self.folder / self.part]


class GeoJsonExport(Export):
    """A FeatureCollection for each photo, in `geojson/`, in pixel coordinates."""

    part, ending = "geojson", ".geojson"

    def _take(self, image_id: int, result: Any) -> None:
        found = as_regions(result)
        self._put(self._own_path(), as_json(geojson_content(found.regions, found.found, found.confidence)))

    def close(self) -> list[Path]:
        """See `Export.close`; nothing was held."""
        return [self.folder / self.part]


class ArraysExport(Export):
    """An archive of arrays for each photo, in `npz/`.

    names (C,); labels int16 (H, W), -1 for nothing; confidence float32 (H, W). For regions: masks, bits of (R, H, W)
    packed along the last axis, read by `numpy.unpackbits(masks, axis=-1, count=W)`; labels int64 (R,) and
    confidence float32 (R,).
    """

    part, ending = "npz", ".npz"

    def _take(self, image_id: int, result: Any) -> None:
        own: dict[str, Any] = {"labels": result.labels, "confidence": result.confidence}
        if isinstance(result, RegionResult):
            own["masks"] = np.packbits(result.masks, axis=-1)
        buffer = io.BytesIO()
        np.savez(buffer, names=np.array(self.vocabulary), **own)
        self._put(self._own_path(), buffer.getvalue())

    def close(self) -> list[Path]:
        """See `Export.close`; nothing was held."""
        return [self.folder / self.part]


class LabelMapExport(Export):
    """A PNG of class numbers for each photo, in `png/`, and `legend.json`: number, name and colour of each class.

    Up to 255 classes make a palette PNG, with 255 for nothing; more make 16-bit grey, with 65535 for nothing.
    """

    file, part, ending = "legend.json", "png", ".png"

    def _take(self, image_id: int, result: Any) -> None:
        labelled = result.semantic() if isinstance(result, RegionResult) else result
        self._put(self._own_path(), labelled.label_png())

    def close(self) -> list[Path]:
        """See `Export.close`."""
        rows = [
            {"number": number, "name": name, "colour": colour}
            for number, (name, colour) in enumerate(
                zip(self.vocabulary, palette(len(self.vocabulary)).tolist(), strict=True)
            )
        ]
        nothing = 255 if len(rows) <= 255 else 65535
        return [self._write(self.file, {"classes": rows, "nothing": nothing}), self.folder / self.part]


class GalleryExport(Export):
    """`gallery.html`, all photos with their labels, an opacity slider, a label filter and warnings, in a single file.

    Photos are shrunk to 640 pixels; each takes about 60 kB of the file.
    """

    file, wants_photo = "gallery.html", True

    def _take(self, image_id: int, result: Any) -> None:
        labelled = result.semantic() if isinstance(result, RegionResult) else result
        photo = Image.fromarray(labelled.image)
        photo.thumbnail((GALLERY_SIDE, GALLERY_SIDE))
        ids = np.array(Image.fromarray(labelled.labels.astype(np.int32)).resize(photo.size, Image.Resampling.NEAREST))
        coded = np.stack([ids & 255, ids >> 8 & 255, 0 * ids], axis=-1).astype(np.uint8)  # -1 is 65535
        shares = [labelled.fractions()[name] for name in self.vocabulary]
        order = sorted((number for number, share in enumerate(shares) if share), key=lambda number: -shares[number])
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=85)
        self.annotations.append(
            {
                "photo": b64encode(buffer.getvalue()).decode(),
                "map": b64encode(encode_png(coded)).decode(),
                "width": photo.width,
                "height": photo.height,
                "shares": [[number, round(shares[number], 4)] for number in order],
                "warnings": list(result.warnings),
            }
        )

    def close(self) -> list[Path]:
        """See `Export.close`."""
        photos = [{"name": told["file_name"], **row} for told, row in zip(self.images(), self.annotations, strict=True)]
        colours = palette(len(self.vocabulary)).tolist()
        data = json_text({"names": self.vocabulary, "colours": colours, "photos": photos}).replace("<", r"\u003c")
        page, script = (
            Path(__file__).with_name(f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("html", "js")
        )
        allowed = f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
        for mark, text in (("{{hash}}", allowed), ("{{script}}", script), ("{{data}}", data)):
            page = page.replace(mark, text)
        return [self._renew(self.file, page.encode())]


EXPORTS: dict[str, type[Export]] = {
    "coco": CocoExport,
    "panoptic": PanopticExport,
    "labelme": LabelMeExport,
    "labelstudio": LabelStudioExport,
    "yolo": YoloExport,
    "geojson": GeoJsonExport,
    "png": LabelMapExport,
    "npz": ArraysExport,
    "html": GalleryExport,
}


def parse_kinds(text: str) -> tuple[str, ...]:
    """Split comma-separated names of `EXPORTS`, without repeats.

    Raises:
        OptionError: a name is unknown, or there is none.
    """
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",")))
    for kind in kinds:
        if kind not in EXPORTS:
            raise OptionError(f"no export {kind!r}{suggest(kind, EXPORTS)}; there are {', '.join(EXPORTS)}")
    return kinds


def open_export(
    kind: str,
    folder: str | os.PathLike[str],
    vocabulary: Sequence[str],
    *,
    stuff: Collection[str] = (),
    overwrite: bool = False,
) -> Export:
    """Open an export by name, one of `EXPORTS`; see `Export`.

    Raises:
        OptionError: the kind is unknown.
        DensevlError: a name in `stuff` is not a class.
    """
    return EXPORTS[parse_kinds(kind)[0]](folder, vocabulary, stuff, overwrite)
