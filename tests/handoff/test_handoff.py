"""Each format for another tool, read by that tool's own library in an environment of its own: `make test-handoff`."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from densevl.cli import app
from densevl.images import encode_png, read_image, read_labels
from densevl.images.resizing import resize

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("DENSEVL_HANDOFF", ROOT / ".venv-handoff")) / "bin" / "python"
TOOLS = {
    "datumaro": "datumaro",
    "cvat": "datumaro",
    "label_studio": "label_studio_sdk",
    "labelme": "labelme",
    "fiftyone": "fiftyone; fiftyone.list_datasets()",
}
LABELS = ("penguin", "football", "mushroom", "Straße", "<b> & 'co'")


@lru_cache
def missing(package: str) -> str:
    """Why a tool cannot be asked, "" if it can."""
    if not PYTHON.exists():
        return f"no {PYTHON.parents[1]}; `make test-handoff` makes it"
    found = subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True, text=True, timeout=300)
    return (
        "" if found.returncode == 0 else f"{package} does not run there: {found.stderr.strip().splitlines()[-1][:200]}"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three photos of several sizes, segmented and handed on."""
    place = tmp_path_factory.mktemp("handoff")
    (place / "photos").mkdir()
    for number, (name, size) in enumerate({"wood": (192, 192), "snow": (150, 211), "water": (97, 64)}.items()):
        picture = resize(read_image(ROOT / "demo" / "scenes" / f"{name}.png"), size)
        (place / "photos" / f"{name}-{number}.png").write_bytes(encode_png(picture))
    labels = place / "labels.txt"
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    command = ["segment", str(place / "photos"), "--labels", str(labels), "--model", "mini", "--background", "0.3"]
    done = CliRunner().invoke(app, [*command, "--as", "coco,labelme,labelstudio", "--out", str(place / "out")])
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def truth(folder) -> dict[tuple[str, str], np.ndarray]:
    """Masks by photo and name, from the label maps."""
    found = {}
    for path in sorted((folder / "photos").iterdir()):
        labels = read_labels(folder / "out" / path.name)
        found |= {(path.stem, LABELS[n]): labels == n for n in range(len(LABELS)) if (labels == n).any()}
    return found


def understood(tool: str, folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """What a tool read: masks by photo and name, those of the same name together."""
    if reason := missing(TOOLS[tool]):
        pytest.skip(reason)
    out = folder / f"{tool}.npz"
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("read_back.py"), tool, folder, out],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[tuple[str, str], np.ndarray] = {}
    with np.load(out, allow_pickle=False) as read:
        ends = np.cumsum([0, *map(np.prod, read["sizes"])]).astype(int)
        for number, (photo, name, size) in enumerate(zip(read["photos"], read["names"], read["sizes"], strict=True)):
            mask = read["masks"][ends[number] : ends[number + 1]].reshape(size)
            key = (str(photo), str(name))
            found[key] = mask | found.get(key, np.zeros_like(mask))
    return found


@pytest.mark.parametrize("tool", ["datumaro", "cvat", "label_studio", "fiftyone"])
def test_masks_come_back_pixel_by_pixel(tool: str, folder: Path, truth) -> None:
    found = understood(tool, folder)
    assert found.keys() == truth.keys()
    for key, mask in truth.items():
        np.testing.assert_array_equal(found[key], mask, err_msg=str(key))


def test_labelme_opens_polygons_and_fills_them_to_the_masks(folder: Path, truth) -> None:
    found = understood("labelme", folder)
    assert found.keys() == truth.keys()
    differing = {key: int((found[key] ^ mask).sum()) for key, mask in truth.items()}
    assert sum(differing.values()) <= 0.001 * sum(int(mask.sum()) for mask in truth.values()), differing
