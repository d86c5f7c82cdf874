"""A folder searched by words and by example, with an index that is built once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from conftest import PHOTOS
from densevl.errors import ImageError, LabelError, OptionError
from densevl.pipelines.folder.watch import Watch
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.search import RegionSearch
from densevl.proposals import Proposals
from densevl.regions.index import RegionIndexError

SCENES = PHOTOS.parent / "scenes"
PLACES = {"water": [94, 66, 140, 142], "wood": [18, 122, 75, 184], "snow": [0, 0, 20, 20]}  # elephant, penguin, snow


def propose(rgb: np.ndarray) -> Proposals:
    """One box a scene, told apart by the colour of its ground."""
    red, green, blue = rgb[:8].reshape(-1, 3).mean(axis=0)
    which = "snow" if min(red, green) > 180 else "wood" if red > blue else "water"
    return Proposals.from_boxes([PLACES[which]], rgb.shape[:2])


class Count(Watch):
    bad = 0

    def begin(self, total: int, finished: int) -> None:
        self.told = (total, finished)

    def failed(self, job, error) -> None:
        self.bad += 1


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    return RegionClassifier("mini", "cls_mask", proposals=propose)


@pytest.fixture
def folder(tmp_path):
    for name in PLACES:
        shutil.copy(SCENES / f"{name}.png", tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return tmp_path


def test_words_and_examples_find_the_photo_and_the_place(classify, folder) -> None:
    search = RegionSearch(classify, folder / "index.npz")
    built = search.build(folder)
    assert len(built.added) == 3
    assert [path.rpartition("/")[2] for path in built.failed] == ["broken.png"]
    assert search.find("penguin")[0].path.endswith("wood.png")
    assert search.find("elephant", top=1)[0].box == (94, 66, 140, 142)
    assert search.find("motorbike | penguin")[0].path.endswith("wood.png")
    example = classify.embed(SCENES / "water.png", boxes=[PLACES["water"]])
    hit = search.find(example)[0]
    assert hit.path.endswith("water.png")
    assert hit.score == pytest.approx(1, abs=1e-3)


def test_a_second_build_reads_only_what_is_new(classify, folder, monkeypatch) -> None:
    RegionSearch(classify, folder / "index.npz").build(folder)
    again = RegionSearch(classify, folder / "index.npz")
    watch = Count()
    built = again.build(folder, watch=watch)
    assert (built.added, len(built.kept)) == ((), 3)
    assert (watch.told, watch.bad) == ((4, 3), 1), "the broken one is tried again"
    rows = [json.loads(line) for line in (folder / "index.errors.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [str(folder / "broken.png")]
    (folder / "water.png").unlink()
    shutil.copy(SCENES / "wood.png", folder / "snow.png")
    built = again.build(folder, forget=True)
    assert [path.rpartition("/")[2] for path in built.added] == ["snow.png"]
    assert [path.rpartition("/")[2] for path in built.removed] == ["water.png"]
    there = RegionSearch(classify, folder / "index.npz")
    assert len(there.index.photos) == 2
    assert len(there.find("penguin")) == 2


def test_what_cannot_be_searched_is_refused(classify, folder, tmp_path) -> None:
    search = RegionSearch(classify, folder / "index.npz")
    assert search.find("penguin") == []
    search.build(folder / "wood.png")
    other = RegionClassifier("mini", "crop", proposals=propose)
    with pytest.raises(RegionIndexError, match=r"operators.cls_mask 1.0 -> none"):
        RegionSearch(other, folder / "index.npz")
    with pytest.raises(OptionError, match=r"pool\+cls_mask"):
        RegionSearch(RegionClassifier("mini", proposals=propose))
    with pytest.raises(LabelError, match="has no region"):
        search.find(classify.embed(SCENES / "water.png", boxes=[]))
    with pytest.raises(LabelError):
        search.find("")
    assert list(search.build(tmp_path / "nowhere").failed) == [str(tmp_path / "nowhere")]
    with pytest.raises(ImageError):
        search.build([])


def test_an_index_of_other_proposals_is_refused(classify, folder, tmp_path) -> None:
    path = tmp_path / "photos.npz"
    RegionSearch(classify, path).build([folder / "water.png"])
    assert RegionSearch(classify, path).index.photos
    with pytest.raises(RegionIndexError, match="proposals 'propose'"):
        RegionSearch(RegionClassifier(classify.backbone, "cls_mask", proposals="grid"), path)
