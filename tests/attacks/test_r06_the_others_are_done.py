"""R6: 1,000 images of which 10 are bad are 990 results and 10 rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from densevl.cli.images import RUNNING, run_images
from densevl.images import find_images, read_image
from densevl.pipelines.folder.each import one_by_one
from densevl.pipelines.folder.tasks import CLASSIFY, Task


class _Mean:
    """The least result that is written for an image: its mean colour."""

    def __init__(self, image: str) -> None:
        self.mean = read_image(image).mean()

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        path.write_text(json.dumps({"densevl": "1", "mean": float(self.mean)}))


class _Work:
    """Loads nothing."""

    def task(self, device: str | None = None) -> Task:
        return Task(replace(CLASSIFY, endings=(".json",)), one_by_one(_Mean), {"model": "none"}, None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """1,000 pictures, one of each hundred cut."""
    folder = tmp_path_factory.mktemp("thousand")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / "0000.png")
    whole = (folder / "0000.png").read_bytes()
    for number in range(1000):
        (folder / f"{number:04d}.png").write_bytes(whole[:40] if number % 100 == 50 else whole)
    return folder


def _run(photos: Path, out: Path, *, strict: bool = False) -> tuple[set[str], list[str]]:
    """Names of results, and of the rows of errors.jsonl; the exit code is 3."""
    given = dict.fromkeys(RUNNING) | {"out": str(out), "strict": strict, "quiet": True}
    with pytest.raises(typer.Exit) as ended:
        run_images(_Work(), find_images(photos), given, [], lambda content: "")
    assert ended.value.exit_code == 3
    rows = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    return {path.stem for path in out.glob("0*.json")}, [Path(row["image"]).stem for row in rows]


def test_ten_bad_of_a_thousand_are_ten_rows_and_the_others_are_done(photos, tmp_path) -> None:
    results, bad = _run(photos, tmp_path / "out")
    assert bad == [f"{number:04d}" for number in range(50, 1000, 100)]
    assert len(results) == 990
    assert not results & set(bad)
    assert results | set(bad) == {path.stem for path in photos.iterdir()}


def test_strict_stops_at_the_first(photos, tmp_path) -> None:
    results, bad = _run(photos, tmp_path / "out", strict=True)
    assert (len(results), bad) == (50, ["0050"])
