"""PixelCLIP's training: its assignment and targets in numpy, and a run that learns, resumes and exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import densevl
from conftest import TINY, close, random_clip, wrap
from densevl.errors import DensevlError
from tools.clipself.__main__ import main
from tools.clipself.models import image_tower
from tools.clipself.pixel import ROUNDS, SHARPNESS, PixelRun, pooled, sinkhorn, united
from tools.clipself.run import STUDENT, Plan
from tools.clipself.train import Budget, train

SMALL = Plan(recipe="pixelclip", masks="grid", clusters=5, batch=2, regions=1, grid=1, rate=2e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(4):
        picture = rng.integers(0, 255, (4, 4, 3)).astype(np.uint8).repeat(12, 0).repeat(12, 1)
        Image.fromarray(picture).save(out / f"{number}.png")
    return out


def prepared(out: Path, folder: Path, plan: Plan = SMALL) -> PixelRun:
    return PixelRun(wrap(random_clip()), sorted(folder.iterdir()), plan, out)


def plain_sinkhorn(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    for _ in range(ROUNDS):
        shares = shares / shares.sum(0, keepdims=True)
        shares = shares / shares.sum(1, keepdims=True)
    return shares


def test_sinkhorn_is_its_loops_and_spreads_masks() -> None:
    scores = torch.randn(12, 4) * 4
    close(sinkhorn(scores), plain_sinkhorn(scores.double().numpy()))
    same = torch.tensor([5.0, 0.0, 0.0]).repeat(9, 1) + 0.01 * torch.randn(9, 3)  # all are most like one cluster
    close(sinkhorn(same).sum(dim=0), 3.0, tolerance=0.1, why="three rounds come near to equal sums")
    assert len(sinkhorn(100 * torch.rand(9, 3)).argmax(dim=1).unique()) == 3  # large logits do not overflow


def test_a_mask_is_the_mean_of_what_it_covers() -> None:
    features, masks = torch.randn(3, 2, 2), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2, :2], masks[1, 0, 1:] = True, True  # a cell; half of a cell's upper row, and all of another's
    got = pooled(features, masks)
    close(got[0], features[:, 0, 0])
    close(got[1], (features[:, 0, 0] + 2 * features[:, 0, 1]) / 3)
    present, maps = united(masks, torch.tensor([3, 3]))
    assert present.tolist() == [3]
    assert torch.equal(maps[0].bool(), masks.any(0))


def test_targets_of_two_pictures_are_clustered_together(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder)
    pictures, text = run.pictures.batch(0).pictures, torch.randn(5, TINY["embed_dim"])
    text = text / text.norm(dim=1, keepdim=True)
    features = run.average.encode_dense(pictures, "pixelclip").features.double().numpy()
    masks = [run._masks(picture).numpy() for picture in pictures]
    side, grid = masks[0].shape[1], features.shape[2]
    rows = []
    for own, of_it in zip(features, masks, strict=True):
        for mask in of_it:
            weights = mask.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
            rows.append((own * weights).sum((1, 2)) / weights.sum())
    vectors = np.stack(rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    clusters = plain_sinkhorn(SHARPNESS * vectors @ text.double().numpy().T).argmax(1)
    found, place = run.targets(pictures, text), 0
    for (present, maps), of_it in zip(found, masks, strict=True):
        own = clusters[place : place + len(of_it)]
        place += len(of_it)
        assert present.tolist() == sorted(set(own.tolist()))
        for cluster, union in zip(present.tolist(), maps.numpy(), strict=True):
            assert np.array_equal(union > 0, of_it[own == cluster].any(0))


def test_attention_positions_and_words_learn_and_the_text_side_stays(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder)
    words = run.prompts.weight.detach().clone()
    losses = train(run, Budget(steps=12))
    assert losses[-1] < losses[0]
    assert not torch.equal(words, run.prompts.weight)
    old, new, average = (image_tower(model).state_dict() for model in (run.teacher, run.student, run.average))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed
    assert all("pos" in key or ".attn." in key for key in changed)
    for key in changed:  # the average follows slowly
        assert (average[key] - old[key]).abs().max() < 0.1 * (new[key] - old[key]).abs().max()
    assert run.student.text_fingerprint == run.teacher.text_fingerprint


def test_a_resumed_run_and_its_student_are_the_same(tmp_path: Path, folder: Path) -> None:
    whole, begun = prepared(tmp_path / "whole", folder), prepared(tmp_path / "begun", folder)
    train(whole, Budget(steps=4))
    for step in range(2):
        begun.update(step / 4)
    begun.save()
    train(prepared(tmp_path / "begun", folder), Budget(steps=4), resume=True)
    assert (tmp_path / "whole" / STUDENT).read_bytes() == (tmp_path / "begun" / STUDENT).read_bytes()
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    loaded = densevl.load_backbone(str(tmp_path / "tiny.json"), tmp_path / "whole" / STUDENT, device="cpu")
    pixels = torch.randn(1, 3, 32, 32)
    close(loaded.encode_dense(pixels, "pixelclip").features, whole.student.encode_dense(pixels, "pixelclip").features)


def test_mini_learns_from_masks_on_the_command_line(tmp_path: Path, folder: Path) -> None:
    command = ["train", "--images", str(folder), "--out", str(tmp_path), "--batch", "2", "--device", "cpu"]
    assert main([*command, "--masks", "grid", "--clusters", "4", "--steps", "1"]) == 0
    assert densevl.load_backbone("mini", tmp_path / STUDENT, device="cpu").name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": 1}, "two clusters at least"),
        ({"context": "mini-sam"}, "leave one of them out"),
        ({"masks": "mini-samm"}, "no proposer"),
        ({"recipe": "proxyclip"}, "reads more than pixels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, folder: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DensevlError, match=message):
        prepared(tmp_path, folder, replace(SMALL, **change))
