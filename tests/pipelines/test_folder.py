"""Runs over many images: nothing of the user's is overwritten, one bad image does not stop the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from conftest import PHOTOS, random_clip, wrap
from densevl.errors import ImageError, OutputError
from densevl.pipelines.folder import plan_jobs, segment_folder
from densevl.pipelines.segmentation.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(wrap(random_clip()), templates="name", protocol={"short_side": 32, "crop": 32, "stride": 16})


def _photos(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.open(PHOTOS / "cat.jpg").resize((40, 30)).save(folder / name)
    return [folder / name for name in names]


@pytest.mark.parametrize("names", [("cat.png",), ("cat.jpg", "dog.png"), ("cat.jpg", "contact_sheet.png")])
def test_an_image_is_never_overwritten_by_a_result(tmp_path, names) -> None:
    with pytest.raises(OutputError, match="would be overwritten"):
        plan_jobs(_photos(tmp_path, *names), tmp_path)


def test_the_contact_sheet_does_not_take_the_name_of_a_result(segmenter, tmp_path) -> None:
    jobs = plan_jobs(_photos(tmp_path, "contact_sheet.jpg", "b.jpg"), tmp_path / "out")
    segment_folder(segmenter, jobs, "cat,dog", sheet=True)
    assert all(Image.open(job.target).mode == "P" for job in jobs)
    assert Image.open(tmp_path / "out" / "contact_sheet.png").mode == "RGB"


def test_a_report_of_an_earlier_run_does_not_stay(segmenter, tmp_path) -> None:
    good = _photos(tmp_path, "a.jpg", "b.jpg")
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    seen = []
    report = segment_folder(
        segmenter,
        plan_jobs([*good, bad], tmp_path / "out"),
        "cat,dog",
        failed=lambda job, error: seen.append(job.image),
    )
    assert seen == [bad]
    assert list(report.errors) == [bad]
    rows = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert rows == [{"image": str(bad), "error": report.errors[bad]}]
    segment_folder(segmenter, plan_jobs(good, tmp_path / "out"), "cat,dog")
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_a_place_that_cannot_be_written_ends_the_run_at_once(segmenter, tmp_path) -> None:
    images = _photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="is a file"):
            plan_jobs(images, place)
    jobs = plan_jobs(images, tmp_path / "out")
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError):
        segment_folder(segmenter, jobs, "cat,dog")


def test_a_lone_missing_image_is_noticed_before_anything_else(tmp_path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        plan_jobs([tmp_path / "none.jpg"], tmp_path / "out")


def test_results_do_not_depend_on_the_company(segmenter, tmp_path) -> None:
    images = _photos(tmp_path, "a.jpg", "b.jpg")
    segment_folder(segmenter, plan_jobs(images, tmp_path / "both"), "cat,dog")
    segment_folder(segmenter, plan_jobs(images[1:], tmp_path / "one"), "cat,dog")
    assert (tmp_path / "both" / "b.png").read_bytes() == (tmp_path / "one" / "b.png").read_bytes()
    shutil.rmtree(tmp_path / "both")
