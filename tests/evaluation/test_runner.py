"""The runner: the same integers alone, by two processes, and after ten kills; reports that repeat byte for byte."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import init_process_group

import densevl
from densevl.evaluation import EvaluationError, Experiment, distributed, run
from densevl.evaluation.checkpoint import State
from densevl.evaluation.predictors import Clock, Prediction
from densevl.evaluation.report import results as report

IMAGES = 13
CLASSES = ("background", "dog", "car")
EXPERIMENT = {"dataset": "folder", "measures": ("iou", "boundary", "calibration")}


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "sub").mkdir(parents=True)
    for number in range(IMAGES):
        name = f"{'sub/' if number % 2 else ''}{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(folder / "images" / name)
        Image.fromarray(rng.integers(0, 3, (3, 4), np.uint8).repeat(4, 0).repeat(4, 1)).save(folder / "labels" / name)
    (folder / "names.txt").write_text("\n".join(CLASSES))
    return folder


class Dummy:
    """Predicts from the pixels alone; may act before the n-th image."""

    def __init__(self, before: Callable[[int], None] = lambda count: None, **facts: str) -> None:
        self.clock, self.before, self.count = Clock(), before, 0
        self.used = {"model": "dummy", "recipe": "none", "weights": "a" * 64, **facts}

    def facts(self) -> dict[str, str]:
        return self.used

    def __call__(self, rgb: np.ndarray) -> Prediction:
        self.before(self.count)
        self.count += 1
        return Prediction((rgb[..., 0] % 4).astype(np.int16) - 1, rgb[..., 1].astype(np.float32) / 255)


def _experiment(root: Path) -> Experiment:
    return Experiment(root=str(root), **EXPERIMENT)


def _forked(work: Callable[[], None]) -> int:
    """Do it in a process of its own; returns how that ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def _same(one, other) -> None:
    assert one.counts.keys() == other.counts.keys()
    for name in one.counts:
        np.testing.assert_array_equal(one.counts[name], other.counts[name], err_msg=name)
    np.testing.assert_array_equal(one.ranking, other.ranking)


def test_ten_kills_change_no_count(root, tmp_path) -> None:
    alone = run(_experiment(root), predictor=Dummy())

    def die(count: int) -> None:
        if count == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # no time to save anything

    work = tmp_path / "work"
    for done in range(1, 11):
        ended = _forked(lambda: run(_experiment(root), work, predictor=Dummy(die), save_every=0))
        assert os.WIFSIGNALED(ended)
        assert len(list((work / "state").iterdir())) == done
    resumed = run(_experiment(root), work, predictor=Dummy())
    assert (resumed.resumed, resumed.images) == (10, 3)
    _same(alone, resumed)
    again = run(_experiment(root), work, predictor=Dummy())
    assert (again.resumed, again.images) == (13, 0)
    _same(alone, again)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_count_what_one_does(world, root, tmp_path) -> None:
    alone = run(_experiment(root), predictor=Dummy())

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=world)
        outcome = run(_experiment(root), tmp_path / "work", predictor=Dummy())
        if rank == 0:
            State({}, outcome.files, np.ones(IMAGES, bool), outcome.ranking, outcome.counts).save(tmp_path / "sum.npz")
        distributed.barrier()
        distributed.leave()

    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                work(rank)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    _same(alone, State.load(tmp_path / "sum.npz"))
    assert len(list((tmp_path / "work/state").iterdir())) == world
    _same(alone, run(_experiment(root), tmp_path / "work", predictor=Dummy()))  # goes on with another number of them


def test_an_error_keeps_what_was_counted_and_the_file_can_be_mended(root, tmp_path) -> None:
    alone = run(_experiment(root), predictor=Dummy())
    content = (root / "images/08.png").read_bytes()
    (root / "images/08.png").write_bytes(content[:-20])
    with pytest.raises(EvaluationError.__base__, match=r"08.png' cannot be decoded"):
        run(_experiment(root), tmp_path / "work", predictor=Dummy())
    state = State.load(next((tmp_path / "work/state").iterdir()))
    assert 0 < state.done.sum() < IMAGES
    (root / "images/08.png").write_bytes(content)  # nothing was counted of it
    _same(alone, run(_experiment(root), tmp_path / "work", predictor=Dummy()))


