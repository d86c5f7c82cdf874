"""Files that densevl saved and reads again, after what happens to files: cut, mistaken, edited, made by others."""

from __future__ import annotations

import io
import json
import random
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from case import Case, cases, run

from densevl import AnomalyDetector, FewShot, RegionClassifier, Segmenter, fitted, load_backbone
from densevl.anomaly.result import AnomalyResult
from densevl.anomaly.storage import FORMAT as ANOMALY
from densevl.errors import DensevlError
from densevl.evaluation.checkpoint import State
from densevl.fewshot.result import Classification
from densevl.pipelines.fewshot.files import FORMAT as FEWSHOT
from densevl.regions.index import Photo, RegionIndex
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult
from densevl.vocabulary.text_cache import TextCache

DEMO = Path(__file__).parents[2] / "demo" / "scenes"
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
MINI = load_backbone("mini")


class Saved(NamedTuple):
    """A kind of file: saved in a folder as files of the stem "x", what reads it, and the endings of its files."""

    save: Callable[[Path], Any]
    load: Callable[[Path], Any]
    endings: tuple[str, ...]
    value: Callable[[Any], Any] | None = None
    """What has to be the same where a changed file is read; JSON of results carries no checksum."""


def _index(path: Path) -> None:
    classify = RegionClassifier(MINI, "cls_mask", proposals="grid")
    found = classify.embed(PICTURE)
    (operator,) = classify.operators
    photo = Photo("a.png", found.regions.size, 1, 2)
    rows = found.vectors[operator].cpu()
    RegionIndex.empty("{}", rows.shape[1]).with_photos([(photo, found.regions, rows)]).save(path / "x.npz")


def _state(path: Path) -> None:
    state = State.empty({"a": 1}, np.arange(3, dtype=np.uint64), {"confusion": np.zeros((2, 2), np.int64)})
    state.add(1, {"confusion": np.eye(2, dtype=np.int64)}, 0.5)
    state.save(path / "x.npz")


def _bytes(found: Any) -> str:
    parts = {**vars(found), **getattr(found, "counts", {})}
    return repr({name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in parts.items()})


