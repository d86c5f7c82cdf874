"""The index on disk: what it keeps, what it replaces, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densevl.errors import OutputError
from densevl.proposals.base import Proposals
from densevl.regions.index import Photo, RegionIndex, RegionIndexError


def photo(name: str, changed: int = 1) -> Photo:
    return Photo(name, (8, 10), 100, changed)


def regions(count: int) -> Proposals:
    masks = np.zeros((count + 1, 8, 10), bool)
    for index in range(count):
        masks[index, index : index + 2, 1 : 4 + index] = True
    return Proposals.from_masks(masks)  # the last one is empty


def rows(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count + 1, 6)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[-1] = 0
    return found


@pytest.fixture
def index() -> RegionIndex:
    empty = RegionIndex.empty("m", 6)
    return empty.with_photos([(photo("a"), regions(3), rows(3)), (photo("b"), regions(2), rows(2, 1))])


def test_the_nearest_region_comes_first_with_its_mask(index) -> None:
    assert len(index) == 5, "empty masks are left out"
    hits = index.nearest(rows(2, 1)[1], each=5)
    assert hits[0].path == "b"
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert hits[0].box == (1, 1, 5, 3)
    assert (hits[0].region.mask(0) == regions(2).mask(1)).all()
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.path for hit in index.nearest(rows(2, 1)[1])} == {"a", "b"}, "one a photo"
    assert len(index.nearest(rows(2, 1)[1], top=1)) == 1


def test_what_the_query_is_not_counts_against(index) -> None:
    query, other = rows(2, 1)[0], rows(2, 1)[1]
    plain = {hit.box: hit.score for hit in index.nearest(query, each=5) if hit.path == "b"}
    against = {hit.box: hit.score for hit in index.nearest(query, each=5, against=[other]) if hit.path == "b"}
    assert against[(1, 1, 5, 3)] == pytest.approx(plain[(1, 1, 5, 3)] - 1, abs=2e-3)


def test_a_photo_is_replaced_and_forgotten(index) -> None:
    again = index.with_photos([(photo("a", 2), regions(1), rows(1, 5))])
    assert [p.path for p in again.photos] == ["b", "a"]
    assert len(again) == 3
    assert again.nearest(rows(1, 5)[0])[0].path == "a"
    assert [p.path for p in again.without(["b"]).photos] == ["a"]
    assert len(index.without(["a", "b"])) == 0
    assert index.without(["a", "b"]).nearest(rows(1)[0]) == []
    assert len(index.with_photos([(photo("c"), Proposals.empty((8, 10)), np.zeros((0, 6)))])) == 5


def test_it_comes_back_from_disk(index, tmp_path) -> None:
    there = RegionIndex.load(index.save(tmp_path / "deep" / "index.npz"))
    assert there.photos == index.photos
    assert there.masks == index.masks
    assert (there.vectors == index.vectors).all()
    assert repr(there) == repr(index)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no zip"),
        lambda path: path.write_bytes(path.read_bytes()[:-60]),
        lambda path: path.unlink(),
        lambda path: np.savez(path, facts=np.frombuffer(b"{}", np.uint8)),
        lambda path: np.savez(path, facts=np.array([{}], object)),
        lambda path: np.savez(
            path,
            facts=np.frombuffer(json.dumps({"version": 9, "model": "m", "photos": [], "masks": []}).encode(), np.uint8),
        ),
        lambda path: np.savez(
            path,
            facts=np.frombuffer(json.dumps({"version": 1, "model": "m", "photos": [], "masks": []}).encode(), np.uint8),
            owner=np.zeros(3, np.int32),
            vectors=np.zeros((3, 6), np.float16),
            boxes=np.zeros((3, 4), np.float32),
        ),
    ],
    ids=["no zip", "cut", "missing", "no facts", "pickled", "of the future", "contradictory"],
)
def test_a_bad_file_is_one_line(spoil, index, tmp_path) -> None:
    path = index.save(tmp_path / "index.npz")
    spoil(path)
    with pytest.raises(RegionIndexError) as caught:
        RegionIndex.load(path)
    assert "\n" not in str(caught.value)


def test_another_ending_is_refused(index, tmp_path) -> None:
    with pytest.raises(OutputError, match=r"end the name in \.npz"):
        index.save(tmp_path / "index.json")
