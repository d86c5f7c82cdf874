"""`densevl regions` with clicks, boxes and exports, and `densevl search`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import PHOTOS
from densevl.cli import app
from densevl.errors import LabelError, MissingExtraError
from densevl.evaluation.metrics.panoptic import coco_ids
from densevl.images import read_image
from densevl.pipelines.regions.sheet import hit_sheet
from densevl.proposals import Proposals
from densevl.proposals.decoded import Decoded
from densevl.regions.index import Hit

SCENES = PHOTOS.parent / "scenes"
WATER = str(SCENES / "water.png")
LABELS = "elephant,fish|shark,house"


def run(*arguments) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    return done.exit_code, done.stdout, done.stderr


def regions(*arguments, out) -> tuple[int, str, str]:
    return run("regions", WATER, "--labels", LABELS, "--model", "mini", "--out", out, *arguments)


def test_clicks_and_boxes_get_names(tmp_path) -> None:
    pytest.importorskip("segment_anything")
    prompts = ["--point", "116,108", "--box", "12,130,60,182"]
    code, out, err = regions(*prompts, out=tmp_path)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("water.png 116,108: elephant 0.")
    assert lines[1].startswith("water.png 12,130,60,182: house 0.")
    assert len(json.loads((tmp_path / "water.json").read_text())["regions"]) == 2


def test_a_decoder_s_masks_are_named_by_both(tmp_path) -> None:
    photo = read_image(WATER)
    masks = np.zeros((3, *photo.shape[:2]), bool)
    masks[0, 66:142, 94:140] = masks[1, 130:182, 12:60] = True
    logits = np.log([[0.05, 0.05, 0.9], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]])
    Decoded(masks, logits, {0: "elephant", 1: "house"}).save(tmp_path / "files" / "water.npz")
    options = ["--decoder", tmp_path / "files", "--background", "none"]
    code, out, err = regions(*options, "--clip-share", "0,1", out=tmp_path / "own")
    assert code == 0, err
    assert out.splitlines()[0] == "water.png: 1 house"  # the first is "no object", the last has no pixel
    saved = json.loads((tmp_path / "own" / "water.json").read_text())
    assert saved["meta"]["decoder"] == {"classes": ["elephant", "house"], "clip_share": [0.0, 1.0]}
    assert saved["unnamed"][0]["score"] == pytest.approx(0.9, abs=1e-4)
    assert "no decoder file for" in run("regions", SCENES / "wood.png", "--labels", LABELS, *options)[2]
    assert "--labels" in run("regions", WATER, *options)[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--decoder x.npz --proposals grid", "--decoder has its own regions, but --proposals"),
        ("--decoder x.npz --sam-checkpoint x.pth", "--sam-checkpoint"),
        ("--decoder x.npz --pieces", "--pieces"),
        ("--decoder x.npz --tile 64", "--tile"),
        ("--clip-share odise", "--clip-share is used only with --decoder"),
        ("--proposals grid --sam-checkpoint x.pth", "--sam-checkpoint is for --proposals sam"),
    ],
)
def test_an_option_that_another_leaves_without_effect_is_refused(options, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.npz", "x.pth"):
        Path(name).touch()
    code, _, err = run("regions", WATER, "--labels", LABELS, *options.split())
    assert code == 2
    assert said in err


def test_boxes_of_a_grid_stay_rectangles_and_exports_are_written(tmp_path) -> None:
    options = ["--proposals", "grid", "--box", "94,66,140,142", "--box", "12,130,60,182", "--stuff", "house"]
    options += ["--background", "none"]
    code, out, err = regions(*options, "--as", "coco,panoptic,labelme", out=tmp_path)
    assert code == 0, err
    assert "coco.json" in out
    first = json.loads((tmp_path / "coco.json").read_text())["annotations"][0]
    assert first["bbox"] == [94, 66, 46, 76]
    panoptic = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["isthing"] for entry in panoptic["categories"]] == [1, 1, 0]
    ids = coco_ids(np.array(Image.open(tmp_path / "panoptic" / "water.png")))
    assert {info["id"] for info in panoptic["annotations"][0]["segments_info"]} == set(np.unique(ids)) - {0}
    shapes = json.loads((tmp_path / "labelme" / "water.json").read_text())["shapes"]
    assert shapes[0]["points"][0] == [94, 66]


def test_objects_are_in_pieces_and_not_repeated(tmp_path) -> None:
    pytest.importorskip("segment_anything")
    code, _, err = regions("--objects", "--pieces", "--background", "none", out=tmp_path)
    assert code == 0, err
    content = json.loads((tmp_path / "water.json").read_text())["regions"]
    assert "elephant" in {entry["category_name"] for entry in content}
    assert [entry["score"] for entry in content] == sorted((entry["score"] for entry in content), reverse=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--point", "116"], "--point '116' is not x,y: 2 numbers"),
        (["--box", "1,2,x,4"], "--box '1,2,x,4' is not x0,y0,x1,y1"),
        (["--point", "1,1", "--proposals", "grid"], "points need a SAM"),
        (["--point", "500,1"], "outside the image of 192x192"),
        (["--box", "900,900,950,950"], "outside an image of 192x192"),
        (["--box", "0.1,0.1,0.5,0.6"], "they look normalised"),
        (["--box", "9,9,1,1"], "box 0 is (9, 9, 1, 1)"),
        (["--as", "yola"], "'yola' is not known"),
        (["--as", "panoptic", "--stuff", "sea"], "no class 'sea' to be stuff"),
        (["--pieces", "--proposals", "clusters"], "do not work with clusters"),
    ],
)
def test_a_mistake_is_one_line(options, reason, tmp_path) -> None:
    code, _, err = regions(*options, out=tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert reason in err


def test_an_image_called_as_an_export_gets_another_name(tmp_path) -> None:
    shutil.copy(WATER, tmp_path / "coco.png")
    command = ["regions", tmp_path / "coco.png", "--labels", "cat", "--as", "coco", "--model", "mini"]
    code, _, err = run(*command, "--proposals", "grid", "--out", tmp_path / "o")
    assert code == 0, err
    assert "annotations" in json.loads((tmp_path / "o" / "coco.json").read_text())
    assert len(list((tmp_path / "o").glob("*_overlay.png"))) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three scenes cut down to an object each, so that a grid of one cell proposes it."""
    folder = tmp_path_factory.mktemp("photos")
    for name, box in {"water": (86, 88, 146, 148), "wood": (10, 118, 76, 184)}.items():
        Image.open(SCENES / f"{name}.png").crop(box).save(folder / f"{name}.png")
    return folder


