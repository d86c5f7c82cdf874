"""Region-language self-distillation in seconds: a tiny random tower, and three steps of mini."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import densevl
from conftest import TINY, close, random_clip, wrap
from densevl.backbones.mini import Mini
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.errors import DensevlError, ImageError, OutputError, RecipeError
from tools.clipself.__main__ import main
from tools.clipself.context import context_loss, projections
from tools.clipself.evaluate import CEILING
from tools.clipself.models import image_tower, load, pack
from tools.clipself.pictures import Pictures
from tools.clipself.run import CHECKPOINT, MEAN, STUDENT, Plan, Run
from tools.clipself.train import Budget, train

SMALL = Plan(batch=4, regions=3, grid=2, rate=3e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of coloured rectangles, no two of a size."""
    out, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(6):
        picture = rng.integers(0, 255, (6, 6 + number, 3)).astype(np.uint8).repeat(9, 0).repeat(9, 1)
        Image.fromarray(picture).save(out / f"{number}.png")
    return out


def prepared(out: Path, folder: Path, plan: Plan = SMALL) -> Run:
    return Run(wrap(random_clip()), sorted(folder.iterdir()), plan, out)


def weights(model: OpenClipBackbone) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in image_tower(model).state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("recipe", ["vanilla", "maskclip", "maskclip_value"])
def test_the_loss_falls_and_the_teacher_stays(tmp_path: Path, folder: Path, recipe: str) -> None:
    run = prepared(tmp_path, folder, replace(SMALL, recipe=recipe))
    teacher, before = weights(run.teacher), weights(run.student)
    batch = run.pictures.batch(1000)
    with torch.no_grad():
        first = float(run.loss(batch))
    losses = train(run, Budget(steps=20))
    with torch.no_grad():
        assert float(run.loss(batch)) < 0.8 * first
    assert len(losses) == 20
    assert same(teacher, weights(run.teacher))
    assert not same(before, weights(run.student))


@pytest.mark.parametrize("killed_after", [2, 3, 5], ids=["on a checkpoint", "between two", "before the end"])
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, folder: Path, killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = prepared(tmp_path / "whole", folder), prepared(tmp_path / "killed", folder)
    train(whole, Budget(steps=6), save_every=2)
    update = killed.update

    def until(progress: float) -> float:
        if killed.step == killed_after:
            raise KeyboardInterrupt
        return update(progress)

    monkeypatch.setattr(killed, "update", until)
    with pytest.raises(KeyboardInterrupt):
        train(killed, Budget(steps=6), save_every=2)
    assert not (killed.out / STUDENT).exists()
    resumed = prepared(tmp_path / "killed", folder)
    assert len(train(resumed, Budget(steps=6), resume=True, save_every=2)) == 6 - killed_after // 2 * 2
    assert same(weights(whole.student), weights(resumed.student))
    assert (whole.out / STUDENT).read_bytes() == (resumed.out / STUDENT).read_bytes()


def test_the_mean_of_all_weights_by_betas_density_is_written_after_a_kill_too(tmp_path: Path, folder: Path) -> None:
    plan = replace(SMALL, average="beta")
    whole, killed = prepared(tmp_path / "whole", folder, plan), prepared(tmp_path / "killed", folder, plan)
    seen = [weights(whole.student)]
    update = whole.update

    def watched(progress: float) -> float:
        loss = update(progress)
        seen.append(weights(whole.student))
        return loss

    whole.update = watched  # type: ignore[method-assign]
    train(whole, Budget(steps=4))
    places = [(index + 0.5) / 5 for index in range(5)]
    shares = np.array([1 / np.sqrt(place * (1 - place)) for place in places])
    shares /= shares.sum()
    written = wrap(random_clip(1))
    written.model.load_state_dict(load_file(tmp_path / "whole" / STUDENT))
    for key, value in weights(written).items():
        want = sum(share * one[key].double() for share, one in zip(shares, seen, strict=True))
        close(value, want)
    assert not same(weights(written), seen[-1])
    halt = killed.update
    killed.update = lambda progress: halt(progress) if killed.step < 2 else 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        train(killed, Budget(steps=4), save_every=1)
    train(prepared(tmp_path / "killed", folder, plan), Budget(steps=4), resume=True)
    assert (tmp_path / "killed" / STUDENT).read_bytes() == (tmp_path / "whole" / STUDENT).read_bytes()
    assert not any(key.startswith(MEAN) for key in prepared(tmp_path / "none", folder).parts)


