"""Write the rendered benchmark: scenes with labels, instances and panoptic maps, and surfaces in MVTec's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from densevl.errors import DensevlError, OutputError
from densevl.rle import class_runs, coco_segmentation

from . import art
from .captions import DEFECTS
from .nouns import BENCHMARK_NOUNS, all_nouns
from .scenes import Scene, SceneMaker
from .sprites import SpriteBook, sprite_size
from .surfaces import SurfaceMaker, solid_textures
from .textures import all_textures

SEED = 202_611
"""Seeds from here on belong to the benchmark; train with smaller ones."""
GROUND = 255
"""Id of the background in panoptic maps. It is a segment and not void, where wrong segments would go unpunished."""
SHIPPED = "shipped"
"""The style choice that takes all training-licence art."""


@dataclass(frozen=True)
class Plan:
    """The size of the benchmark. Tests write less than the defaults.

    Attributes:
        size: side of a scene in pixels; the large scenes have twice that.
        scenes: number of scenes, and of large scenes.
        single: scenes with one object, per noun.
        references: flawless training surfaces per material.
        flawless: flawless test surfaces per material.
        damaged: test surfaces per material and kind of damage.
        seed: everything follows from it.
    """

    size: int = 96
    scenes: int = 200
    single: int = 15
    references: int = 4
    flawless: int = 8
    damaged: int = 6
    seed: int = SEED


@dataclass
class _Writer:
    """Writes arrays as PNG and keeps a SHA-256 over all of them."""

    root: Path
    digest: Any = field(default_factory=hashlib.sha256)
    files: int = 0
    bytes: int = 0

    def png(self, name: str, pixels: np.ndarray | None) -> None:
        """Write uint8 (H, W) or (H, W, 3); bool becomes 0 and 255."""
        assert pixels is not None
        pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Fast zlib with the filter of PNG's own heuristic: half the time of Pillow's `optimize` and as small.
        rgb = pixels if pixels.ndim == 2 else pixels[..., ::-1]
        if not cv2.imwrite(str(path), rgb, [cv2.IMWRITE_PNG_COMPRESSION, 6]):
            raise OutputError(f"cannot write {path}")
        self.digest.update(f"{name} {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
        self.files += 1
        self.bytes += path.stat().st_size

    def json(self, name: str, content: Any) -> None:
        """Write and digest a JSON file."""
        text = json.dumps(content, indent=None, separators=(",", ":"), sort_keys=True)
        (self.root / name).write_text(text + "\n", encoding="utf-8")
        self.digest.update(f"{name} {text}".encode())


def _annotate(number: int, scene: Scene) -> tuple[list[dict[str, Any]], list[dict[str, Any]], np.ndarray]:
    """Return COCO instances, panoptic segments and the panoptic id map of a scene."""
    instances, segments = [], []
    side = len(scene.image)
    ids = np.where(scene.instances < 0, GROUND, scene.instances + 1).astype(np.uint8)
    for index, runs in class_runs(ids).items():
        category = 0 if index == GROUND else scene.nouns[index - 1] + 1
        common = {"category_id": category, "area": runs.area, "bbox": list(runs.box), "iscrowd": 0}
        segments.append(common | {"id": index})
        if index != GROUND:
            instances.append(
                common
                | {"id": number * 100 + index, "image_id": number}
                | {"segmentation": coco_segmentation(runs.counts, side, side, compressed=True)}
            )
    return instances, segments, ids


def _scenes(out: _Writer, folder: str, scenes: Sequence[tuple[Scene, str]]) -> None:
    """Write images, labels, panoptic maps and the two COCO files of a set of scenes."""
    images, instances, panoptic = [], [], []
    for number, (scene, pairs) in enumerate(scenes):
        name = f"{number:04d}.png"
        found, segments, ids = _annotate(number, scene)
        out.png(f"{folder}/images/{name}", scene.image)
        out.png(f"{folder}/labels/{name}", (scene.objects + 1).astype(np.uint8))
        # COCO's panoptic PNG spells an id as R + 256 G + 65536 B.
        out.png(f"{folder}/panoptic/{name}", np.stack([ids, ids * 0, ids * 0], -1))
        side = len(scene.image)
        texture = all_textures()[scene.texture].name
        images.append(
            {"id": number, "file_name": name, "width": side, "height": side}
            | {"caption": scene.caption, "texture": texture, "pairs": pairs}
        )
        instances += found
        panoptic.append({"image_id": number, "file_name": name, "segments_info": segments})
    things = [{"id": i + 1, "name": n.name, "isthing": 1} for i, n in enumerate(all_nouns()[:BENCHMARK_NOUNS])]
    stuff = [{"id": 0, "name": "background", "isthing": 0}]
    out.json(f"{folder}/instances.json", {"images": images, "categories": things, "annotations": instances})
    out.json(f"{folder}/panoptic.json", {"images": images, "categories": stuff + things, "annotations": panoptic})


def _surfaces(out: _Writer, plan: Plan) -> None:
    """Write one folder per material as MVTec AD does; all images of a material show parts of one surface."""
    for texture in solid_textures():
        maker = SurfaceMaker(plan.size, seed=plan.seed + 10 + texture, variants=1)
        base = f"anomaly/{all_textures()[texture].name.replace(' ', '_')}"
        for number in range(plan.references):
            out.png(f"{base}/train/good/{number:03d}.png", maker.of(texture, None).image)
        for number in range(plan.flawless):
            out.png(f"{base}/test/good/{number:03d}.png", maker.of(texture, None).image)
        for kind in DEFECTS:
            for number in range(plan.damaged):
                scene = maker.of(texture, kind)
                out.png(f"{base}/test/{kind}/{number:03d}.png", scene.image)
                out.png(f"{base}/ground_truth/{kind}/{number:03d}_mask.png", scene.defect)


def _versions() -> dict[str, str]:
    """Versions of what the pixels depend on."""
    found = {}
    for package in ("numpy", "opencv-python", "opencv-python-headless", "resvg_py"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(
    root: Path, style: str | SpriteBook = SHIPPED, plan: Plan | None = None, *, folder: Path | None = None
) -> dict[str, Any]:
    """Write the benchmark and return its manifest.

    Args:
        root: a folder that is new or empty.
        style: "shipped" for the training-licence art, the name of one style of `art.STYLES`, or a `SpriteBook`.
        plan: its size; the default is the whole benchmark.
        folder: the art cache; the default is `art.default_folder()`.

    Raises:
        OutputError: If the folder is not empty.
        art.ArtError: If the art is unavailable.
    """
    plan = plan or Plan()
    if root.exists() and any(root.iterdir()):
        raise OutputError(f"{root} is not empty: name a new folder")
    book, sources = _book(style, plan.size, folder)
    root.mkdir(parents=True, exist_ok=True)
    out = _Writer(root)
    nouns = [n for n in range(BENCHMARK_NOUNS) if n in book.nouns]

    def maker(offset: int, held_out: bool | None, tiles: int = 1) -> SceneMaker:
        return SceneMaker(
            plan.size,
            styles=book,
            nouns=nouns,
            seed=plan.seed + offset,
            held_out=held_out,
            objects=(2, 3),
            augment=False,
            tiles=tiles,
        )

    # Scenes of seen and held-out pairs alternate, with the same numbers of objects.
    makers = {"seen": maker(0, False), "held-out": maker(1, True)}
    kinds = [("seen", "held-out")[i % 2] for i in range(plan.scenes)]
    _scenes(out, "scenes", [(makers[k].of(*makers[k].choose(2 + i // 2 % 2)), k) for i, k in enumerate(kinds)])
    large = maker(2, None, tiles=2)
    _scenes(out, "scenes2x", [(large.scene(), "any") for _ in range(plan.scenes)])
    alone = maker(3, None)
    for noun in nouns:
        for number in range(plan.single):
            out.png(f"single/{all_nouns()[noun].name}/{number:02d}.png", alone.single(noun).image)
    _surfaces(out, plan)

    names = {"nouns": ["background", *(n.name for n in all_nouns()[:BENCHMARK_NOUNS])]}
    out.json("names.json", names | {"textures": [t.name for t in all_textures()], "defects": list(DEFECTS)})
    manifest: dict[str, Any] = {
        "style": style if isinstance(style, str) else "injected",
        "plan": vars(plan),
        "art": sources,
    }
    manifest |= {"versions": _versions(), "files": out.files, "bytes": out.bytes, "sha256": out.digest.hexdigest()}
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _book(style: str | SpriteBook, size: int, folder: Path | None) -> tuple[SpriteBook, list[dict[str, Any]]]:
    """Return the drawings of a style choice and their sources."""
    if isinstance(style, SpriteBook):
        return style, []
    names = art.TRAIN_STYLES if style == SHIPPED else (style,)
    book = SpriteBook.load(names, sprite_size(size), folder)
    if missing := [all_nouns()[n].name for n in range(BENCHMARK_NOUNS) if n not in book.nouns]:
        raise DensevlError(f"style '{style}' lacks {', '.join(missing)}")
    return book, [{"style": name} | vars(art.style(name)) for name in names]
