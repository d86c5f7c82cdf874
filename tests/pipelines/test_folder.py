"""Runs over many images: resumed without a trace, never mixed, nothing of the user's replaced, bad images listed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from conftest import TINY, random_clip
from densevl.cli import app
from densevl.errors import ImageError, MissingExtraError, OutputError
from densevl.images import find_images, read_image
from densevl.pipelines.folder import gathered
from densevl.pipelines.folder.each import one_by_one
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import SEGMENT, Task
from densevl.results import SegmentationResult

FACTS = {"densevl": "1", "model": "mini", "weights": "a" * 64, "labels": ["cat", "dog"]}


def segment(image: str) -> SegmentationResult:
    rgb = read_image(image)
    labels = (rgb[..., 0] % 2).astype(np.int16)
    meta = {"densevl": "1", "seconds": np.random.default_rng().random()}
    return SegmentationResult(labels, ("cat", "dog"), np.ones(labels.shape, np.float32), rgb, meta)


def task(call: Callable[[str], object] = segment, **facts) -> Task:
    return Task(SEGMENT, one_by_one(call), {**FACTS, **facts}, None)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Nine images in two folders, two of them bad."""
    folder = tmp_path / "photos"
    for number in range(9):
        path = folder / ("deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.randint(0, 255, (9, 12, 3), np.uint8)).save(path)
    (folder / "2.png").write_bytes(b"no image")
    (folder / "deep" / "5.png").write_bytes((folder / "4.png").read_bytes()[:40])
    return folder


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in tree(folder).items()}


def rows(folder: Path) -> list[str]:
    return [json.loads(line)["image"] for line in (folder / "errors.jsonl").read_text().splitlines()]


def run(photos: Path, out: Path, work: Task | None = None, **options):
    together = [gathered.Sheet(SEGMENT.picture)]
    return to_files(work or task(), find_images(photos, skip=out), out, together=together, **options)


def test_the_tree_is_mirrored_and_bad_images_are_listed_in_order(photos, tmp_path) -> None:
    report = run(photos, tmp_path / "out")
    assert len(report.done) == 7
    results = {f"{name}{end}" for name in ("0", "4", "6", "8") for end in SEGMENT.endings}
    results |= {f"deep/{name}{end}" for name in ("1", "3", "7") for end in SEGMENT.endings}
    assert set(tree(tmp_path / "out")) == results | {"densevl.json", "errors.jsonl", "contact_sheet.jpg"}
    assert rows(tmp_path / "out") == [str(photos / "2.png"), str(photos / "deep" / "5.png")]
    assert "seconds" not in (tmp_path / "out" / "0.json").read_text()


def test_a_sheet_shows_a_part_of_many_images_and_says_so(photos, tmp_path, monkeypatch) -> None:
    titled: list[str] = []
    drawn = gathered.contact_sheet
    monkeypatch.setattr(
        gathered, "contact_sheet", lambda images, titles, *rest: titled.extend(titles) or drawn(images, titles, *rest)
    )
    few = gathered.Sheet(SEGMENT.picture, most=3)
    report = to_files(task(), find_images(photos), tmp_path / "out", together=[few])
    assert len(report.done) == 7
    assert [title.split(": ")[-1] for title in titled] == ["0.png", "4.png", "6.png"]
    assert titled[-1].startswith("3 of 7: ")


def test_a_row_is_written_at_once_and_the_list_goes_with_the_last_bad_image(photos, tmp_path) -> None:
    out = tmp_path / "out"

    def stops(image: str) -> SegmentationResult:
        if image.endswith("4.png"):
            assert rows(out) == [str(photos / "2.png")]
            raise KeyboardInterrupt
        return segment(image)

    with pytest.raises(KeyboardInterrupt):
        run(photos, out, task(stops))
    for name in ("2.png", "deep/5.png"):
        (photos / name).write_bytes((photos / "0.png").read_bytes())
    assert len(run(photos, out).done) == 9
    assert not (out / "errors.jsonl").exists()


