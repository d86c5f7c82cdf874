"""Write SHA256SUMS: the SHA-256 of the shipped weights, tables and examples.

    python -m tools.shipped_sums

Run it after an intended change of one of them; a test compares. `sha256sum --check SHA256SUMS` does so without Python.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from densevl import digest

ROOT = Path(__file__).parents[1]
SUMS = ROOT / "SHA256SUMS"
FOLDERS = ("densevl", "demo")
ENDINGS = {".safetensors", ".json", ".txt", ".jpg", ".png", ".ttf", ".woff2"}
"""Extensions of data. Sources, including those of the page, are in the history as text."""


def shipped(root: Path = ROOT) -> Iterator[Path]:
    """Return the shipped files, relative to the root, in order."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in ENDINGS and not {"densevl-out", "__pycache__"} & set(path.parts):
                yield path.relative_to(root)


def sums(root: Path = ROOT) -> str:
    """Return a line for each, as sha256sum writes it."""
    return "".join(f"{digest.of_file(root / path)}  {path.as_posix()}\n" for path in shipped(root))


if __name__ == "__main__":
    SUMS.write_text(sums(), encoding="utf-8")
    sys.stdout.write(f"{SUMS.name}: {len(list(shipped()))} files\n")
