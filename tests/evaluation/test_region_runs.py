"""Instances and panoptic maps through the runner: the same alone, by two processes, after kills; AP as LVIS has it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.distributed import init_process_group
from typer.testing import CliRunner

from concept_folders import FOLDERS
from densevl.cli import app
from densevl.concepts import ConceptModel
from densevl.errors import DatasetError, MissingExtraError, ProposalError
from densevl.evaluation import EvaluationError, Experiment, distributed, run
from densevl.evaluation.benchmarks.coco import PanopticMap
from densevl.evaluation.checkpoint import State
from densevl.evaluation.metrics.average_precision import average_precision
from densevl.evaluation.metrics.panoptic import Segment
from densevl.evaluation.predictors import Clock
from densevl.evaluation.report import results as report
from densevl.evaluation.tasks.instance import Instances
from densevl.proposals.decoded import Decoded
from tests.evaluation.region_miniatures import SIDE, make_instances, make_panoptic

IMAGES = 13


class Dummy:
    """Finds what the pixels say, nearly the same boxes in every image; may act before the n-th."""

    def __init__(self, task: str, before: Callable[[int], None] = lambda count: None) -> None:
        self.task, self.clock, self.before, self.count = task, Clock(), before, 0

    def facts(self) -> dict[str, str]:
        return {"model": "dummy", "recipe": "none"}

    def __call__(self, sample, resolve) -> Instances | PanopticMap:
        self.before(self.count)
        self.count += 1
        shift = int(sample.image[0, 0, 0]) % 4
        boxes = [(2 + shift, 3, 8), (14, 4 + shift, 9), (1, 12, 6)]
        if self.task == "instance":
            masks = np.zeros((*SIDE, 3), np.uint8, order="F")
            for index, (x, y, side) in enumerate(boxes):
                masks[y : y + side, x : x + side, index] = 1
            codes = [{"size": own["size"], "counts": own["counts"].decode()} for own in coco_mask.encode(masks)]
            scores = np.sort(sample.image[0, :3, 1].astype(np.float32) / 255)[::-1]
            return Instances(np.array([0, 1, 1]), scores, tuple(codes))
        ids = np.full(SIDE, 9)
        for index, (x, y, side) in enumerate(boxes):
            ids[y : y + side, x : x + side] = index + 1
        return PanopticMap(ids, (Segment(1, 1), Segment(2, 2), Segment(3, 2), Segment(9, 0)))


@pytest.fixture(params=["instance", "panoptic"])
def task(request) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path) -> Path:
    make_instances("folder", tmp_path / "data", IMAGES)
    make_panoptic("folder", tmp_path / "data", IMAGES)
    return tmp_path / "data"


def _experiment(root: Path, task: str) -> Experiment:
    return Experiment("folder", root=str(root), task=task)


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def _same(one, other) -> None:
    for name in one.counts:
        np.testing.assert_array_equal(one.counts[name], other.counts[name], err_msg=name)
    np.testing.assert_array_equal(one.ranking, other.ranking)
    assert one.kept == other.kept
    assert one.summary == pytest.approx(other.summary, abs=0, nan_ok=True)


def _report(outcome, folder: Path, task: str) -> list[str]:
    """Texts of a report without what belongs to the run."""
    files = report.write(outcome, folder, Dummy(task))
    assert [path.name for path in files] == ["report.html", "results.json", "classes.csv"]
    facts = json.loads(files[1].read_text())
    facts.pop("run")
    html = files[0].read_text()
    assert "http" not in html
    assert html.count("data:image/jpeg;base64,") == 4 * 2 * 3
    return [
        html[: html.index("<h2>Time")] + html[html.index("<h2>Protocol") :],
        json.dumps(facts),
        files[2].read_text(),
    ]


def test_a_decoder_s_masks_are_scored_by_its_files(root, tmp_path) -> None:
    masks = np.zeros((2, *SIDE), bool)
    masks[0, 3:11, 2:10] = masks[1, 4:13, 14:23] = True
    sure = Decoded(masks, [[9, 0, 0], [0, 9, 0]], ["cat", "traffic light"])
    for number in range(IMAGES):
        sure.save(tmp_path / "files" / f"{7 * number + 1:012d}.npz")
    asked = {"root": str(root), "task": "panoptic", "model": "mini", "limit": 2}
    found = run(Experiment("folder", decoder=str(tmp_path / "files"), clip_share="0,0", **asked))
    assert found.summary["PQ things"] == 1
    with pytest.raises(EvaluationError, match="both say where the masks come from"):
        Experiment("folder", decoder="files", proposals="truth", **asked)
    with pytest.raises(ProposalError, match="does not exist"):
        run(Experiment("folder", decoder="files", **asked))


def test_ten_kills_change_neither_counts_nor_report(root, task, tmp_path) -> None:
    alone = run(_experiment(root, task), predictor=Dummy(task))
    assert 0 < alone.summary[alone.task.headline] < 1

    def die(count: int) -> None:
        if count == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    work = tmp_path / "work"
    for _ in range(10):
        child = _forked(lambda: run(_experiment(root, task), work, predictor=Dummy(task, die), save_every=0))
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    resumed = run(_experiment(root, task), work, predictor=Dummy(task))
    assert (resumed.resumed, resumed.images) == (10, 3)
    _same(alone, resumed)
    again = run(_experiment(root, task), work, predictor=Dummy(task))
    assert (again.resumed, again.images) == (13, 0)
    assert _report(alone, tmp_path / "a", task) == _report(again, tmp_path / "b", task)


def test_a_shard_whose_counts_were_never_saved_is_not_read(root, tmp_path) -> None:
    alone, work = run(_experiment(root, "instance"), predictor=Dummy("instance")), tmp_path / "work"

    def stop(count: int) -> None:
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(_experiment(root, "instance"), work, predictor=Dummy("instance", stop), save_every=0)
    stray = work / "state/0001-0000.99999.jsonl"
    stray.write_text(json.dumps([12, [[0, 1.0, "nonsense"]]]) + "\n")
    _same(alone, run(_experiment(root, "instance"), work, predictor=Dummy("instance")))
    shard = work / "state/0001-0000.00001.jsonl"
    content = shard.read_text()
    shard.unlink()
    with pytest.raises(EvaluationError, match=r"0001-0000.npz' has lost its shards"):
        run(_experiment(root, "instance"), work, predictor=Dummy("instance"))
    shard.write_text(content)
    stray.write_text("[1")
    with pytest.raises(EvaluationError, match=r"99999.jsonl' cannot be read: it is damaged"):
        run(_experiment(root, "instance"), work, predictor=Dummy("instance"))


def test_two_processes_find_what_one_does(root, task, tmp_path) -> None:
    alone = run(_experiment(root, task), predictor=Dummy(task))

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        outcome = run(_experiment(root, task), tmp_path / "work", predictor=Dummy(task), save_every=0)
        if rank == 0:
            State({}, outcome.files, np.ones(IMAGES, bool), outcome.ranking, outcome.counts).save(tmp_path / "sum.npz")
            (tmp_path / "kept.json").write_text(json.dumps([outcome.kept, outcome.summary]))
        distributed.barrier()
        distributed.leave()

    children = [_forked(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for name, counts in State.load(tmp_path / "sum.npz").counts.items():
        np.testing.assert_array_equal(counts, alone.counts[name])
    assert (tmp_path / "kept.json").read_text() == json.dumps([alone.kept, alone.summary])
    _same(alone, run(_experiment(root, task), tmp_path / "work", predictor=Dummy(task)))


def test_the_truth_itself_scores_one(root, tmp_path) -> None:
    """Through the real classifier's way out is another test; here what the runner makes of a perfect answer."""

    class Perfect(Dummy):
        def __call__(self, sample, resolve):
            truth = sample.truth
            if self.task == "panoptic":
                return truth
            masks = tuple({**mask, "counts": mask["counts"].decode()} for mask in truth.masks)
            real = ~truth.crowd
            chosen = tuple(mask for mask, is_real in zip(masks, real, strict=True) if is_real)
            return Instances(truth.labels[real], np.ones(int(real.sum()), np.float32), chosen)

    for name, headline in (("instance", "AP"), ("panoptic", "PQ")):
        outcome = run(_experiment(root, name), predictor=Perfect(name), dump=tmp_path / name)
        assert outcome.summary[headline] == pytest.approx(1)
        assert outcome.headline == f"{headline} 100.00"
        suffixes = {path.suffix for path in (tmp_path / name).iterdir()}
        assert suffixes == ({".json"} if name == "instance" else {".json", ".png"})
    assert outcome.summary["PQ stuff"] == 1
    rows = outcome.rows
    assert [row["matched"] for row in rows] == [IMAGES] * 3