@pytest.mark.parametrize(("own", "other"), [((3, 4), (3, 4)), ((3, 4), (5, 6))])
def test_context_is_the_distance_of_rows_of_cosines(own: tuple[int, int], other: tuple[int, int]) -> None:
    student, teacher = torch.randn(2, 7, *own), torch.randn(2, 5, *other)
    total = 0.0
    for q, f in zip(student.double(), teacher.double(), strict=True):
        q = torch.nn.functional.interpolate(q[None], size=other, mode="bilinear")[0]
        count = other[0] * other[1]
        rows, wanted = (part.flatten(1).T.numpy() for part in (q, f))
        for i in range(count):
            square = 0.0
            for j in range(count):
                a, b = ((t[i] @ t[j]) / (np.linalg.norm(t[i]) * np.linalg.norm(t[j])) for t in (rows, wanted))
                square += (a - b) ** 2
            total += square**0.5 / count / 2
    assert abs(float(context_loss(student, teacher)) - total) < 1e-4
    assert float(context_loss(student, student)) == 0


def test_context_learns_beside_content(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder, replace(SMALL, context="mini-sam", context_weight=1.0))
    pictures = run.pictures.batch(1000).pictures
    with torch.no_grad():
        before = float(run._context(pictures))
    train(run, Budget(steps=15))
    with torch.no_grad():
        assert float(run._context(pictures)) < 0.9 * before


def test_the_projections_that_learn_context_are_the_last_blocks(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder)
    pixels, kept = torch.randn(1, 3, 32, 32), {}
    block = run.student.model.visual.transformer.resblocks[-1]
    handle = block.ln_1.register_forward_hook(lambda module, given, found: kept.update(u=found))
    q, both = (projections(run.student.tower, pixels, source, "size") for source in ("q", "qk"))
    handle.remove()
    joint = kept["u"] @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    want_q, want_k, _ = joint[0, 1:].chunk(3, dim=-1)
    torch.testing.assert_close(q[0].flatten(1).T, want_q)
    torch.testing.assert_close(both[0].flatten(1).T, (want_q + want_k) / 2)


def test_a_student_loads_as_a_weights_file_of_its_architecture(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder)
    train(run, Budget(steps=2))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    loaded = densevl.load_backbone(str(tmp_path / "tiny.json"), tmp_path / STUDENT, device="cpu")
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.encode_image(pixels), run.student.encode_image(pixels))
    texts = ["a dog", "sky"]
    assert torch.equal(loaded.encode_text(texts), run.teacher.encode_text(texts))


def test_mini_trains_from_the_command_line_and_its_student_loads(tmp_path: Path, folder: Path) -> None:
    command = ["train", "--images", str(folder), "--out", str(tmp_path), "--batch", "2", "--regions", "2"]
    assert main([*command, "--steps", "2"]) == 0
    assert main([*command, "--steps", "3", "--resume"]) == 0
    student, teacher = load("mini", tmp_path / STUDENT), load("mini", device="cpu")
    assert isinstance(student, Mini)
    assert torch.equal(student.encode_text(["dog"]), teacher.encode_text(["dog"]))
    assert not same(weights(student), weights(teacher))
    assert student.protocol == teacher.protocol


