"""R9: memory goes with windows and blocks, not with the image; and blocks give what the whole image gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from attacks.spending import MEASURED
from densevl import recipes
from densevl.backbones import load_backbone
from densevl.cli import app
from densevl.errors import ImageError, OptionError, RecipeError
from densevl.images import pixel_limit, read_image
from densevl.inference import WindowGrid
from densevl.inference.blocks import HELD, LEAST_ROWS, block_rows
from densevl.pipelines.rasters.result import BlockSegmenter
from densevl.pipelines.segmentation.refinement import KNOWN

pytest.importorskip("rasterio", reason="needs the extra geo")

LABELS = [f"thing {number}" for number in range(8)]
GROWN = """
import json, sys
from densevl.pipelines.rasters.result import BlockSegmenter
small, tall = sys.argv[1:3]
labels = sys.argv[3].split(",")
segment = BlockSegmenter("mini", background="none")
told = []
for run in (
    lambda: segment(small, labels).save("small.tif"),
    lambda: segment(tall, labels).save("tall.tif"),
    lambda: segment.segmenter(tall, labels),
):
    run()
    told.append(peak())
print(json.dumps(told))
"""


def noise(path: Path, height: int, width: int) -> Path:
    coarse = np.random.default_rng(height).integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), np.uint8)
    Image.fromarray(coarse.repeat(20, 0).repeat(20, 1)[:height, :width]).save(path)
    return path


def test_a_tall_image_takes_the_memory_of_a_small_one(tmp_path: Path) -> None:
    """Of 600 x 300 and 3,000 x 300 pixels; at once the second takes some 35 MB more."""
    pictures = [noise(tmp_path / f"{height}.png", height, 300) for height in (600, 3000)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED + GROWN, *map(str, pictures), ",".join(LABELS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, tall, at_once = json.loads(done.stdout)
    assert tall - small < 20, (small, tall, at_once)  # MB; 8 to 12 as a rule, of buffers that grow once
    assert at_once - tall > 20, (small, tall, at_once)


@pytest.mark.parametrize("texts", [1, 150, 3000])
@pytest.mark.parametrize("width", [100, 2000, 20_000, 100_000])
def test_scores_that_are_held_are_bounded_at_any_width(width: int, texts: int) -> None:
    """But for the least that any image needs: the rows of windows over `LEAST_ROWS` rows of pixels."""
    windows = WindowGrid.place(20_000, width, 96, None, 8)
    rows = block_rows(windows, 20_000, texts)
    each = windows.rows.tokens * windows.cols.tokens * len(windows.cols.starts) * texts * 4
    touched = len(windows.block(True, 20_000, 9984, 9984 + rows)[0])
    assert rows == LEAST_ROWS or each * touched <= HELD


@pytest.fixture(scope="module")
def mini() -> Any:
    return load_backbone("mini", device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("picture") / "x.png", 90, 110)


def same(segment: BlockSegmenter, picture: Path, rounding: float = 0) -> None:
    whole = segment.segmenter(picture, LABELS[:4])
    blocks = list(segment(picture, LABELS[:4]).blocks())
    assert np.array_equal(np.concatenate([found for _, found, _ in blocks]), whole.labels)
    assert np.abs(np.concatenate([found for *_, found in blocks]) - whole.confidence).max() <= rounding


@pytest.mark.parametrize("background", ["none", 0.3, "background, wall"], ids=["none", "threshold", "words"])
@pytest.mark.parametrize("blend", ["pixel", "patch"])
@pytest.mark.parametrize("plan", ["tiles", "sliding"])
def test_blocks_equal_the_whole_image_for_each_plan(mini, picture, monkeypatch, plan, blend, background) -> None:
    monkeypatch.setattr("densevl.inference.blocks.HELD", 1)  # the lowest blocks, so that there are several
    same(BlockSegmenter(mini, background=background, protocol={"plan": plan, "crop": 40, "blend": blend}), picture)


def test_each_recipe_equals_the_whole_image_or_is_refused_with_the_reason(mini, picture) -> None:
    done, refused = [], {}
    for name in recipes.names():
        borrowed = dict.fromkeys({"proxy", "sam"} & recipes.get(name).reads, "mini-sam")
        try:
            segment = BlockSegmenter(mini, name, protocol={"crop": 40}, **borrowed)
        except RecipeError as error:
            refused[name] = str(error)
            continue
        same(segment, picture, rounding=2e-6 if name == "clip_feature_surgery" else 0)  # sums over all windows
        done.append(name)
    assert {"sclip", "naclip", "clearclip"} <= set(done)
    assert {"proxyclip", "lposs"} <= set(refused)
    assert all("whole picture" in said and "\n" not in said for said in refused.values()), refused


@pytest.mark.parametrize("refine", [name for name in KNOWN if name != "none"])
def test_each_refinement_is_refused_with_the_reason(mini, refine) -> None:
    with pytest.raises((OptionError, RecipeError), match=r"refine|upsampler"):
        BlockSegmenter(mini, refine=refine, proxy="mini-sam")


def test_no_refinement_is_refused_where_none_is_asked_for(mini, picture) -> None:
    same(BlockSegmenter(mini, refine="none", protocol={"crop": 40}), picture)


def test_the_cap_holds_within_and_ends_with_its_block(picture) -> None:
    with pixel_limit(90 * 110 - 1), pytest.raises(ImageError, match=r"over the limit of 9,899.*--max-pixels"):
        read_image(picture)
    with pixel_limit(90 * 110 - 1), pixel_limit(None):
        assert read_image(picture).shape == (90, 110, 3)
    assert read_image(picture).shape == (90, 110, 3)
    with pytest.raises(ImageError, match="at least 1"), pixel_limit(0):
        pass


def test_max_pixels_lifts_the_cap(picture, tmp_path, monkeypatch) -> None:
    """Without it one image goes block by block, and of two each is a line of its own."""
    monkeypatch.setattr("densevl.images.limit.MAX_PIXELS", 9_000)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(picture.read_bytes())
    words = ["segment", str(tmp_path / "in"), "--labels", "dog, cat", "--model", "mini", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2, refused.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert ["over the limit of 9,000" in row["error"] for row in rows] == [True, True]
    for _ in range(2):  # done, and found done
        done = CliRunner().invoke(app, [*words, "--max-pixels", "1"])
        assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png"))[::3] == ["a.png", "b.png"]