def test_words_and_examples_find_photos(folder, tmp_path) -> None:
    common = ["search", folder, "--model", "mini", "--proposals", "grid", "--out", tmp_path, "--least", "-2"]
    code, out, err = run(*common, "--for", "elephant", "--sheet")
    assert code == 0, err
    assert "2 photos (2 new, 0 known, 0 gone), 128 regions" in err
    first = out.splitlines()[0].split()
    assert first[1].rpartition(":")[0].endswith("water.png")
    assert len(Image.open(tmp_path / "search.png").getbands()) == 3
    code, out, err = run(*common, "--like", f"{SCENES / 'wood.png'}:10,118,76,184")
    assert "0 new, 2 known" in err, "the index is on disk"
    assert "wood.png" in out.splitlines()[0]
    code, out, _ = run(*common, "--for", "elephant", "--against", "penguin", "--top", "1")
    assert len(out.splitlines()) == 1
    code, out, _ = run(*common[:-2], "--for", "elephant", "--least", "2")
    assert out.strip() == "nothing found"


def test_a_bad_photo_is_named_and_the_rest_searched(folder, tmp_path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    (photos / "bad.png").write_bytes(b"no image")
    code, _, err = run(
        "search", photos, "--for", "penguin", "--model", "mini", "--proposals", "grid", "--out", tmp_path
    )
    assert code == 3
    assert err.count("error:") == 1
    assert "2 photos" in err


def test_a_missing_package_ends_the_search_and_is_said_once(folder, tmp_path, monkeypatch) -> None:
    def lacks(*given, **options) -> None:
        raise MissingExtraError("segment-anything", "sam", "mini-sam")

    monkeypatch.setattr("densevl.pipelines.regions.embedding.load_proposer", lacks)
    code, out, err = run("search", folder, "--for", "penguin", "--model", "mini", "--out", tmp_path)
    assert (code, out, err.count("densevl[sam]"), err.count("error:")) == (2, "", 1, 1)


def test_strict_ends_a_search_and_results_are_no_photos(folder, tmp_path, monkeypatch) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    monkeypatch.chdir(photos)
    command = ["search", ".", "--for", "penguin", "--model", "mini", "--proposals", "grid", "--least", "-2"]
    assert run(*command, "--sheet")[0] == 0
    code, _, err = run(*command, "--sheet")
    assert (code, "2 photos (0 new, 2 known" in err) == (0, True), err
    (photos / "bad.png").write_bytes(b"no image")
    assert run(*command, "--strict")[0] == 3
    assert run(*command, "--index", "wood.png", "--overwrite")[0] == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "say what to find"),
        (["--for", "cat", "--like", "x.png"], "give either"),
        (["--like", "x.png", "--against", "dog"], "works with words"),
        (["--for", "cat", "--proposals", "slic"], "no proposer 'slic'"),
        (["--for", "cat", "--operator", "pool+crop", "--model", "mini"], "one vector per region"),
        (["--like", "missing.png:1,2,3,4", "--model", "mini", "--proposals", "grid"], "missing.png"),
        (["--like", f"{WATER}:1,2,.,4", "--model", "mini", "--proposals", "grid"], "a box must be x0,y0,x1,y1"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(options, reason, folder, tmp_path) -> None:
    code, _, err = run("search", folder, *options, "--out", tmp_path)
    assert code == 2
    assert sum("error:" in line for line in err.splitlines()) == 1
    assert reason in err


def test_no_folder_is_refused(tmp_path) -> None:
    code, _, err = run("search", tmp_path / "nowhere", "--for", "cat")
    assert (code, "is not a folder" in err) == (2, True)


def test_the_sheet_shows_every_hit_even_of_a_changed_photo(folder) -> None:
    size = read_image(folder / "water.png").shape[:2]
    good = Hit(str(folder / "water.png"), 0.5, (5, 5, 30, 30), Proposals.from_boxes([[5, 5, 30, 30]], size))
    other = Hit(str(folder / "water.png"), 0.4, (1, 1, 4, 4), Proposals.from_boxes([[1, 1, 4, 4]], (9, 9)))
    sheet = hit_sheet([good, other], "elephant", columns=2)
    assert sheet.shape[1:] == (960, 3)
    with pytest.raises(LabelError, match="nothing was found"):
        hit_sheet([], "elephant")


def test_regions_are_named_without_labels(tmp_path) -> None:
    plain = [str(SCENES / "wood.png"), "--model", "mini", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, ["regions", *plain])
    assert found.exit_code == 0, found.output
    assert "penguin" in found.output
    plain += ["--overwrite"]
    clicked = CliRunner().invoke(app, ["regions", *plain, "--point", "10,10", "--point", "40,60"])
    assert clicked.exit_code == 0, clicked.output
    assert all(f"wood.png {place}:" in clicked.output for place in ("10,10", "40,60"))
    refused = CliRunner().invoke(app, ["regions", *plain, "--as", "coco"])
    assert refused.exit_code == 2
    assert "give --labels" in refused.output