def test_evaluation_names_objects_with_the_teacher_and_every_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = tmp_path / "scenes"
    (scenes / "images").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8)
    Image.fromarray(picture).save(scenes / "images" / "0.png")
    left, right = {"size": [48, 48], "counts": [0, 1152, 1152]}, {"size": [48, 48], "counts": [1152, 1152]}
    objects = [(1, left), (2, right)]
    content = {
        "categories": [{"name": "dog"}, {"name": "car"}],
        "images": [{"file_name": "0.png", "width": 48, "height": 48}],
        "annotations": [{"image_id": 0, "category_id": number, "segmentation": runs} for number, runs in objects],
    }
    (scenes / "instances.json").write_text(json.dumps(content))
    student = tmp_path / STUDENT
    student.write_bytes(pack(load("mini", device="cpu")))
    command = ["evaluate", "--benchmark", str(tmp_path), "--weights", str(student), "--device", "cpu"]
    assert main(command) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {"pool, vanilla", "roi, maskclip_value", "cls_mask", CEILING} <= {name for name, *_ in rows}
    assert all(before == after in ("0.0", "50.0", "100.0") for _, before, after in rows)  # an untrained student
    (scenes / "instances.json").unlink()
    assert main(command) == 2
    assert "not a rendered benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "empty"}, "no images in"),
        ({"images": "missing"}, "none of the 1 pictures can be read"),
        ({"recipe": "maskclp"}, "closest: maskclip"),
        ({"side": "33"}, "multiple of 8"),
        ({"batch": "0"}, "at least 1"),
        ({"rate": "nan"}, "above 0 and at most 1"),
        ({"seed": "-1"}, "at least 0"),
        ({"threads": "0"}, "at least 1"),
        ({"minutes": "inf"}, "a number above 0"),
        ({"blocks": "99"}, "the tower has 6"),
        ({"context": "dinno"}, "no proxy 'dinno'"),
        ({"context-weight": "-1", "context": "mini-sam"}, "above 0"),
        ({"context-weight": "1"}, "name one too"),
        ({"context-source": "k"}, "name one too"),
        ({"clusters": "8"}, "--clusters is of --masks"),
        ({"clusters": "1", "masks": "mini-sam"}, "at least 2"),
        ({"steps": "0"}, "at least 1"),
        ({"average": "mean"}, "choose from"),
        ({"model": "photos"}, "no model 'photos'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    given = {"images": str(folder), "out": str(tmp_path / "run"), "steps": "1", **change}
    if change.get("images"):
        given["images"] = str(tmp_path / change["images"])
    assert main(["train", *(part for key, value in given.items() for part in (f"--{key}", value))]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(tmp_path: Path, folder: Path) -> None:
    train(prepared(tmp_path, folder), Budget(steps=1))
    with pytest.raises(OutputError, match="add --resume"):
        train(prepared(tmp_path, folder), Budget(steps=2))
    with pytest.raises(OutputError, match="another seed; give the same"):
        train(prepared(tmp_path, folder, replace(SMALL, seed=1)), Budget(steps=2), resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"not tensors")
    with pytest.raises(DensevlError, match="cannot be read"):
        train(prepared(tmp_path, folder), Budget(steps=2), resume=True)


def test_a_student_of_no_run_is_not_written_over(tmp_path: Path, folder: Path) -> None:
    (tmp_path / STUDENT).write_bytes(b"of another")
    for resume in (False, True):
        with pytest.raises(OutputError, match="no checkpoint of its run"):
            train(prepared(tmp_path, folder), Budget(steps=1), resume=resume)
    assert (tmp_path / STUDENT).read_bytes() == b"of another"


def test_a_diverged_run_ends_and_its_last_sound_checkpoint_stays(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tmp_path, folder)
    loss = run.loss
    monkeypatch.setattr(run, "loss", lambda batch: loss(batch) * (float("nan") if run.step == 3 else 1))
    with pytest.raises(DensevlError, match="loss is nan at step 4; take a lower rate"):
        train(run, Budget(steps=6), save_every=2)
    again = prepared(tmp_path, folder)
    again.resume()
    assert again.step == 2
    assert not (tmp_path / STUDENT).exists()


def test_blocks_train_alone(tmp_path: Path, folder: Path) -> None:
    run = prepared(tmp_path, folder, replace(SMALL, blocks=2))
    train(run, Budget(steps=1))
    before, after = weights(run.teacher), weights(run.student)
    changed = {key.split(".")[2] for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {"5", "6"}  # of transformer.resblocks 0 to 6


def test_recipes_that_make_no_map_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RecipeError, match="no map of features"):
        prepared(tmp_path, folder, Plan("textregion"))


def test_boxes_and_crops_show_the_same_place(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:48, :48]
    Image.fromarray(np.stack([cols * 5, rows * 5, 0 * rows], -1).astype(np.uint8)).save(tmp_path / "ramp.png")

    def plain(rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float()

    pictures = Pictures([tmp_path / "ramp.png"], plain, side=16, crop_side=16, batch=8, regions=5, grid=4, seed=3)
    batch = pictures.batch(0)
    boxes = torch.cat(batch.boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * 48 * 5 - 2.5
    torch.testing.assert_close(batch.crops[:, :2].mean(dim=(2, 3)), centres, atol=1.5, rtol=0)
    assert len(batch.crops) == len(boxes) <= 40
    assert all(len(own) == len(own.unique(dim=0)) for own in batch.boxes)


def test_every_picture_is_seen_once_an_epoch_and_broken_ones_are_passed_over(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(folder.iterdir())
    seen: list[Path] = []
    real = densevl.images.read_image
    monkeypatch.setattr("tools.arguments.read_image", lambda path: seen.append(path) or real(path))
    options = {"side": 16, "crop_side": 16, "batch": 3, "regions": 1, "grid": 2, "seed": 0}
    normalize = wrap(random_clip()).normalize
    pictures = Pictures(files, normalize, **options)
    for step in range(4):
        pictures.batch(step)
    assert sorted(seen[:6]) == sorted(seen[6:]) == files
    assert seen[:6] != seen[6:]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert len(Pictures([broken, files[0]], normalize, **options).batch(0).pictures) == 3
    assert "passed over" in caplog.text
    with pytest.raises(ImageError, match="none of the 1 pictures"):
        Pictures([broken], normalize, **options).batch(0)