@pytest.mark.parametrize("at", range(9))
def test_a_stopped_run_goes_on_and_leaves_the_same_bytes(photos, tmp_path, at) -> None:
    run(photos, tmp_path / "whole")
    seen: list[str] = []

    def stops(image: str) -> SegmentationResult:
        if len(seen) == at:
            raise KeyboardInterrupt
        seen.append(image)
        return segment(image)

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", task(stops))
    if (tmp_path / "out").exists():  # what a kill leaves
        (tmp_path / "out" / ".densevl-0123.part").write_bytes(b"half")
        with open(tmp_path / "out" / "errors.jsonl", "a") as file:
            file.write('{"image": "cut')
    again: list[str] = []
    run(photos, tmp_path / "out", task(lambda image: (again.append(image), segment(image))[1]))
    good = [image for image in seen if not image.endswith(("2.png", "5.png"))]
    assert not set(good) & set(again)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_second_run_touches_nothing(photos, tmp_path) -> None:
    run(photos, tmp_path / "out")
    before = tree(tmp_path / "out")
    report = run(photos, tmp_path / "out")
    assert (report.fresh, len(report.errors)) == (0, 2)
    assert tree(tmp_path / "out") == before


def test_images_that_share_passes_are_run_again_only_where_one_is_missing(photos, tmp_path) -> None:
    """What shares a pass decides the last bits, so a group is run as a whole; a bad image alone does not cost one."""
    seen: list[str] = []
    work = replace(task(lambda image: (seen.append(image), segment(image))[1]), group=4)
    run(photos, tmp_path / "out", work)
    before, _ = tree(tmp_path / "out"), seen.clear()
    run(photos, tmp_path / "out", work)
    assert (seen, tree(tmp_path / "out")) == ([], before)
    (tmp_path / "out" / "0.json").unlink()
    run(photos, tmp_path / "out", work)
    assert [Path(image).stem for image in seen] == ["0", "2", "4", "6"]
    after = tree(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {f"0{end}" for end in SEGMENT.endings}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "photo"}, "model 'mini' -> 'photo'"),
        ({"weights": "b" * 64}, "weights aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        ({"labels": ["cat"]}, r"labels \['cat', 'dog'\] -> \['cat'\]"),
        ({"densevl": "2"}, "densevl '1' -> '2'"),
    ],
)
def test_another_run_does_not_mix_with_the_first(photos, tmp_path, other, said) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = tree(out)
    with pytest.raises(OutputError, match=rf"{said}.*another --out.*--overwrite"):
        run(photos / "0.png", out, task(**other))
    assert tree(out) == before
    run(photos / "0.png", out, task(**other), overwrite=True)
    assert set(tree(out)) == {
        "0.json",
        "0.png",
        "0_confidence.png",
        "0_overlay.png",
        "densevl.json",
        "contact_sheet.jpg",
    }


def test_an_image_that_changed_is_done_anew_and_others_are_added(photos, tmp_path) -> None:
    run(photos, tmp_path / "out")
    Image.new("RGB", (5, 5)).save(photos / "0.png")
    seen: list[str] = []
    watch = task(lambda image: (seen.append(image), segment(image))[1])
    run(photos / "0.png", tmp_path / "out", watch)
    assert Image.open(tmp_path / "out" / "0.png").size == (5, 5)
    (photos / "more").mkdir()
    Image.new("RGB", (5, 5)).save(photos / "more" / "0.png")
    run(photos / "more" / "0.png", tmp_path / "out", watch)
    assert (tmp_path / "out" / "more_0.png").exists(), "0 is taken"
    assert [Path(image).relative_to(photos).as_posix() for image in seen] == ["0.png", "more/0.png"]


