"""`densevl classify` and `densevl fewshot fit`, from examples in folders to files."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import PHOTOS
from densevl.cli import app
from densevl.fewshot.result import Classification

SCENE = PHOTOS.parent / "scenes" / "wood.png"
THINGS = {"penguin": (18, 122, 75, 184), "mushroom": (105, 101, 159, 157), "aeroplane": (30, 8, 72, 50)}


def call(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, words)])
    return done.exit_code, " ".join(done.stdout.split()), " ".join(done.stderr.split())


@pytest.fixture
def folder(tmp_path):
    """One folder a class, with its thing cut out three ways."""
    with Image.open(SCENE) as scene:
        for name, box in THINGS.items():
            (tmp_path / "classes" / name).mkdir(parents=True)
            for number in range(3):
                part = scene.crop((box[0] - number, box[1], box[2], box[3] - number))
                part.save(tmp_path / "classes" / name / f"{number}.png")
    return tmp_path / "classes"


def test_words_alone_name_whole_images(folder, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, _ = call(
        "classify", folder, "--labels", "penguin,mushroom,aeroplane", "--model", "mini", "--out", out, "--sheet"
    )
    assert code == 0
    assert said.count("penguin") >= 3
    assert (out / "contact_sheet.jpg").is_file()
    for name in THINGS:
        for number in range(3):
            result = Classification.load(out / name / f"{number}.json")
            assert result.name == name
            assert "seconds" not in result.meta
            assert (out / name / f"{number}_overlay.png").is_file()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call("classify", folder, "--labels", "penguin,mushroom,aeroplane", "--model", "mini", "--out", out)[0] == 0
    assert {path: path.read_bytes() for path in before} == before, "a second run does nothing"


def test_what_was_learned_from_folders_names_others(folder, tmp_path) -> None:
    head = tmp_path / "things"
    given = ("--model", "mini", "--head", "exemplars", "--calibrate", "0.3", "--out", head)
    code, said, _ = call("fewshot", "fit", folder, *given)
    assert (code, "3 classes" in said) == (0, True)
    code, said, _ = call("classify", folder / "penguin", "--head", head, "--out", tmp_path / "out", "--json")
    assert code == 0
    *rows, last = [
        json.loads(line)
        for line in CliRunner()
        .invoke(
            app, ["classify", str(folder / "penguin"), "--head", str(head), "--out", str(tmp_path / "out"), "--json"]
        )
        .stdout.splitlines()
    ]
    assert [row["name"] for row in rows] == ["penguin"] * 3
    assert last["summary"]["classes"] == {"penguin": {"images": 3}}
    assert all("penguin" in row["plausible"] for row in rows)
    code, _, told = call("fewshot", "fit", folder, *given[:2], "--calibrate", "0.1", "--out", tmp_path / "gda")
    assert (code, "take 'exemplars'" in told) == (2, True)
    code, _, told = call(
        "fewshot", "fit", folder, *given[:2], "--calibrate", "0.3", "--held-out", folder, "--out", tmp_path / "gda"
    )
    assert (code, "9 of 9 images to calibrate on were learned from" in told) == (2, True)
    before = head.with_suffix(".json").read_bytes()
    code, _, told = call("fewshot", "fit", folder, *given[:2], "--out", head)
    assert (code, "what an earlier call learned" in told, head.with_suffix(".json").read_bytes()) == (4, True, before)
    assert call("fewshot", "fit", folder, *given[:2], "--out", head, "--overwrite")[0] == 0
    assert head.with_suffix(".json").read_bytes() != before


@pytest.mark.parametrize("out", [".", "/", ".."])
@pytest.mark.parametrize("command", ["fit", "memory"])
def test_a_result_without_a_name_is_refused_before_anything_is_read(command, out) -> None:
    code, _, told = call("fewshot", command, "nowhere", "--out", out)
    assert (code, "is not a file name" in told) == (4, True)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--head", "x", "--labels", "cat"], "leave --labels"),
        ([], "no labels"),
        (["--labels", "cat,dog", "--model", "photo"], "is not a CLIP"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, match) -> None:
    code, _, told = call("classify", SCENE, *words)
    assert code == 2
    assert match in told
    code, _, told = call("fewshot", "fit", PHOTOS, "--held-out", PHOTOS)
    assert (code, "give --calibrate too" in told) == (2, True)


@pytest.mark.parametrize(
    ("place", "words", "match"),
    [
        ("absent", [], "absent' does not exist; give a folder with one folder of images for each class"),
        ("classes/penguin/0.png", [], "0.png' is a file; give a folder"),
        ("classes/penguin", [], "penguin' holds no folders; give a folder"),
        ("scenes", [], "that is for level 'region', not 'image'"),
        ("bare", [], "all folders in .*bare' are empty"),
        ("texts", [], "no images in .*texts/fish"),
        ("absent", ["--level", "pixel"], "absent' is not a folder"),
        ("classes", ["--calibrate", "0.1", "--held-out", SCENE], "wood.png' is a file; give a folder"),
    ],
)
def test_a_folder_without_classes_is_one_line(folder, scenes, tmp_path, place, words, match) -> None:
    for name in ("bare", "texts"):
        (tmp_path / name / "fish").mkdir(parents=True)
    (tmp_path / "texts" / "fish" / "notes.md").touch()
    code, _, told = call("fewshot", "fit", tmp_path / place, "--model", "mini", "--out", tmp_path / "head", *words)
    assert (code, bool(re.search(match, told))) == (2, True), told


def test_an_empty_folder_is_a_class_by_its_words_alone(folder, tmp_path) -> None:
    (folder / "football").mkdir()
    code, said, told = call("fewshot", "fit", folder, "--model", "mini", "--out", tmp_path / "head")
    assert (code, "4 classes (by words alone: 'football')" in said) == (0, True), told
    facts = json.loads((tmp_path / "head.json").read_text())
    assert facts["counts"] == dict.fromkeys(THINGS, 3)
    assert "football" in facts["labels"]["names"]


def test_learned_templates_say_the_words_of_whole_images(folder, tmp_path) -> None:
    learn = ("fewshot", "fit", folder, "--model", "mini", "--out", tmp_path / "learned")
    code, _, told = call(*learn, "--head", "prompt", "--set", "steps=2", "--set", "contexts=1", "--set", "folds=1")
    assert code == 0, told
    templates = ("--templates", tmp_path / "learned.safetensors", "--model", "mini", "--out", tmp_path / "out")
    code, said, told = call("classify", folder / "penguin", "--labels", ",".join(THINGS), *templates)
    assert (code, said.count("penguin") >= 3) == (0, True), told
    code, _, told = call("fewshot", "fit", folder, *templates)
    assert (code, "learned templates are for words alone" in told) == (2, True), told


@pytest.fixture
def scenes(tmp_path):
    """A scene with a label map and with objects in COCO's form."""
    import numpy as np

    root = tmp_path / "scenes"
    for inner in ("images", "labels"):
        (root / inner).mkdir(parents=True)
    with Image.open(SCENE) as scene:
        scene.convert("RGB").save(root / "images" / "wood.png")
        labels = np.zeros((scene.height, scene.width), np.uint8)
    rows = []
    for number, (x0, y0, x1, y1) in enumerate(THINGS.values(), start=1):
        labels[y0:y1, x0:x1] = number
        polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        row = {"id": number, "image_id": 1, "category_id": number, "segmentation": polygon, "iscrowd": 0}
        rows.append({**row, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
    Image.fromarray(labels).save(root / "labels" / "wood.png")
    (root / "names.txt").write_text("\n".join(["background", *THINGS]))
    image = {"id": 1, "file_name": "wood.png", "height": labels.shape[0], "width": labels.shape[1]}
    categories = [{"id": number, "name": name} for number, name in enumerate(THINGS, start=1)]
    (root / "instances.json").write_text(json.dumps({"images": [image], "annotations": rows, "categories": categories}))
    return root


@pytest.mark.parametrize(
    ("level", "command", "more", "files"),
    [
        ("pixel", "segment", ["--as", "coco"], ["wood.png", "wood.json", "wood_overlay.png"]),
        ("region", "regions", ["--proposals", "grid", "--as", "coco"], ["wood.json", "wood_overlay.png"]),
    ],
)
def test_regions_and_pixels_are_learned_from_data_sets_and_named_by_their_commands(
    scenes, tmp_path, level, command, more, files
) -> None:
    head, out = tmp_path / "head", tmp_path / "out"
    code, said, told = call("fewshot", "fit", scenes, "--level", level, "--model", "mini", "--out", head)
    assert (code, told) == (0, "")
    assert "3 classes" in said
    code, said, told = call(command, SCENE, "--head", head, "--out", out, *more)
    assert code == 0, told
    assert set(files) < {path.name for path in out.rglob("*")}
    content = json.loads((out / "wood.json").read_text())
    assert content["fewshot" if "fewshot" in content else "meta"]
    assert "penguin" in said
    code, _, told = call(command, SCENE, "--head", head, "--labels", "cat", "--out", out)
    assert (code, "leave --labels out" in told) == (2, True)
    code, _, told = call("classify", SCENE, "--head", head, "--out", out)
    assert (code, f"`densevl {command} --head` does that" in told) == (2, True)


def test_photos_without_labels_are_learned_from_and_captions_reach_tipx(folder, tmp_path) -> None:
    photos, names = list(folder.rglob("*.png")), ",".join(THINGS)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({str(path): f"a picture of a {path.parent.name}" for path in photos}))
    given = ("fewshot", "fit", folder, "--unlabelled", "top", "--labels", names, "--model", "mini", "--count", "2")
    more = ("--head", "tipx", "--set", "alpha=2.0", "--captions", captions, "--out", tmp_path / "a")
    code, said, told = call(*given, *more)
    assert code == 0, told
    assert "2 penguin" in said
    facts = json.loads((tmp_path / "a.json").read_text())
    assert (facts["unlabelled"], facts["settings"]["alpha"]) == ("top", 2.0)
    code, said, _ = call("classify", folder / "mushroom", "--head", tmp_path / "a", "--out", tmp_path / "out")
    assert (code, said.count("mushroom") >= 3) == (0, True)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--unlabelled", "top"], "give --labels too"),
        (["--count", "3"], "give --unlabelled too"),
        (["--operator", "pool"], "give --level region"),
        (["--level", "region", "--proposals", "grid"], "leave it out"),
        (["--set", "beta=1"], "no setting"),
        (["--level", "pixel"], "classes' shows no pixels; give a folder with images/ with labels/"),
        (["--level", "region"], "classes' shows no regions; give a folder with images/ with instances.json"),
        (["--calibrate", "nan"], "NaN is not a number"),
        (["--captions", str(SCENE)], "captions are for head 'tipx'"),
    ],
)
def test_options_of_fitting_that_do_not_go_together_are_one_line(folder, words, match) -> None:
    code, _, told = call("fewshot", "fit", folder, "--model", "mini", *words)
    assert (code, match in told) == (2, True), told
