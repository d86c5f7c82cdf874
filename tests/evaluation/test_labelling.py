"""Labelling: shards that resume, bad files as rows, and the same through Ray where it is installed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.errors import EvaluationError, ImageError
from densevl.evaluation.labelling import Labelling, find_images, label, shards
from densevl.images import read_image
from densevl.results import SegmentationResult


def _segment(image, labels) -> SegmentationResult:
    rgb = read_image(image)
    found = (rgb[..., 0] % len(labels)).astype(np.int16)
    return SegmentationResult(found, tuple(labels), np.ones(found.shape, np.float32), rgb)


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(7):
        path = root / f"{'sub/' if number % 2 else ''}{number}.jpg"
        Image.fromarray(rng.integers(0, 255, (10, 12, 3), np.uint8)).save(path)
    (root / "3.jpg").write_bytes(b"no image")
    (root / "0.png").write_bytes((root / "0.jpg").read_bytes())  # the same stem
    return root


def _work(tmp_path: Path, **more) -> Labelling:
    return Labelling(("cat", "dog"), str(tmp_path / "out"), **more)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_gets_a_map_in_its_place_and_bad_files_a_row(photos, tmp_path) -> None:
    assert label(_work(tmp_path), photos, size=3, segment=_segment) == (8, 1)
    rows, errors = _read(tmp_path / "out/labels.csv"), _read(tmp_path / "out/errors.csv")
    assert {row["labels"] for row in rows} == {
        *("0.jpg.png", "0.png.png", "2.png", "4.png", "6.png"),
        *("sub/1.png", "sub/3.png", "sub/5.png"),
    }
    assert all((tmp_path / "out" / row["labels"]).exists() for row in rows)
    assert [Path(row["image"]).name for row in errors] == ["3.jpg"]
    assert "3.jpg" in errors[0]["error"]


def test_a_killed_run_does_only_what_is_missing(photos, tmp_path) -> None:
    seen = []

    def dies(image, labels):
        seen.append(image)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return _segment(image, labels)

    with pytest.raises(KeyboardInterrupt):
        label(_work(tmp_path), photos, size=3, segment=dies)
    first = set(seen[:3])  # the shard that was done
    again = []

    def watch(image, labels):
        again.append(image)
        return _segment(image, labels)

    shown = []
    assert label(_work(tmp_path), photos, size=3, segment=watch, show=lambda *v: shown.append(v)) == (8, 1)
    assert not first & set(again)
    assert shown[-1] == (9, 9)
    assert label(_work(tmp_path), photos, size=3, segment=None) == (8, 1)  # nothing left: no model is loaded


def test_another_labelling_is_refused(photos, tmp_path) -> None:
    label(_work(tmp_path), photos, segment=_segment)
    fewer = Labelling(("cat",), str(tmp_path / "out"))
    for change, size in ((fewer, 64), (_work(tmp_path, recipe="sclip"), 64), (_work(tmp_path), 2)):
        with pytest.raises(EvaluationError, match="holds another labelling"):
            label(change, photos, size=size, segment=_segment)


def test_lists_and_faults(photos, tmp_path) -> None:
    paths = tmp_path / "list.txt"
    paths.write_text("\n".join(str(photos / name) for name in ("0.jpg", "0.png", "sub/1.jpg")))
    assert [image for image, _ in find_images(paths)] == [str(photos / n) for n in ("0.jpg", "0.png", "sub/1.jpg")]
    assert len({name for _, name in find_images(paths)}) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in"):
        find_images(tmp_path / "empty")
    with pytest.raises(ImageError, match="neither a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="shards of 0"):
        shards([], 0)
    with pytest.raises(EvaluationError, match="taken for images"):
        label(Labelling(("cat",), str(photos / "out")), photos, segment=_segment)


@pytest.fixture
def two_nodes(monkeypatch):
    """The address of a Ray cluster of two local nodes with one CPU each."""
    ray = pytest.importorskip("ray.data") and pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_ray_cluster_of_two_nodes_labels_as_one_process_does(photos, tmp_path, two_nodes) -> None:
    import ray

    here, there = (Labelling(("cat", "car"), str(tmp_path / name), model="mini", threads=1) for name in ("a", "b"))
    shown = []
    assert label(here, photos, size=2) == (8, 1)
    # Each worker takes a CPU and each node has one, so two workers are on two nodes.
    done = label(there, photos, size=2, ray=two_nodes, workers=2, show=lambda *counts: shown.append(counts))
    assert done == (8, 1)
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert shown[-1] == (9, 9)
    for row in _read(tmp_path / "a/labels.csv"):
        assert (tmp_path / "a" / row["labels"]).read_bytes() == (tmp_path / "b" / row["labels"]).read_bytes()
    (tmp_path / "b/shards/000001.json").unlink()  # as if the run had been killed
    again = []
    assert label(there, photos, size=2, ray=two_nodes, show=lambda *counts: again.append(counts)) == (8, 1)
    assert again == [(9, 9)]