def test_strict_stops_at_the_first_and_one_bad_image_leaves_nothing(photos, tmp_path) -> None:
    with pytest.raises(ImageError, match=r"2\.png"):
        run(photos, tmp_path / "out", strict=True)
    assert (tmp_path / "out" / "0.png").exists()
    assert not (tmp_path / "out" / "4.png").exists()
    for name in ("2.png", "nowhere.png"):
        with pytest.raises(ImageError):
            run(photos / name, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_with_the_run_ends_it(photos, tmp_path) -> None:
    def lacks(image: str) -> None:
        raise MissingExtraError("segment-anything", "sam", "mini-sam")

    with pytest.raises(MissingExtraError):
        run(photos, tmp_path / "out", task(lacks))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="is a file"):
            run(photos, place)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "densevl.json").write_text('{"densevl": "1", "facts"')
    with pytest.raises(OutputError, match="is damaged"):
        run(photos, tmp_path / "odd")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place in (tmp_path / "circle", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot be"):
            run(photos, place)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("labels", [["cat", "dog"], ["cat", "car"]])
@pytest.mark.parametrize(
    "wrong",
    [
        *({"files": ["errors.jsonl", name]} for name in ("../mine.png", "{here}/mine.png", "a/../../mine.png", 5, "")),
        *({"images": {"{photo}": [name, 1, 2]}} for name in ("../mine", "{here}/mine", "", None, "nul\0", 5)),
        *({"images": {"{photo}": entry}} for entry in (5, None, [], ["x"], {})),
        {"images": {"{photo}": ["x", 1, 2], "y": ["x", 1, 2]}},
    ],
    ids=str,
)
def test_a_record_never_reaches_beyond_its_folder(wrong, labels, overwrite, photos, tmp_path) -> None:
    out = tmp_path / "out"
    run(photos / "0.png", out)
    for end in (".json", ".png", "_overlay.png", "_confidence.png"):
        (tmp_path / f"mine{end}").write_text("mine")
    before = tree(tmp_path)
    record = json.loads((out / "densevl.json").read_text()) | wrong
    text = json.dumps(record).replace("{here}", str(tmp_path)).replace("{photo}", str(photos / "0.png"))
    (out / "densevl.json").write_text(text)
    if overwrite:
        run(photos / "0.png", out, task(labels=labels), overwrite=True)
    else:
        with pytest.raises(OutputError, match="is damaged"):
            run(photos / "0.png", out, task(labels=labels))
    after = tree(tmp_path)
    assert {name: after.get(name) for name in before if name.startswith(("mine", "photos"))} == {
        name: before[name] for name in before if name.startswith(("mine", "photos"))
    }


@pytest.mark.parametrize("wrong", ["[]", '{"files": 5}', '{"densevl": 1, "files": ["../mine.png"], "facts": {}}'])
def test_a_record_of_an_archive_never_reaches_beyond_its_folder(wrong, photos, tmp_path) -> None:
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "all.json").write_text(wrong)
    to_files(task(), find_images(photos / "0.png"), tmp_path / "out" / "all.tar", overwrite=True)
    assert (tmp_path / "mine.png").read_text() == "mine"


def test_results_are_no_images_and_common_files_no_results(photos, tmp_path) -> None:
    for name in ("densevl", "contact_sheet", "scores"):
        Image.new("RGB", (5, 5)).save(photos / f"{name}.bmp")
    out = photos / "out"
    report = run(photos, out)
    assert run(photos, out).done == report.done
    assert not {job.name for job in report.done} & {"densevl", "contact_sheet", "scores"}
    assert json.loads((out / "densevl.json").read_text())["facts"]["use"] == "segment"


def command(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


MINI = ("--model", "mini", "--labels", "cat,dog")
GRID = (*MINI, "--proposals", "grid")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["segment", "list.txt", *MINI, "--out", "p"], 4, "one of the inputs"),
        (["segment", "p/x.jpg", *MINI, "--out", "p"], 4, "not written by densevl"),
        (["segment", "p/x.jpg", *MINI, "--out", "p", "--overwrite"], 0, ""),
        (["segment", "p", *MINI, "--out", "p", "--overwrite"], 4, "would be taken for its images"),
        (["regions", "p/x.jpg", *MINI, "--out", "taken", "--proposals", "grid"], 4, "not written by densevl"),
        (["regions", "p/x.jpg", *GRID, "--as", "coco", "--out", "set"], 4, "coco.json"),
        (["regions", "p/x.jpg", *GRID, "--as", "labelme", "--out", "set"], 4, "labelme/x.json"),
        (
            ["search", "p", "--for", "cat", "--model", "mini", "--proposals", "grid", "--sheet", "--out", "p"],
            4,
            "inputs",
        ),
        (["anomaly", "score", "p/x.jpg", "--model", "mini", "--out", "p"], 4, "not written by densevl"),
        (["anomaly", "score", "p/x.jpg", "--model", "mini", "--out", "csv"], 4, "scores.csv"),
        (["anomaly", "fit", "p/x.jpg", "--model", "mini", "--out", "taken/detector"], 4, "not written by densevl"),
    ],
)
def test_no_command_replaces_an_image_or_a_file_of_somebody_else(tmp_path, monkeypatch, words, code, message) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("p", "taken", "set/labelme", "csv"):
        Path(place).mkdir(parents=True)
    for name in ("p/x.jpg", "p/x.png", "p/search.png"):
        Image.fromarray(np.random.randint(0, 255, (96, 96, 3), np.uint8)).save(name)
    Path("list.txt").write_text("p/x.png\n")
    theirs = {"taken/x.json": "{}", "set/coco.json": "{}", "set/labelme/x.json": "{}", "csv/scores.csv": "a,b"}
    theirs |= {"taken/detector.safetensors": "theirs"}
    for name, text in theirs.items():
        Path(name).write_text(text)
    before = content(tmp_path)
    done, output = command(*words)
    assert (done, message in output) == (code, True), output
    if code:
        assert output.count("error:") == 1
        assert all(content(tmp_path)[name] == data for name, data in before.items())


