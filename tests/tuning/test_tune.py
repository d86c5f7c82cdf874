"""`tune` and its command from a folder to a file that other commands take."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from densevl.cli import app
from densevl.cli.shared import _Console
from densevl.errors import DatasetError, DensevlError, EvaluationError, ImageError, LabelError, OptionError, OutputError
from densevl.images import read_image
from densevl.proposals import Proposals
from densevl.tuning import tune
from densevl.tuning.candidates import Candidate
from densevl.tuning.guessing import AgreementCounter
from densevl.tuning.pictures import open_pictures
from densevl.tuning.result import Tuning
from densevl.tuning.scores import Difference
from densevl.tuning.selection import Judged
from densevl.vocabulary import LabelSet

SCENES = sorted((Path(__file__).parents[2] / "demo" / "scenes").glob("*.png"))
AUTO = Candidate.of({"background": "auto", "precision": "float32"})
SKY, INT8 = AUTO.but(background="sky"), AUTO.but(precision="int8")
QUICK = {"only": ["background"], "tries": {"background": ["none"]}}


def folder(root: Path, number: int = 6, *, background: bool = True) -> Path:
    """Pieces of the demo's scenes, each with something in it; all is said to be background."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for at in range(number):
        rgb = read_image(SCENES[at % len(SCENES)])
        piece = np.ascontiguousarray(rgb[96:160, 32 * (at // 3) :][:, :64])
        Image.fromarray(piece).save(root / "images" / f"{at}.png")
        Image.fromarray(np.full((64, 64), int(not background) * (at % 2), np.uint8)).save(root / "labels" / f"{at}.png")
    names = ["background", "penguin", "kettle | teapot"] if background else ["wood", "kettle | teapot"]
    (root / "names.txt").write_text("\n".join(names))
    return root


def test_settings_are_chosen_written_and_taken_by_the_commands_they_are_for(tmp_path) -> None:
    data, out = folder(tmp_path / "data"), tmp_path / "out"
    found = tune(data, "mini", **QUICK, out=out)
    assert found.chosen["background"] == "auto"
    assert {row.choice for row in (*found.rows, *found.finalists)} == {"default", "background none"}
    told = tomllib.loads((out / "tuned.toml").read_text())
    assert told.keys() == {"segment", "video"}
    assert told["segment"]["labels"] == ["penguin", "kettle | teapot"]
    assert json.loads((out / "tuned.json").read_text())["images"] == 6
    config = str(out / "tuned.toml")
    done = CliRunner().invoke(app, ["--config", config, "segment", str(data / "images"), "--out", str(tmp_path / "s")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "s" / "0.json").read_text())["names"] == ["penguin", "kettle"]


@pytest.mark.parametrize(("number", "sure"), [(6, True), (5, False)])
def test_a_better_setting_is_advised_where_pictures_are_enough_to_be_sure(tmp_path, number, sure) -> None:
    """All is background, so a threshold that nothing reaches is right everywhere."""
    data = folder(tmp_path, number)
    found = tune(data, "mini", only=["background"], tries={"background": ["0.999"]})
    assert found.picked["background"] == "0.999"
    assert found.chosen["background"] == ("0.999" if sure else "auto")
    assert ("better than the default" in found.verdict) is sure
    assert ("within the noise" in found.verdict) is not sure
    assert any("fewer than 6" in warning for warning in found.warnings) is not sure
    assert f'background = "{found.chosen["background"]}"' in found.toml()


def test_a_second_call_goes_on_and_another_question_is_refused(tmp_path) -> None:
    data, out = folder(tmp_path / "data", 4), tmp_path / "out"
    first, said = tune(data, "mini", **QUICK, out=out), []
    second = tune(data, "mini", **QUICK, out=out, say=said.append)
    assert said[0].endswith("counts are there already")
    assert second.facts() == first.facts()
    (data / "names.txt").write_text("background\npenguin\nbicycle")
    with pytest.raises(EvaluationError, match=r"counts of something else \(names, words\): .*--fresh"):
        tune(data, "mini", **QUICK, out=out)
    assert tune(data, "mini", **QUICK, out=out, fresh=True).labels.names == ("penguin", "bicycle")


def test_a_run_that_is_stopped_keeps_what_it_counted(tmp_path) -> None:
    data, out, said = folder(tmp_path / "data", 4), tmp_path / "out", []

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        tune(data, "mini", **QUICK, out=out, show=stop)
    assert "goes on from here" in stopped.value.__notes__[0]
    assert not (out / "tuned.toml").exists()
    tune(data, "mini", **QUICK, out=out, say=said.append)
    assert said[0] == "3 counts are there already"


def test_files_of_others_are_not_replaced(tmp_path) -> None:
    data, out = folder(tmp_path / "data", 3), tmp_path / "out"
    out.mkdir()
    (out / "tuned.toml").write_text("mine")
    with pytest.raises(OutputError, match="not written by densevl"):
        tune(data, "mini", **QUICK, out=out)
    assert (out / "tuned.toml").read_text() == "mine"


def test_pictures_without_labels_are_guessed_at_and_said_to_be(tmp_path, monkeypatch) -> None:
    """A jury of two, one of them the default, which no candidate beats by the ten points that it takes."""
    monkeypatch.setattr(AgreementCounter, "jury", [Candidate.of({"recipe": None}), Candidate.of({"recipe": "naclip"})])
    data = folder(tmp_path / "data", 3)
    with pytest.raises(DatasetError, match="tells its classes"):
        tune(data, "mini", labels="penguin, kettle")
    found = tune(data / "images", "mini", labels="penguin, kettle", only=["recipe"], tries={"recipe": ["naclip"]})
    assert (found.measure, found.labelled, found.chosen) == ("agreement", False, found.default)
    assert any("guess" in warning for warning in found.warnings)
    assert "this is a guess" in found.toml()


def test_objects_and_folders_of_classes_tune_their_commands(tmp_path) -> None:
    root = tmp_path / "coco"
    folder(root, 3)
    (root / "labels").rename(root / "unused")
    masks = Proposals.from_boxes(np.array([[5, 5, 40, 40]]), (64, 64)).to_rle()
    listing = {
        "images": [{"id": at, "file_name": f"{at}.png", "height": 64, "width": 64} for at in range(3)],
        "annotations": [{"id": at, "image_id": at, "category_id": 1, "segmentation": masks[0]} for at in range(3)],
        "categories": [{"id": 1, "name": "penguin"}, {"id": 2, "name": "kettle"}],
    }
    (root / "instances.json").write_text(json.dumps(listing, default=lambda text: text.decode()))
    found = tune(root, "mini", only=["templates"], tries={"templates": ["name"]})
    assert (found.use, found.measure) == ("regions", "accuracy")
    for at, kind in enumerate(("penguin", "kettle")):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(read_image(SCENES[at])[:64, 20 * number :][:, :64]).save(
                tmp_path / "kinds" / kind / f"{number}.png"
            )
    found = tune(tmp_path / "kinds", "mini", tries={"templates": ["name"], "guided": ["2"]})
    assert (found.use, found.images, found.rows[0].choice) == ("classify", 4, "default")
    assert tomllib.loads(found.toml()).keys() == {"classify"}


def test_without_a_background_every_pixel_is_named_and_the_file_says_so(tmp_path) -> None:
    data = folder(tmp_path / "data", 3, background=False)
    found = tune(data, "mini", only=["templates"], tries={"templates": ["name"]})
    assert tomllib.loads(found.toml())["segment"]["background"] == "none"


@pytest.mark.parametrize(
    ("make", "settings", "error", "told"),
    [
        (lambda root: root / "absent", {}, DatasetError, "is not a folder"),
        (lambda root: root, {}, DatasetError, "holds no truth to tune on.*--labels"),
        (lambda root: root, {"labels": "dog, cat"}, ImageError, "no images"),
        (lambda root: folder(root / "two", 2), {}, DatasetError, "2 pictures are too few"),
        (lambda root: folder(root / "data", 3), {"labels": " , "}, LabelError, "label"),
        (lambda root: folder(root / "data", 3), {"use": "regions"}, DatasetError, "nothing that tells about regions"),
        (lambda root: folder(root / "data", 3), {"budget": 0}, OptionError, "budget"),
        (lambda root: folder(root / "data", 3), {"only": ["precisoin"]}, OptionError, "closest: precision"),
        (lambda root: folder(root / "data", 3, background=False), {"only": ["background"]}, OptionError, "nothing to"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(tmp_path, make, settings, error, told) -> None:
    with pytest.raises(error, match=told) as refused:
        tune(make(tmp_path), "mini", **settings)
    assert isinstance(refused.value, DensevlError)
    assert "\n" not in str(refused.value)


def test_a_limit_spreads_over_the_pictures_and_gives_each_class_some(tmp_path) -> None:
    data = folder(tmp_path / "data", 6)
    assert [path.stem for path in open_pictures(data, limit=3).paths] == ["0", "2", "4"]
    for kind, number in (("a", 5), ("b", 1)):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        for at in range(number):
            Image.new("RGB", (8, 8)).save(tmp_path / "kinds" / kind / f"{at}.png")
    assert open_pictures(tmp_path / "kinds", limit=3).truths == (0, 1, 0)


def test_the_command_says_how_sure_it_is_and_prints_json(tmp_path) -> None:
    data, out = folder(tmp_path / "data", 3), tmp_path / "out"
    asked = ["tune", str(data), "--model", "mini", "--only", "background", "--try", "background=none"]
    done = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "95 % interval" in done.stdout
    assert "the default" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*asked, "--out", str(out), "--json"]).stdout)
    assert told["config"] == str(out / "tuned.toml")
    assert told["tried"] == {"background": ["auto", "none"]}
    assert "tried, the default among them: 2 backgrounds" in done.stdout
    assert "advised: the default; densevl --config" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", ""], "it is empty"),
        (["--budget", "nan"], "NaN is not a number"),
    ],
)
def test_values_that_are_none_are_refused_before_the_folder_is_looked_at(tmp_path, words, told) -> None:
    done = CliRunner().invoke(app, ["tune", str(tmp_path), *words])
    assert (done.exit_code, told in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "within the noise: the default is kept ("),
        ({"chosen": INT8}, "within the noise: the default is kept but for precision int8, which saves time"),
        ({"picked": AUTO, "chosen": INT8}, "nothing tried was better"),
        ({"better": True, "chosen": SKY}, "the choice is better than the default ("),
        ({"better": True, "chosen": SKY.but(precision="int8")}, "; with precision int8, which saves time"),
        ({"gain": 0.05, "labelled": False}, "the gain is too small for a guess: the default is kept ("),
        ({"complete": False, "chosen": INT8}, "the default is kept but for precision int8"),
    ],
)
def test_the_verdict_says_what_the_file_holds(change, told) -> None:
    """A default is said to be kept only where nothing else is advised."""
    gain = change.get("gain", 0.0)
    judged = Judged(
        Difference(gain, gain, gain, 0.0, 0.01 if gain else 1.0), 0.5, 0.5, (0.0,), (), change.get("complete", True)
    )
    own = {"picked": SKY, "chosen": AUTO, "better": False, "labelled": True}
    own |= {name: value for name, value in change.items() if name in own}
    found = Tuning(
        "segment",
        {"model": "mini"},
        LabelSet.parse("cat"),
        8,
        "mIoU",
        own["labelled"],
        AUTO,
        own["picked"],
        own["chosen"],
        own["better"],
        {},
        judged,
        (),
        (),
        (),
        0,
    )
    assert told in found.verdict
    assert ("is kept" in found.verdict) is (not own["better"])
    assert ("is kept but for" in found.verdict) is (not own["better"] and own["chosen"] != AUTO)


def test_cells_stay_whole_however_narrow_the_screen_is(tmp_path, monkeypatch) -> None:
    data, out = folder(tmp_path / "data", 3), tmp_path / "out"
    monkeypatch.setattr(_Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "40")
    asked = ["tune", str(data), "--model", "mini", "--only", "background", "--try", "background=none"]
    done = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert done.exit_code == 0, done.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert re.search(r"none +\d+\.\d +[-+]\d+\.\d +[-+]\d+\.\d to [-+]\d+\.\d +\d\.\d{3}", plain), plain
    assert "…" not in plain
