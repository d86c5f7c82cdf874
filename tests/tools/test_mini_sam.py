"""A smoke training of the shipped SAM on painted shapes: seconds, no network, no icon sets."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

pytest.importorskip("segment_anything", reason="mini-sam needs the extra 'sam'")

from segment_anything import SamPredictor

from densevl.proposals.sam.mini_sam import SamConfig, build_sam, load_mini_sam, read_weights
from tools.mini.model import MiniConfig
from tools.mini.run import CHECKPOINT
from tools.mini_sam.data import Source, Stream, box_around, point_in, region
from tools.mini_sam.evaluate import PROMPTS, automatic, innermost, iou, prompted
from tools.mini_sam.export import NAME, export
from tools.mini_sam.loss import mask_loss, overlap, wrong_points
from tools.mini_sam.model import decode, start_from_clip
from tools.mini_sam.run import Plan, Run, Stage, goes_on
from tools.mini_sam.train import train
from tools.render.scenes import Scene

CONFIG = SamConfig(image=64, width=32, depth=2, heads=1, channels=32, decoder_mlp=64, mask_channels=8, iou_width=32)
STAGES = (Stage(32, 0.5), Stage(64, 1.0))


def _painted(size: int, rng: np.random.Generator) -> Scene:
    """A bright square and a dark disc on grey noise; they may touch."""
    image = rng.integers(110, 140, (size, size, 3)).astype(np.uint8)
    instances = np.full((size, size), -1, np.int16)
    y, x = np.mgrid[:size, :size]
    left, top = rng.integers(0, size // 2, 2)
    disc = np.hypot(y - rng.integers(size), x - rng.integers(size)) < size / 5
    square = (abs(y - top - size // 5) < size / 6) & (abs(x - left - size // 5) < size / 6)
    for number, (mask, light) in enumerate(((square, 230), (disc, 20))):
        image[mask], instances[mask] = light, number
    return Scene(image, instances, instances, (0, 1), 0, "")


def sources(size: int, seed: int) -> Source:
    return lambda rng: _painted(size, rng)


def plan(out: Path, steps: int = 6) -> Plan:
    return Plan(out, steps, by_steps=True, checkpoint=2, batch=4, prompts=2, config=CONFIG, stages=STAGES, fast=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run of six steps through both image sides."""
    out = tmp_path_factory.mktemp("mini_sam")
    train(plan(out), sources)
    export(out, out / "export")
    return out / "export" / NAME


def test_the_loss_falls(tmp_path: Path) -> None:
    run = Run(replace(plan(tmp_path, 60), stages=(Stage(64, 1.0),), batch=8), sources)
    parts = [run.step() for _ in range(40)]
    first, last = ({key: np.mean([p[key] for p in group]) for key in parts[0]} for group in (parts[:5], parts[-5:]))
    assert last["mask"] < 0.8 * first["mask"]
    assert last["box"] > first["box"]


def test_a_resumed_run_continues_bit_identically(tmp_path: Path) -> None:
    whole = Run(plan(tmp_path), sources)
    for _ in range(2):
        whole.step()
    whole.save()
    whole.restart_stream()
    resumed = Run(plan(tmp_path), sources)
    for run in (whole, resumed):
        for _ in range(3):  # over the change of image side
            run.step()
    assert whole.stage == resumed.stage == 1
    for one, other in ((whole.learner.state_dict(), resumed.learner.state_dict()), (whole.ema, resumed.ema)):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_export_loads_strictly_and_holds_the_average(weights: Path) -> None:
    saved = torch.load(weights.parents[1] / CHECKPOINT, weights_only=True)
    state, config = read_weights(weights)
    sam = load_mini_sam(weights)
    assert config == CONFIG
    assert all(value.dtype == torch.float16 for value in state.values())
    assert all(torch.equal(value, saved["ema"][key].half().float()) for key, value in sam.state_dict().items())
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())


def test_predictor_and_automatic_masks_of_the_package_run_on_it(weights: Path) -> None:
    sam, scene = load_mini_sam(weights), _painted(100, np.random.default_rng(3))
    predictor = SamPredictor(sam)
    predictor.set_image(scene.image)
    masks, _, low = predictor.predict(np.array([[50, 50]]), np.ones(1, int))
    assert masks.shape == (3, 100, 100)
    assert low.shape == (3, 32, 32)
    again, _, _ = predictor.predict(np.array([[50, 50]]), np.ones(1, int), mask_input=low[:1], multimask_output=False)
    assert again.shape == (1, 100, 100)
    row = prompted(predictor, scene.instances == 0, np.random.default_rng(0))
    assert set(row) == set(PROMPTS)
    found = automatic(sam, [scene], {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0})
    assert found["masks"] >= 1
    assert 0 <= found["recall at 0.5"] <= 100