def _fewshot() -> FewShot:
    return FewShot(MINI).fit({"dark": [PICTURE // 2], "light": [PICTURE]})


def _regions() -> RegionResult:
    return RegionClassifier(MINI, proposals="grid")(PICTURE, "penguin, pizza")


KINDS = {
    "state": Saved(_state, lambda folder: State.load(folder / "x.npz"), (".npz",), _bytes),
    "index": Saved(_index, lambda folder: RegionIndex.load(folder / "x.npz"), (".npz",), _bytes),
    "detector": Saved(
        lambda folder: AnomalyDetector(MINI, "dino").fit([PICTURE]).save(folder / "x"),
        lambda folder: AnomalyDetector.load(folder / "x", MINI),
        (".json", ".safetensors"),
        lambda detector: detector.facts(),
    ),
    "few-shot head": Saved(
        lambda folder: _fewshot().save(folder / "x"),
        lambda folder: FewShot.load(folder / "x", MINI),
        (".json", ".safetensors"),
        lambda fewshot: fewshot.facts(),
    ),
    "segmentation": Saved(
        lambda folder: Segmenter(MINI)(PICTURE, "penguin, pizza").save(folder / "x.png"),
        lambda folder: SegmentationResult.load(folder / "x.png", image=PICTURE),
        (".json", ".png", "_confidence.png"),
    ),
    "regions": Saved(
        lambda folder: _regions().save(folder / "x.json"),
        lambda folder: RegionResult.load(folder / "x.json", image=PICTURE),
        (".json",),
    ),
    "anomaly": Saved(
        lambda folder: AnomalyDetector(MINI)(PICTURE).save(folder / "x.png"),
        lambda folder: AnomalyResult.load(folder / "x.png", image=PICTURE),
        (".json", ".npy"),
    ),
    "classification": Saved(
        lambda folder: _fewshot()(PICTURE).save(folder / "x.json"),
        lambda folder: Classification.load(folder / "x.json", image=PICTURE),
        (".json",),
    ),
}
FILES = [(kind, ending) for kind, saved in KINDS.items() for ending in saved.endings]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind."""
    made = {}
    for kind, saved in KINDS.items():
        made[kind] = tmp_path_factory.mktemp("saved")
        saved.save(made[kind])
    return made


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(claims: int = 0) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue().replace(b"(3,), }", f"({claims},), }}".encode()[:7]) if claims else buffer.getvalue()


FOREIGN: dict[str, bytes] = {
    "of 0 bytes": b"",
    "an array": _npy(),
    "a picture": _png(),
    "a web page": b"<!DOCTYPE html><html><head>Sign in</head></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
    "deep JSON": b"[" * 10**5,
    "deep objects": b'{"a":' * 10**5,
    "a list": b"[]",
    "an empty object": b"{}",
    "a key twice": b'{"size": 1, "size": 2}',
    "NaN": b'{"size": NaN}',
    "infinity in figures": b'{"size": 1e999}',
    "text in another encoding": '{"size": "größe"}'.encode("utf-16"),
    "200,000 keys": json.dumps({f"{'k' * 40}{n}": n for n in range(200_000)}).encode(),
    "zeros": bytes(1000),
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "terabytes claimed": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(117)
    + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize(("kind", "ending"), FILES)
def test_another_file_in_its_place_is_one_line(whole, tmp_path, kind, ending, content) -> None:
    if content == "a picture" and ending.endswith(".png"):
        pytest.skip("it is one")
    folder = shutil.copytree(whole[kind], tmp_path / "copy")
    (folder / f"x{ending}").write_bytes(FOREIGN[content])
    _refused(KINDS[kind].load, folder)


@pytest.mark.parametrize(("kind", "ending"), FILES)
def test_a_folder_or_nothing_in_its_place_is_one_line(whole, tmp_path, kind, ending) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / "copy")
    (folder / f"x{ending}").unlink()
    _refused(KINDS[kind].load, folder)
    (folder / f"x{ending}").mkdir()
    _refused(KINDS[kind].load, folder)


MUTATIONS = 150


@pytest.mark.parametrize(("kind", "ending"), FILES)
def test_any_damage_is_one_line_or_changes_nothing_and_takes_no_memory(whole, tmp_path, kind, ending) -> None:
    saved, folder = KINDS[kind], shutil.copytree(whole[kind], tmp_path / "copy")
    file, draw = folder / f"x{ending}", random.Random(f"{kind}{ending}")
    before = file.read_bytes()
    value = saved.value(saved.load(folder)) if saved.value else None
    tracemalloc.start()
    for _ in range(MUTATIONS if len(before) < 10**5 else MUTATIONS // 8):
        file.write_bytes(_damaged(before, draw))
        read, text = _tried(saved.load, folder)
        assert "\n" not in text
        assert saved.value is None or read is None or saved.value(read) == value
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6
    file.write_bytes(before)
    saved.load(folder)


def _damaged(content: bytes, draw: random.Random) -> bytes:
    """A content with a bit turned, cut, a piece zeroed, doubled or put elsewhere, or a number made huge."""
    at, to = sorted(draw.randrange(len(content)) for _ in range(2))
    to += 1
    how = draw.randrange(6)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[to:]
    if how == 2 and any(content[at:to]):
        return content[:at] + bytes(to - at) + content[to:]
    if how == 3:
        return content[:to] + content[at:to] + content[to:]
    if how == 4 and (digits := [place for place, sign in enumerate(content) if 48 <= sign < 58]):
        place = draw.choice(digits)
        return content[:place] + draw.choice([b"-1", b"99999999999999", b"1e300", b"null", b'"x"']) + content[place:]
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[to:][: len(content)]


def _tried(load: Callable[[Path], Any], folder: Path) -> tuple[Any, str]:
    """What is loaded, or None and what is said."""
    try:
        return load(folder), ""
    except DensevlError as error:
        return None, str(error)


def _refused(load: Callable[[Path], Any], folder: Path) -> None:
    with pytest.raises(DensevlError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def _edited(folder: Path, kind: str, change: Callable[[dict[str, Any]], None], **renamed: Any) -> Any:
    """A kind saved, its JSON changed, and read."""
    KINDS[kind].save(folder)
    facts = json.loads((folder / "x.json").read_text())
    change(facts)
    if facts.pop("facts_sha256", None):
        facts["facts_sha256"] = fitted.stamp(facts)
    (folder / "x.json").write_text(json.dumps(facts))
    return KINDS[kind].load(folder)


def _archive(folder: Path, kind: str, **changes: Any) -> Any:
    """A kind of .npz saved, its arrays replaced, and read."""
    KINDS[kind].save(folder)
    with np.load(folder / "x.npz") as file:
        arrays = {**file, **{name.replace("_count_", "count/"): value for name, value in changes.items()}}
    np.savez(folder / "x.npz", **{name: value for name, value in arrays.items() if value is not None})
    return KINDS[kind].load(folder)


def _bomb(folder: Path) -> Any:
    """An archive whose members lie over each other, as large as one each."""
    KINDS["state"].save(folder)
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files.npy", bytes(10**7))
    return State.load(folder / "x.npz")


def _cache(folder: Path) -> Any:
    """A text cache in which a bit is turned; the other row is as it was."""
    import sqlite3

    path = folder / "text.sqlite"
    cache = TextCache("model", ["a photo of {}"], path)
    cache.put({"cat": np.ones(4, np.float32), "dog": np.full(4, 2, np.float32)})
    with sqlite3.connect(path) as connection:
        key = cache._key("cat")
        (row,) = connection.execute("SELECT vector FROM embedding WHERE key = ?", [key]).fetchone()
        turned = row[:-1] + bytes([row[-1] ^ 1])
        connection.execute("UPDATE embedding SET vector = ? WHERE key = ?", [turned, key])
    return cache.get(["cat", "dog"])


def _search_in_a_picture(folder: Path) -> Any:
    (folder / "x.npz").write_bytes(_png())
    return run("search", DEMO, "--for", "x", "--model", "mini", "--index", folder / "x.npz")


def _both(folder: Path, of: str, to: str) -> Any:
    KINDS[of].save(folder)
    return KINDS[to].load(folder)


TABLE = (
    Case(
        "a state with negative counts",
        "an eval state that was edited",
        lambda folder: _archive(folder, "state", _count_confusion=np.full((2, 2), -1)),
        refused="a count is not an integer of 0 or more",
    ),
    Case(
        "a state whose counts are fractions",
        "an eval state of another program",
        lambda folder: _archive(folder, "state", _count_confusion=np.ones((2, 2))),
        refused="a count is not an integer",
    ),
    Case(
        "a state of pickled objects",
        "an .npz that would run code",
        lambda folder: _archive(folder, "state", files=np.array([{}], object)),
        refused="it holds object, not numbers",
    ),
    Case("a compressed archive", "an .npz that grows when read", _bomb, refused="it is compressed"),
    Case(
        "an index without owners",
        "an index that lacks an array",
        lambda folder: _archive(folder, "index", owner=None),
        refused="it lacks 'owner'",
    ),
    Case(
        "an index whose owners are before the first photo",
        "an index that was edited",
        lambda folder: _archive(folder, "index", owner=np.full(1, -1, np.int32)),
        refused="region index .* damaged",
    ),
    Case(
        "an index of doubles",
        "an index of other numbers",
        lambda folder: _archive(folder, "index", vectors=np.ones((1, 4))),
        refused="a wrong dtype or number of dimensions",
    ),
    Case(
        "an index with NaN",
        "a vector that is no number",
        lambda folder: _archive(folder, "index", vectors=np.full((1, 4), np.nan, np.float16)),
        refused="region index .* damaged",
    ),
    Case(
        "an index from the future",
        "a file of a later version",
        lambda folder: _archive(
            folder, "index", facts=np.frombuffer(b'{"version": 9, "model": "{}", "photos": [], "masks": []}', np.uint8)
        ),
        refused="is of version 9, this densevl reads 1",
    ),
    Case(
        "a state given as an index",
        "another kind of file of densevl",
        lambda folder: _both(folder, "state", "index"),
        refused="of another kind: it lacks",
    ),
    Case(
        "an anomaly detector given as a few-shot head",
        "another kind of file of densevl",
        lambda folder: _both(folder, "detector", "few-shot head"),
        refused=f"a file of the kind '{ANOMALY}', not '{FEWSHOT}'",
    ),
    Case(
        "a few-shot head given as an anomaly detector",
        "another kind of file of densevl",
        lambda folder: _both(folder, "few-shot head", "detector"),
        refused=f"a file of the kind '{FEWSHOT}', not '{ANOMALY}'",
    ),
    Case(
        "a detector from the future",
        "a file of a later version",
        lambda folder: _edited(folder, "detector", lambda facts: facts.update(format="densevl-anomaly-9")),
        refused="kind 'densevl-anomaly-9', not",
    ),
    Case(
        "a detector without its item",
        "a file that lacks a fact",
        lambda folder: _edited(folder, "detector", lambda facts: facts.pop("item")),
        refused="'item' is missing",
    ),
    Case(
        "a detector whose threshold is a text",
        "a file with a value of another type",
        lambda folder: _edited(folder, "detector", lambda facts: facts.update(spread={"text": 3, "memory": None})),
        refused="anomaly detector .* damaged",
    ),
    Case(
        "a segmentation given as regions",
        "another kind of result",
        lambda folder: _both(folder, "segmentation", "regions"),
        refused="of another kind: it lacks 'regions'",
    ),
    Case(
        "a result of a size of terabytes",
        "a size that nobody has",
        lambda folder: _edited(folder, "regions", lambda facts: facts.update(size={"height": 10**7, "width": 10**7})),
        refused="at most 100,000,000 pixels",
    ),
    Case(
        "a result whose size is true",
        "a size of another type",
        lambda folder: _edited(folder, "anomaly", lambda facts: facts.update(size={"height": True, "width": 64})),
        refused="its size is",
    ),
    Case(
        "a mask of terabytes",
        "run lengths that add up past what numbers hold",
        lambda folder: (
            _edited(
                folder,
                "regions",
                lambda facts: facts["unnamed"][0]["segmentation"].update(counts=[2**62] * 4 + [64 * 64]),
            )
            if KINDS["regions"]
            else None
        ),
        refused="result .* damaged",
    ),
    Case(
        "a region of a class that is not there",
        "a result that was edited",
        lambda folder: _edited(folder, "classification", lambda facts: facts.update(names=["one"])),
        refused="for 1 names",
    ),
    Case(
        "a result read from nothing",
        "None where a path is due",
        lambda folder: RegionResult.load(None),  # type: ignore[arg-type]
        refused="result cannot be read from NoneType",
    ),
    Case(
        "a head read from nothing",
        "None where a path is due",
        lambda folder: FewShot.load(None, MINI),  # type: ignore[arg-type]
        refused="few-shot head cannot be read from NoneType",
    ),
    Case(
        "a flipped bit in the text cache",
        "a cache on a bad disk",
        _cache,
        right=lambda found: list(found) == ["dog"] and float(found["dog"].sum()) == 8,
    ),
    Case(
        "a search in an index that is a picture",
        "another file given to an option",
        _search_in_a_picture,
        refused="region index .* is a picture",
    ),
)


@cases(*TABLE)
def test_saved_files_are_read_as_they_were_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
