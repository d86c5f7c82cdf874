"""Icon sets from npm, rendered to sprites with resvg-py. Nothing of a package is executed; one JSON member is read."""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densevl import digest
from densevl.cache import cache_dir
from densevl.errors import DensevlError, suggest

from .nouns import all_nouns

MEMBER = "package/icons.json"
MEMBER_LIMIT = 256 << 20
FOREIGN = re.compile(r"<(image|script|foreignObject)\b|href\s*=\s*[\"'](?!#)", re.IGNORECASE)
"""SVG that would reach outside itself: never rendered."""


class ArtError(DensevlError):
    """The icon sets cannot be fetched, differ from the pinned ones, or cannot be rendered."""


@dataclass(frozen=True)
class Style:
    """An icon set on npm, pinned. `train` is False for licences that must not enter shipped weights or data."""

    package: str
    version: str
    sha256: str
    licence: str
    source: str
    train: bool


STYLES = {
    "fluent-flat": Style(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        train=True,
    ),
    "fluent": Style(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        train=True,
    ),
    "noto": Style(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        train=True,
    ),
    "noto-v1": Style(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        train=True,
    ),
    "twemoji": Style(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
        train=False,
    ),
    "openmoji": Style(
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "https://github.com/hfg-gmuend/openmoji",
        train=False,
    ),
}
TRAIN_STYLES = tuple(name for name, style in STYLES.items() if style.train)
"""The styles whose art may be trained on and shipped (MIT, Apache-2.0)."""


def default_folder() -> Path:
    """Return the art cache of the user: `art` in densevl's cache folder."""
    return cache_dir() / "art"


def style(name: str) -> Style:
    """Return a pinned style by name, or raise `ArtError` naming the closest ones."""
    if name not in STYLES:
        raise ArtError(f"no art style '{name}'{suggest(name, STYLES)}; there are {', '.join(STYLES)}")
    return STYLES[name]


def fetch(name: str, folder: Path) -> Path:
    """Return the tarball of a style in `folder`, fetched with `npm pack` if it is not there, its SHA-256 checked."""
    pinned = style(name)
    path = folder / f"{pinned.package[1:].replace('/', '-')}-{pinned.version}.tgz"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise ArtError(
                f"npm is not installed, and {pinned.package} {pinned.version} is not in {folder}: install npm"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [npm, "pack", "--silent", "--ignore-scripts", f"{pinned.package}@{pinned.version}"]
            run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            made = Path(scratch) / path.name
            if run.returncode or not made.exists():
                reason = (run.stderr.strip().splitlines() or ["no output"])[0]
                raise ArtError(f"npm could not fetch {pinned.package}@{pinned.version}: {reason}")
            made.replace(path)
    if digest.of_file(path) != pinned.sha256:
        raise ArtError(f"{path} is not the pinned {pinned.package} {pinned.version}: delete it and try again")
    return path


def read_icons(tarball: Path) -> dict[str, Any]:
    """Return the icon JSON of a package: one plain member by its exact name, read in memory, never unpacked to disk."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            if member.name == MEMBER and member.isreg() and member.size <= MEMBER_LIMIT:
                content = archive.extractfile(member)
                return json.load(content) if content else {}
    raise ArtError(f"{tarball} holds no plain {MEMBER} of at most {MEMBER_LIMIT >> 20} MiB")


def svg_of(icons: dict[str, Any], slug: str) -> str | None:
    """Return the SVG of an icon (aliases that only rename are followed), None if the set lacks it."""
    alias = icons.get("aliases", {}).get(slug)
    if alias is not None:
        return svg_of(icons, alias["parent"]) if set(alias) <= {"parent", "hidden"} else None
    icon = icons["icons"].get(slug)
    if icon is None:
        return None
    if FOREIGN.search(icon["body"]):
        raise ArtError(f"icon '{slug}' refers to something outside itself and is not rendered")
    box = [icon.get(key, icons.get(key, default)) for key, default in zip(("left", "top"), (0, 0), strict=True)]
    box += [icon.get(key, icons.get(key, 16)) for key in ("width", "height")]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'


def render(svg: str, size: int) -> np.ndarray:
    """Render an SVG, cut to what is drawn; longest side `size`: uint8 (h, w, 4), RGB premultiplied by alpha."""
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise ArtError("drawing the icons needs the package 'resvg-py': pip install resvg-py") from error
    big = np.asarray(Image.open(io.BytesIO(resvg.svg_to_bytes(svg_string=svg, width=2 * size, skip_system_fonts=True))))
    rows, columns = np.nonzero(big[..., 3] > 12)
    cut = big[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = size / max(cut.shape[:2])
    target = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
    # Pillow resizes RGBA through premultiplied colours, so no dark fringe appears.
    small = np.asarray(Image.fromarray(cut).resize(target, Image.Resampling.BOX)).astype(np.uint16)
    small[..., :3] = (small[..., :3] * small[..., 3:] + 127) // 255
    return small.astype(np.uint8)


def kept_sprites(name: str, size: int, folder: Path) -> Path:
    """Return where the sprites of a style are kept; the name changes with nouns.json, version and size."""
    key = zlib.crc32("\n".join(_wanted()).encode())
    return folder / f"sprites-{name}-{style(name).version}-{size}-{key:08x}.npz"


def _wanted() -> list[str]:
    """Return the icon slugs of all nouns, sorted."""
    return sorted({icon for noun in all_nouns() for icon in noun.icons})


def load_style(name: str, size: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Return sprites by icon slug for the icons of all nouns, from `folder` or freshly rendered and kept there.

    Args:
        name: a key of `STYLES`.
        size: longest side in pixels.
        folder: art cache; the default is `default_folder()`.

    Returns:
        uint8 (h, w, 4) arrays, RGB premultiplied by alpha; icons that the set lacks are left out.
    """
    folder = folder or default_folder()
    kept = kept_sprites(name, size, folder)
    if kept.exists():
        with np.load(kept) as arrays:
            return dict(arrays)
    icons = read_icons(fetch(name, folder))
    sprites = {slug: render(svg, size) for slug in _wanted() if (svg := svg_of(icons, slug)) is not None}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        np.savez_compressed(Path(scratch) / "sprites.npz", allow_pickle=False, **sprites)
        (Path(scratch) / "sprites.npz").replace(kept)
    return sprites