def test_decoding_many_images_is_the_decoder_of_the_package() -> None:
    torch.manual_seed(0)
    sam = build_sam(CONFIG).eval()
    images = torch.randn(2, CONFIG.channels, CONFIG.grid, CONFIG.grid)
    points, labels = torch.tensor([[[3.0, 9.0]], [[40.0, 20.0]]]), torch.ones(2, 1, dtype=torch.long)
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder((points, labels), None, None)
        found = decode(sam, images, sparse, dense)
        for i in range(2):
            places = sam.prompt_encoder.get_dense_pe()
            wanted = sam.mask_decoder.predict_masks(images[i, None], places, sparse[i, None], dense[i, None])
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one[i, None], other)


def test_the_encoder_starts_from_the_blocks_of_a_clip() -> None:
    torch.manual_seed(0)
    config = MiniConfig(image=32, width=32, layers=2, embed=16, text_width=64, text_layers=1)
    clip, sam = open_clip.CLIP(**config.open_clip(10)).eval(), build_sam(CONFIG).eval()
    pixels = torch.randn(3, 3, 64, 64)
    start_from_clip(sam, {k: v for k, v in clip.state_dict().items() if k.startswith("visual.")}, pixels)
    x_BND = torch.randn(2, 64, 32)
    with torch.no_grad():
        for block, source in zip(sam.image_encoder.blocks, clip.visual.transformer.resblocks, strict=True):
            torch.testing.assert_close(block(x_BND.unflatten(1, (8, 8))).flatten(1, 2), source(x_BND))
        tokens = sam.image_encoder.patch_embed(pixels) + sam.image_encoder.pos_embed
    assert tokens.mean(-1).abs().max() < 1e-4  # as after the norm whose gain is one and whose shift is none
    assert tokens.std(-1).mean() == pytest.approx(1, abs=0.05)


def test_workers_start_from_a_mini_with_equal_weights(tmp_path: Path) -> None:
    config = MiniConfig(image=32, width=32, layers=2, embed=16, text_width=64, text_layers=1)
    state = {**open_clip.CLIP(**config.open_clip(10)).state_dict(), "token_ids": torch.arange(9)}
    save_file(state, tmp_path / "mini.safetensors", {"model_cfg": "{}", "patch_scale": "10"})
    started = replace(plan(tmp_path), start=tmp_path / "mini.safetensors")
    one, other = (Run(started, _by_seed, rank).learner.state_dict() for rank in (0, 1))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    block = one["image_encoder.blocks.1.mlp.lin1.weight"]
    assert torch.equal(block, state["visual.transformer.resblocks.1.mlp.c_fc.weight"])


def test_a_run_goes_on_from_a_mini_sam_at_its_own_side(weights: Path, tmp_path: Path) -> None:
    assert goes_on(weights)
    started = replace(plan(tmp_path), start=weights, stages=STAGES[-1:], fast=True)
    run, state = Run(started, sources), read_weights(weights)[0]
    assert all(torch.equal(run.ema[key], value.float()) for key, value in state.items())
    assert np.isfinite(run.step()["loss"])
    assert all(value.dtype == torch.float32 for value in run.learner.state_dict().values())


def _by_seed(size: int, seed: int) -> Source:
    """Scenes that are brighter for one worker than for another."""

    def source(rng: np.random.Generator) -> Scene:
        scene = _painted(size, rng)
        return replace(scene, image=scene.image // 2 + np.uint8(100 * seed))

    return source


def test_points_and_boxes_belong_to_their_region() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        instances = _painted(32, rng).instances
        mask = region(instances, rng)
        x, y = point_in(mask, rng)
        box = box_around(mask, rng)
        assert mask[y, x]
        assert set(np.unique(instances[mask])) in ({-1}, {0}, {1}, {0, 1})
        assert (box >= 0).all()
        assert (box <= 31).all()
    batch = Stream(sources(32, 0), rng, 4, 3, 16).batch()
    assert batch.image.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.truth.shape == (12, 16, 16)


def test_corrections_point_at_what_is_wrong() -> None:
    truth = torch.zeros(2, 4, 4)
    truth[:, :2] = 1
    logits = torch.where(truth > 0, 1.0, -1.0)
    logits[0, 1, 3], logits[1, 3, 0] = -1, 1  # one is missing, one too many
    points, labels = wrong_points(logits, truth, 2.0, torch.Generator().manual_seed(0))
    assert points.tolist() == [[[6.5, 2.5]], [[0.5, 6.5]]]
    assert labels.tolist() == [[1], [0]]


def test_the_best_guess_carries_the_loss() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[:, :4] = 1
    right, wrong = torch.where(truth > 0, 9.0, -9.0), torch.where(truth > 0, -9.0, 9.0)
    good = mask_loss(torch.stack([right, wrong, right, wrong], 1), torch.tensor([[1.0, 0, 1, 0]]), truth)
    bad = mask_loss(torch.stack([right, wrong, wrong, wrong], 1), torch.tensor([[1.0, 0, 1, 0]]), truth)
    assert good["best"] == 1
    assert good["quality"] == 0
    assert good["mask"] < bad["mask"] / 4
    assert overlap(wrong[:, None], truth[:, None]) == 0


def test_metrics_by_hand() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 1:6] = True
    assert innermost(mask) == (3, 4)
    assert iou(mask, np.roll(mask, 1, 1)) == pytest.approx(20 / 30)