def test_what_does_not_go_with_regions_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(EvaluationError, match=r"no task 'instances'.*closest: instance"):
        Experiment("coco", task="instances")
    with pytest.raises(EvaluationError, match=r"no proposals 'mini-sum'.*closest: mini-sam"):
        Experiment("coco", task="instance", proposals="mini-sum")
    with pytest.raises(EvaluationError, match="refine goes with task semantic"):
        Experiment("coco", task="panoptic", refine="pamr")
    with pytest.raises(EvaluationError, match="task panoptic has no 'top' to resolve by"):
        Experiment("coco", task="panoptic", resolve={"top": 5})


@pytest.mark.parametrize(("name", "headline"), [("instance", "AP"), ("panoptic", "PQ")])
def test_the_shipped_model_names_true_masks(name, headline, root, tmp_path) -> None:
    experiment = Experiment("folder", root=str(root), task=name, model="mini", proposals="truth", limit=2)
    outcome = run(experiment, tmp_path / "work")
    assert set(outcome.used) >= {"model", "operators", "proposals"}
    assert 0 <= outcome.summary[headline] <= 1
    assert outcome.images == 2


def _federated(seed: int) -> tuple[dict, list[dict]]:
    """Random truth as LVIS has it, and random results, moved or invented."""
    rng = np.random.default_rng(seed)
    size = {"height": 64, "width": 64}
    categories = [{"id": 3 * k + 1, "name": str(k), "frequency": "rcf"[k % 3]} for k in range(4)]
    ids = [category["id"] for category in categories]
    images, annotations, found = [], [], []

    def box(x: int, y: int, side: int) -> dict:
        mask = np.zeros((64, 64), np.uint8, order="F")
        mask[y : y + side, x : x + side] = 1
        code = coco_mask.encode(mask)
        return {"size": code["size"], "counts": code["counts"].decode()}

    for image in range(1, 7):
        here = rng.random(4) < 0.6
        negative = [c for c, has in zip(ids, here, strict=True) if not has and rng.random() < 0.5]
        partly = [c for c, has in zip(ids, here, strict=True) if has and rng.random() < 0.4]
        images.append({"id": image, **size, "neg_category_ids": negative, "not_exhaustive_category_ids": partly})
        for category in [c for c, has in zip(ids, here, strict=True) if has]:
            for _ in range(int(rng.integers(1, 4))):
                x, y, side = (int(v) for v in rng.integers(0, 40, 3))
                side = max(4, side)
                code = box(x, y, side)
                area = float(coco_mask.area(code))
                common = {"image_id": image, "category_id": category, "segmentation": code}
                annotations.append(
                    {"id": len(annotations) + 1, **common, "area": area, "iscrowd": 0, "bbox": [x, y, side, side]}
                )
                if rng.random() < 0.8:
                    moved = box(x + int(rng.integers(0, 4)), y, side)
                    found.append({**common, "segmentation": moved, "score": round(float(rng.random()), 3)})
        for _ in range(int(rng.integers(0, 6))):
            x, y, side = (int(v) for v in rng.integers(2, 30, 3))
            entry = {"image_id": image, "category_id": int(rng.choice(ids)), "segmentation": box(x, y, side)}
            found.append({**entry, "score": round(float(rng.random()), 3)})
    return {"images": images, "annotations": annotations, "categories": categories}, found


