"""Miniatures of the anomaly benchmarks in their real layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.errors import DatasetError, EvaluationError
from densevl.evaluation import BENCHMARKS, check, open_dataset
from densevl.evaluation.benchmarks.anomaly import AnomalyDataset

SHAPE = (5, 7)


def _picture(path: Path, value: int = 80, spot: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(SHAPE, value, np.uint8)
    if spot is not None:
        array[:] = 0
        array[1:3, 2:4] = spot
    Image.fromarray(array).save(path)


def _make(name: str, root: Path) -> None:
    if name == "mvtec":
        for number in range(2):
            _picture(root / f"bottle/train/good/{number:03d}.png")
        _picture(root / "bottle/test/good/000.png")
        _picture(root / "bottle/test/crack/000.png")
        _picture(root / "bottle/ground_truth/crack/000_mask.png", spot=255)
    elif name == "visa":
        rows = ["object,split,label,image,mask"]
        for number, (split, label) in enumerate([("train", "normal"), ("test", "normal"), ("test", "anomaly")]):
            image = f"candle/Data/Images/{label}/{number:04d}.JPG"
            mask = f"candle/Data/Masks/Anomaly/{number:04d}.png" if label == "anomaly" else ""
            _picture(root / image)
            if mask:
                _picture(root / mask, spot=3)  # looks black
            rows.append(f"candle,{split},{label},{image},{mask}")
        (root / "split_csv").mkdir()
        (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    elif name == "mtd":
        for number in range(5):
            _picture(root / f"MT_Free/Imgs/{number}.jpg")
            _picture(root / f"MT_Free/Imgs/{number}.png", 0)
        _picture(root / "MT_Crack/Imgs/9.jpg")
        _picture(root / "MT_Crack/Imgs/9.png", spot=140)
    else:
        for split in ("train", "test"):
            for number, spot in ((10000, None), (10001, 255)):
                _picture(root / f"{split}/{number}.png")
                _picture(root / f"{split}/{number}_GT.png", 0, spot)


EXPECTED = {"mvtec": (2, 2), "visa": (1, 2), "mtd": (4, 2), "ksdd2": (1, 2)}  # training and test images


def test_every_reader_has_a_miniature() -> None:
    assert set(EXPECTED) == {name for name, task in BENCHMARKS if task == "anomaly"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_miniature_in_the_real_layout(name, tmp_path) -> None:
    _make(name, tmp_path)
    found = open_dataset(name, tmp_path)
    assert isinstance(found, AnomalyDataset)
    assert (len(found.train), len(found)) == EXPECTED[name]
    assert not any(item.damaged for item in found.train)
    assert sorted(item.damaged for item in found.items) == [False, True]
    areas = {sample.item.damaged: int(sample.truth.sum()) for sample in map(found.read, found.items)}
    assert areas == {False: 0, True: 4}
    assert len(found.names) == 1
    assert len({item.key for item in found.listed}) == len(found.listed)
    assert not check(name, tmp_path).faults


def test_grey_edges_of_tile_masks_are_cut_at_half(tmp_path) -> None:
    _make("mtd", tmp_path)
    _picture(tmp_path / "MT_Crack/Imgs/9.png", spot=100)
    found = open_dataset("mtd", tmp_path)
    assert sum(found[index].truth.sum() for index in range(len(found))) == 0


def test_faults_are_named(tmp_path) -> None:
    with pytest.raises(DatasetError, match="closest: mvtec"):
        open_dataset("mvtek", tmp_path)
    with pytest.raises(DatasetError, match=r"'mvtec' was not found.*expected there: CATEGORY/train/good"):
        open_dataset("mvtec", tmp_path)
    (tmp_path / "cup/test").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no test images of 'mvtec'; expected there: CATEGORY/train/good"):
        open_dataset("mvtec", tmp_path)
    with pytest.raises(DatasetError, match=r"was not found; looked in '.*nowhere'"):
        open_dataset("visa", tmp_path / "nowhere")
    _make("mvtec", tmp_path)
    found = open_dataset("mvtec", tmp_path)
    damaged = next(item for item in found.items if item.damaged)
    Image.new("L", (9, 9)).save(damaged.label)
    with pytest.raises(DatasetError, match="labels are never resized"):
        found.read(damaged)
    assert "never resized" in check("mvtec", tmp_path).faults[0]
    damaged.label.unlink()
    with pytest.raises(DatasetError, match=r"the labels of .* are missing: '.*000_mask.png'"):
        found.read(damaged)
    with pytest.raises(EvaluationError, match="3 shots asked for and 'bottle' has 2 flawless images"):
        found.references("bottle", 3)


@pytest.mark.parametrize("limit", range(2, 18))
def test_some_of_a_set_are_flawless_and_some_damaged(tmp_path, limit) -> None:
    """An even step over all of them may meet one kind only, and then there is no AUROC."""
    for kind, count in (("good", 6), ("hole", 6), ("scratch", 6)):
        for number in range(count):
            _picture(tmp_path / "tile" / "test" / kind / f"{number}.png")
            if kind != "good":
                _picture(tmp_path / "tile" / "ground_truth" / kind / f"{number}_mask.png", 0, 255)
    _picture(tmp_path / "tile" / "train" / "good" / "0.png")
    some = open_dataset("mvtec", tmp_path, task="anomaly").subset(limit)
    assert len(some) == limit
    assert {item.damaged for item in some.items} == {False, True}