def test_two_commands_do_not_share_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), "red").save("x.jpg")
    assert command("segment", "x.jpg", *MINI, "--out", "out")[0] == 0
    before = content(tmp_path)
    code, output = command("anomaly", "score", "x.jpg", "--model", "mini", "--out", "out")
    assert (code, "use 'segment' -> 'anomaly'" in output) == (4, True), output
    assert content(tmp_path) == before


def test_a_full_disk_is_exit_code_4(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), "red").save("x.jpg")
    Path("out").mkdir()
    os.chmod("out", 0o500)
    if os.access("out", os.W_OK):  # a superuser may write anywhere
        pytest.skip("permissions do not apply")
    code, output = command("segment", "x.jpg", *MINI, "--out", "out")
    assert (code, "cannot write" in output) == (4, True)


def test_json_is_one_line_an_image_with_a_summary_and_quiet_is_silent(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a run that does nothing tells the same
        done = CliRunner().invoke(app, ["segment", "photos", *MINI, "--out", "out", "--json"])
        assert done.exit_code == 3
        *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == 9
        assert last["summary"]["failed"] == 2
        assert {Path(line["image"]).name for line in lines if "error" in line} == {"2.png", "5.png"}
        told = next(line for line in lines if line["image"] == "photos/0.png")
        assert set(told) == {"image", "outputs", "fractions", "warnings"}
        assert all(Path(output).exists() for output in told["outputs"])
    done = CliRunner().invoke(app, ["segment", "photos/0.png", *MINI, "--out", "out", "--quiet"])
    assert (done.exit_code, done.output) == (0, "")


def test_exports_and_scores_of_a_resumed_run_are_those_of_a_whole_one(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exports = ["--as", "coco,panoptic,labelme"]
    named = [*MINI, "--proposals", "grid", "--background", "none", "--sheet", *exports]
    scored = ["--model", "mini", "--sheet"]
    for words, options in ((["regions"], named), (["anomaly", "score"], scored)):
        code, output = command(*words, "photos", *options, "--out", words[0])
        assert code == 3, output
        whole = content(Path(words[0]))
        assert {"contact_sheet.jpg", "errors.jsonl", "scores.csv" if words[1:] else "coco.json"} < set(whole)
        for name in ("0.json", "deep/3.json", "contact_sheet.jpg", "errors.jsonl"):
            (Path(words[0]) / name).unlink()
        assert command(*words, "photos", *options, "--out", words[0])[0] == 3
        assert content(Path(words[0])) == whole


def test_other_weights_of_the_same_name_and_another_version_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48), "red").save("x.jpg")
    Path("model").mkdir()
    Path("model/open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    weights = {key: value.contiguous() for key, value in random_clip().state_dict().items()}
    words = ["segment", "x.jpg", "--labels", "cat,dog", "--model", "model", "--templates", "name", "--out", "out"]

    def done(**changed) -> tuple[int, str]:
        save_file({**weights, **changed}, "model/model.safetensors")
        return command(*words, "--crop", "32", "--short-side", "48", "--stride", "16")

    assert done()[0] == 0
    before = tree(tmp_path / "out")
    code, output = done(**{"visual.proj": weights["visual.proj"] * 1.01})
    assert (code, re.search(r"\(weights \w{12} -> \w{12}\); name another --out", output) is not None) == (4, True), (
        output
    )
    monkeypatch.setattr("densevl.pipelines.segmentation.scorer.__version__", "9.9")
    code, output = done()
    assert (code, "(densevl '0.1.0' -> '9.9')" in output) == (4, True), output
    assert tree(tmp_path / "out") == before
