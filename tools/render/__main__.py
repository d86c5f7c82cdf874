"""The command: python -m tools.render benchmark | sheet | scenes | surfaces."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
from PIL import Image

from densevl.errors import DensevlError

from . import art, benchmark, sheets
from .scenes import SceneMaker
from .sprites import SpriteBook, sprite_size
from .surfaces import SurfaceMaker


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.render", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str, out: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("--out", type=Path, required=True, help=out)
        made.add_argument("--art", type=Path, help="folder of the icon sets (default: art in densevl's cache)")
        return made

    sub = command("benchmark", "write the rendered benchmark", "a new folder")
    sub.add_argument("--style", default=benchmark.SHIPPED, choices=[benchmark.SHIPPED, *art.STYLES])
    sub.add_argument("--size", type=int, default=96, help="side of a scene in pixels (default 96)")
    sub.add_argument("--scenes", type=int, default=200, help="number of scenes (default 200)")
    sub = command("sheet", "draw every noun in every style", "a PNG")
    sub.add_argument("--styles", nargs="+", default=list(art.STYLES), choices=list(art.STYLES))
    sub = command("scenes", "draw example scenes beside their masks", "a PNG")
    sub.add_argument("--styles", nargs="+", default=list(art.TRAIN_STYLES), choices=list(art.STYLES))
    sub.add_argument("--size", type=int, default=96)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--plain", action="store_true", help="without the strong changes of style")
    sub = command("surfaces", "draw example surfaces beside the masks of their damage", "a PNG")
    sub.add_argument("--size", type=int, default=96)
    sub.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 for a mistake of the user's."""
    given = _parser().parse_args(arguments)
    cv2.setNumThreads(1)
    try:
        if given.command == "benchmark":
            plan = benchmark.Plan(size=given.size, scenes=given.scenes)
            done = benchmark.write(given.out, given.style, plan, folder=given.art)
            print(f"{given.out}: {done['files']} images, {done['bytes'] / 1e6:.1f} MB, sha256 {done['sha256']}")
            return 0
        if given.command == "sheet":
            book = SpriteBook.load(given.styles, 96, given.art)
            sheet = sheets.noun_sheet(book, book.nouns)
        elif given.command == "scenes":
            book = SpriteBook.load(given.styles, sprite_size(given.size), given.art)
            maker = SceneMaker(given.size, styles=book, seed=given.seed, augment=not given.plain)
            sheet = sheets.scene_sheet([maker.scene() for _ in range(60)], columns=10)
        else:
            sheet = sheets.surface_sheet(SurfaceMaker(given.size, seed=given.seed))
        Image.fromarray(sheet).save(given.out)
    except DensevlError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