def _as_coco(truth: dict, found: list[dict], cap: int) -> tuple[dict, list[dict]]:
    """Truth and results such that COCO's AP is that of LVIS: results of categories that were looked for, and crowds
    over the whole image where not every object is marked."""
    has: dict[int, set[int]] = {}
    for entry in truth["annotations"]:
        has.setdefault(entry["image_id"], set()).add(entry["category_id"])
    looked_for: dict[int, set[int]] = {}
    crowds: list[dict] = []
    for image in truth["images"]:
        looked_for[image["id"]] = has.get(image["id"], set()) | set(image["neg_category_ids"])
        for category in image["not_exhaustive_category_ids"]:
            crowds.append(_everywhere(image, category, len(truth["annotations"]) + len(crowds) + 1))
    by_image: dict[int, list[dict]] = {}
    for entry in found:
        by_image.setdefault(entry["image_id"], []).append(entry)
    kept = [
        entry
        for image, entries in by_image.items()
        for entry in sorted(entries, key=lambda row: -row["score"])[:cap]
        if entry["category_id"] in looked_for[image]
    ]
    return {**truth, "annotations": [*truth["annotations"], *crowds]}, kept


def _everywhere(image: dict, category: int, number: int) -> dict:
    """A crowd over the whole image: whatever meets no object lies in it."""
    height, width = int(image["height"]), int(image["width"])
    return {
        **{"id": number, "image_id": image["id"], "category_id": category, "iscrowd": 1},
        **{"area": float(height * width), "bbox": [0.0, 0.0, float(width), float(height)]},
        "segmentation": {"size": [height, width], "counts": [0, height * width]},
    }