def test_the_place_of_the_files_is_no_part_of_an_experiment(root, tmp_path) -> None:
    one = run(_experiment(root), tmp_path / "work", predictor=Dummy())
    other = run(_experiment(root.rename(root.with_name("moved"))), tmp_path / "work", predictor=Dummy())
    assert (other.resumed, other.fingerprint) == (IMAGES, one.fingerprint)


def _mini(folder: Path, name: str, scale: float) -> str:
    """The shipped model as a file, its weights changed a little."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(Path(densevl.__file__).parent / "weights/mini.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    changed = {key: value * scale if value.is_floating_point() else value for key, value in tensors.items()}
    save_file(changed, folder / name, header)
    return str(folder / name)


def _another_model(root: Path, folder: Path, monkeypatch) -> Any:
    return {"model": "another"}


def _other_weights(root: Path, folder: Path, monkeypatch) -> Any:
    return {"weights": "b" * 64}


def _another_version(root: Path, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("densevl.evaluation.outcome.__version__", "9.9")


def _another_label(root: Path, folder: Path, monkeypatch) -> None:
    labels = np.asarray(Image.open(root / "labels/02.png")).copy()
    labels[0, 0] = (labels[0, 0] + 1) % 3
    Image.fromarray(labels).save(root / "labels/02.png")


def _another_class(root: Path, folder: Path, monkeypatch) -> None:
    (root / "names.txt").write_text("background\ndog\nlorry")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_another_model, "model 'dummy' -> 'another'"),
        (_other_weights, "weights aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        (_another_version, "versions.densevl '.*' -> '9.9'"),
        (_another_label, "1 of the images counted, or their labels, have changed, '02' first"),
        (_another_class, "classes [0-9a-f]{12} -> [0-9a-f]{12}"),
    ],
)
def test_what_could_change_a_count_is_another_experiment_and_the_message_says_what(
    change, told, root, tmp_path, monkeypatch
) -> None:
    run(_experiment(root), tmp_path / "work", predictor=Dummy())
    changed = change(root, tmp_path, monkeypatch) or {}
    with pytest.raises(EvaluationError, match=rf"counts of another experiment: {told}; .*--out.*--fresh") as caught:
        run(_experiment(root), tmp_path / "work", predictor=Dummy(**changed))
    assert "\n" not in str(caught.value)


def test_settings_that_differ_are_named(root, tmp_path) -> None:
    run(_experiment(root), tmp_path / "work", predictor=Dummy())
    other = Experiment(root=str(root), **{**EXPERIMENT, "min_share": 0.1})
    with pytest.raises(EvaluationError, match=r"another experiment: experiment.min_share 0.0 -> 0.1; "):
        run(other, tmp_path / "work", predictor=Dummy())


def test_other_weights_of_the_shipped_model_are_not_resumed(root, tmp_path) -> None:
    files = [_mini(tmp_path, name, scale) for name, scale in (("a.safetensors", 1.0), ("b.safetensors", 1.001))]
    asked = [Experiment("folder", root=str(root), model="mini", weights=file, limit=2) for file in files]
    run(asked[0], tmp_path / "work")
    with pytest.raises(EvaluationError, match=r"another experiment: weights [0-9a-f]{12} -> [0-9a-f]{12}"):
        run(asked[1], tmp_path / "work")
    Path(files[0]).rename(tmp_path / "moved.safetensors")
    moved = Experiment("folder", root=str(root), model="mini", weights=str(tmp_path / "moved.safetensors"), limit=2)
    assert run(moved, tmp_path / "work").resumed == 2


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([0, 2, 1, *[255] * 9], "of the pixels of the truth are ignored"),
        ([0, 1, 2, 255], None),
        ([0, 1, 1, 255], "1 of 3 classes occur nowhere in the truth: "),
    ],
)
def test_a_truth_that_is_mostly_ignored_or_lacks_classes_is_said(numbers, told, root, caplog, tmp_path) -> None:
    for path in (root / "labels").rglob("*.png"):
        values = np.array(numbers, np.uint8)[np.arange(12) % len(numbers)][:, None].repeat(16, 1)
        Image.fromarray(values).save(path)
    with caplog.at_level("WARNING"):
        outcome = run(_experiment(root), predictor=Dummy())
    facts = json.loads(report.write(outcome, tmp_path / "out")[1].read_text())
    assert bool(told) == bool(facts["warnings"]) == bool(caplog.text), facts["warnings"]
    if told:
        assert re.search(told, facts["warnings"][0])
        assert caplog.text.count(facts["warnings"][0]) == 1
        assert "255 and 65535 (as usual; nothing else was said)" in facts["first_look"]["seen"]
    assert facts["ignored"] == pytest.approx(numbers.count(255) / len(numbers))
    assert facts["classes not in the truth"] == [name for k, name in enumerate(CLASSES) if k not in numbers]


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


DEEP = "[" * 100_000
DAMAGED = {
    "empty": (b"", "cannot be read: it is"),
    "cut": (b"PK\x03\x04 cut", "cannot be read: it is"),
    "one array": (_npy(), "cannot be read: it is"),
    "no arrays": (_npz(), "cannot be read: it is"),
    "no JSON": (_npz(identity=np.array("{")), "cannot be read: it is"),
    "deep JSON": (_npz(identity=np.array(DEEP)), "cannot be read: it is"),
    "a list": (_npz(identity=np.array("[1]"), files=[0], done=[0], ranking=[0]), "cannot be read: it is"),
    "other shapes": (None, "cannot be read: it is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_state_is_named(kind, root, tmp_path) -> None:
    content, message = DAMAGED[kind]
    run(_experiment(root), tmp_path / "work", predictor=Dummy())
    path = tmp_path / "work/state/0001-0000.npz"
    if content is None:
        with np.load(path) as file:
            content = _npz(**{**file, "done": file["done"][:3]})
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=f"0001-0000.npz' {message}") as caught:
        run(_experiment(root), tmp_path / "work", predictor=Dummy())
    assert "\n" not in str(caught.value)


def test_progress_counts_up_and_predictions_mirror_the_tree(root, tmp_path) -> None:
    seen = []
    outcome = run(
        _experiment(root), predictor=Dummy(), dump=tmp_path / "dump", show=lambda *values: seen.append(values)
    )
    assert [done for done, _, _ in seen] == list(range(1, IMAGES + 1))
    assert seen[-1][2] == pytest.approx(outcome.summary["mIoU"])
    files = sorted(path.relative_to(tmp_path / "dump").as_posix() for path in (tmp_path / "dump").rglob("*.png"))
    assert files == sorted(f"{item.key}.png" for item in outcome.dataset.items)
    stored = np.asarray(Image.open(tmp_path / "dump/sub/01.png")).astype(np.int64)
    expected = np.asarray(Image.open(root / "images/sub/01.png"))[..., 0] % 4
    np.testing.assert_array_equal(np.where(stored == 65535, -1, stored), expected.astype(int) - 1)


def test_reports_repeat_byte_for_byte_but_for_the_run(root, tmp_path) -> None:
    one = run(_experiment(root), tmp_path / "one", predictor=Dummy())
    with pytest.raises(ZeroDivisionError):
        run(_experiment(root), tmp_path / "two", predictor=Dummy(lambda count: count < 5 or 1 / 0))
    two = run(_experiment(root), tmp_path / "two", predictor=Dummy())
    texts = {}
    for name, outcome in (("one", one), ("two", two)):
        files = report.write(outcome, tmp_path / name, Dummy())
        assert [path.name for path in files] == ["report.html", "results.json", "classes.csv", "confusion.csv"]
        facts = json.loads(files[1].read_text())
        facts.pop("run")
        html = files[0].read_text()
        start, end = html.index("<h2>Time"), html.index("<h2>Protocol")
        texts[name] = (json.dumps(facts), html[:start] + html[end:], files[2].read_text(), files[3].read_text())
    assert texts["one"] == texts["two"]
    assert "http" not in texts["one"][1]  # needs no network
    assert texts["one"][1].count("data:image/jpeg;base64,") == 4 * 2 * 3
    rows = texts["one"][2].splitlines()
    assert rows[0].startswith("class,IoU,accuracy")
    assert len(rows) == 1 + len(CLASSES)


def test_a_class_that_never_occurs_is_empty_in_json_and_absent_on_the_page(root, tmp_path) -> None:
    (root / "names.txt").write_text("\n".join([*CLASSES, "<unicorn>"]))
    outcome = run(_experiment(root), predictor=Dummy())
    files = report.write(outcome, tmp_path / "out")
    facts = json.loads(files[1].read_text())
    assert facts["classes"][3]["IoU"] is None
    assert facts["measures"]["absent"] == 1
    assert "&lt;unicorn&gt;" in files[0].read_text()
