"""Anomaly benchmarks through the runner: known answers, the same after kills and by two processes, and reports."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import init_process_group

from densevl.anomaly.result import AnomalyResult
from densevl.evaluation import EvaluationError, Experiment, distributed, evaluate, run
from densevl.evaluation.metrics.anomaly import AnomalyMetrics
from densevl.evaluation.predictors import Clock
from densevl.evaluation.report import results as report
from densevl.evaluation.tasks.anomaly import COLUMNS

SIDE = 16
PER = {"train/good": 2, "test/good": 3, "test/dent": 3}


@pytest.fixture
def root(tmp_path) -> Path:
    """Two categories in MVTec's layout; a dent is a white square."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for category in ("cup", "nut"):
        for place, count in PER.items():
            for number in range(count):
                path = folder / category / place / f"{number:03d}.png"
                picture, mask = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8), np.zeros((SIDE, SIDE), np.uint8)
                if place == "test/dent":
                    picture[4:8, 4:8], mask[4:8, 4:8] = 255, 255
                    truth = folder / category / "ground_truth/dent" / f"{number:03d}_mask.png"
                    truth.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(truth)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return folder


class Dummy:
    """Takes what is bright for damage, on patches of 2 x 2 pixels; may act before the n-th image."""

    def __init__(self, before: Callable[[int], None] = lambda count: None, noise: int = 0) -> None:
        self.clock, self.before, self.count, self.noise = Clock(), before, 0, noise

    def facts(self) -> dict[str, str]:
        return {"model": "dummy", "recipe": "none"}

    def __call__(self, sample) -> AnomalyResult:
        self.before(self.count)
        self.count += 1
        bright = sample.image[..., 0].astype(np.float32) + self.noise * sample.image[..., 1] % 97
        grid = bright.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
        return AnomalyResult(float(bright.max()), grid, {}, sample.image)


def _experiment(root: Path, **more) -> Experiment:
    return Experiment("mvtec", root=str(root), **more)


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def _numbers(outcome) -> list:
    return [outcome.rows, outcome.summary, outcome.kept, outcome.ranking.tolist(), outcome.counts["images"].tolist()]


def test_a_category_is_judged_by_itself_and_then_their_mean(root) -> None:
    outcome = run(_experiment(root, shots=1), predictor=Dummy())
    assert [row["class"] for row in outcome.rows] == ["cup", "nut"]
    assert [(row["images"], row["references"]) for row in outcome.rows] == [(6, "000.png")] * 2
    assert outcome.summary["image_auroc"] == 1.0
    assert outcome.summary["pixel_auroc"] > 0.99
    lines = outcome.table().splitlines()
    assert lines[0] == f"| category | {' | '.join(COLUMNS)} |"
    assert lines[-1].startswith("| mean | 100.0")


def test_the_measures_are_those_of_all_maps_of_a_category_at_the_size_of_the_image(root) -> None:
    outcome = run(_experiment(root), predictor=Dummy(noise=31))
    for row in outcome.rows:
        metrics = AnomalyMetrics()
        for item in outcome.dataset.items:
            if item.category == row["class"]:
                sample = outcome.dataset.read(item)
                found = Dummy(noise=31)(sample)
                metrics.update(found.map, sample.truth, found.score)
        expected = metrics.compute()
        assert {name: row[name] for name in COLUMNS} == {name: expected[name] for name in COLUMNS}
    for name in COLUMNS:
        assert outcome.summary[name] == np.mean([row[name] for row in outcome.rows])


def test_five_kills_change_no_number(root, tmp_path) -> None:
    alone = run(_experiment(root), predictor=Dummy(noise=31))

    def die(count: int) -> None:
        if count == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(5):
        child = _forked(lambda: run(_experiment(root), tmp_path / "work", predictor=Dummy(die, 31), save_every=0))
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    resumed = run(_experiment(root), tmp_path / "work", predictor=Dummy(noise=31))
    assert (resumed.resumed, resumed.images) == (5, 7)
    np.testing.assert_equal(_numbers(resumed), _numbers(alone))


def test_two_processes_find_what_one_does(root, tmp_path) -> None:
    alone = run(_experiment(root), predictor=Dummy(noise=31))

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2)
        run(_experiment(root), tmp_path / "work", predictor=Dummy(noise=31))
        distributed.barrier()
        distributed.leave()

    children = [_forked(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    again = run(_experiment(root), tmp_path / "work", predictor=Dummy(noise=31))
    assert again.images == 0
    np.testing.assert_equal(_numbers(again), _numbers(alone))


def test_the_report_has_the_table_and_heat_maps(root, tmp_path) -> None:
    outcome = run(_experiment(root, limit=8), predictor=Dummy(noise=31), dump=tmp_path / "dump")
    files = report.write(outcome, tmp_path / "out", Dummy(noise=31))
    facts = json.loads(files[1].read_text())
    assert facts["task"] == "anomaly"
    assert [row["class"] for row in facts["classes"]] == ["cup", "nut"]
    assert facts["measures"]["aupro"] == pytest.approx(outcome.summary["aupro"], abs=1e-8)
    assert files[2].read_text().splitlines()[0] == f"class,{','.join(COLUMNS)},images,references"
    page = files[0].read_text()
    assert "heat map" in page
    assert all(f">{name}</th>" in page for name in COLUMNS)
    assert page.count("data:image/jpeg;base64,") == 3 * int((~np.isnan(outcome.ranking)).sum() // 2 * 2)
    assert len(list((tmp_path / "dump").rglob("*.npy"))) == 8


def test_the_shipped_model_learns_from_shots_and_goes_on(root, tmp_path) -> None:
    outcome, files = evaluate(_experiment(root, model="mini", shots=1, limit=4), tmp_path / "out")
    assert all(0 <= row["pixel_auroc"] <= 1 for row in outcome.rows)
    assert files[0].name == "report.html"
    assert run(_experiment(root, model="mini", shots=1, limit=4), tmp_path / "out").images == 0
    with pytest.raises(EvaluationError, match="shots 1 -> 2"):
        run(_experiment(root, model="mini", shots=2, limit=4), tmp_path / "out")


def test_too_few_images_to_learn_from_and_maps_of_another_size_are_named(root) -> None:
    with pytest.raises(EvaluationError, match="5 shots asked for and 'cup' has 2 flawless images"):
        run(_experiment(root, shots=5), predictor=Dummy())

    class Small(Dummy):
        def __call__(self, sample) -> AnomalyResult:
            return AnomalyResult(0.0, np.zeros((2, 2), np.float32), {}, np.zeros((2, 2, 3), np.uint8))

    with pytest.raises(EvaluationError, match="the map of 'cup/test/dent/000' is"):
        run(_experiment(root), predictor=Small())
    with pytest.raises(EvaluationError, match="recipe goes with task semantic or instance or panoptic, not with task"):
        _experiment(root, recipe="sclip")