@pytest.mark.parametrize("cap", [3, 300])
def test_federated_ap_equals_coco_s_of_a_truth_that_says_the_same(cap) -> None:
    pytest.importorskip("faster_coco_eval")
    for seed in range(84):  # of six images each
        truth, found = _federated(seed)
        ours, rows = average_precision(truth, found, cap=cap, federated=True)
        expected, by_category = average_precision(*_as_coco(truth, found, cap), cap=cap, backend="pycocotools")
        assert {key: ours[key] for key in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True), seed
        for name, letter in (("rare", "r"), ("common", "c"), ("frequent", "f")):
            own = [rows[c["id"]]["AP"] for c in truth["categories"] if c["frequency"] == letter]
            assert ours[f"AP {name}"] == pytest.approx(np.nanmean(own)), seed
        assert [row["AP"] for row in rows.values()] == pytest.approx(
            [row["AP"] for row in by_category.values()], abs=1e-9, nan_ok=True
        ), seed


def test_a_truth_that_does_not_say_what_was_looked_for_is_no_lvis(monkeypatch) -> None:
    truth, found = _federated(0)
    with pytest.raises(DatasetError, match="this is not an LVIS file"):
        average_precision(
            {**truth, "images": [{"id": n, "height": 4, "width": 4} for n in range(1, 7)]}, found, federated=True
        )
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r'pip install "densevl\[eval\]"'):
        average_precision(truth, found, federated=True)


def test_nothing_found_scores_zero_where_there_is_truth_by_size_and_category() -> None:
    truth, _ = _federated(1)
    table, rows = average_precision(truth, [])
    assert table["AP"] == 0
    assert {row["AP"] for row in rows.values()} == {0.0}
    assert np.isnan(table["AP large"])


def test_from_the_command_line(root, tmp_path) -> None:
    def call(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["eval", *words], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    common = ("run", "folder", "--root", str(root), "--model", "mini", "--limit", "1", "--out", str(tmp_path / "out"))
    code, text = call(*common, "--task", "panoptic", "--proposals", "truth")
    assert code == 0
    assert "PQ " in text
    facts = json.loads((tmp_path / "out/results.json").read_text())
    assert facts["used"]["proposals"] == "truth"
    code, text = call(*common, "--task", "instance", "--proposals", "truth")
    assert code == 2
    assert text.splitlines()[-1].startswith("error: ")
    assert "counts of another experiment" in text
    assert call("check", "folder", "--root", str(root), "--task", "instance")[0] == 0
    assert call("check", "lvis", "--root", str(root))[0] == 1
    assert "coco (panoptic): annotations/panoptic_val2017.json" in call("list")[1]


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_a_concept_model_proposes_the_classes(task, tmp_path, monkeypatch) -> None:
    asked, judgements = [], ConceptModel.judgements

    def listened(model: ConceptModel, rgb: np.ndarray, words: tuple[str, ...]):
        asked.append(words)
        return judgements(model, rgb, words)

    monkeypatch.setattr(ConceptModel, "judgements", listened)
    {"instance": make_instances, "panoptic": make_panoptic}[task]("folder", tmp_path / "data", 2)
    proposals = f"concepts:{FOLDERS['clipseg'](tmp_path / 'clipseg')}"
    outcome = run(Experiment("folder", root=str(tmp_path / "data"), task=task, model="mini", proposals=proposals))
    assert len(outcome.dataset) == len(asked) == 2
    assert {word.replace("_", " ") for word in asked[0]} <= {"cat", "traffic light", *outcome.dataset.names}
    assert "concepts:" in str(outcome.used["proposals"])
