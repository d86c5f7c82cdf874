"""A smoke training of the shipped CLIP on painted rectangles: seconds, no network, no icon sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cv2", reason="OpenCV cannot be imported (apt-get install libgl1)", exc_type=ImportError)

from densevl.backbones import mini
from densevl.backbones.mini import Mini, full_state, read_compact
from densevl.errors import ModelError, WeightsError
from densevl.recipes import get
from tools.mini.anomaly import memory_map, window_map
from tools.mini.data import Stream, collate, to_sample
from tools.mini.evaluate import SETS
from tools.mini.export import export
from tools.mini.loss import image_loss, patch_loss
from tools.mini.metrics import auroc, confusion, mean_iou
from tools.mini.model import Learner, MiniConfig
from tools.mini.muon import orthogonalize
from tools.mini.pairs import KINDS, Content, compare, draw, kind_of, twins
from tools.mini.prompts import Bank
from tools.mini.run import CHECKPOINT, Plan, Run, Stage
from tools.mini.tokens import CompactTokenizer
from tools.mini.train import train
from tools.render.nouns import HASHES, HELD_OUT
from tools.render.scenes import Scene
from tools.render.textures import UNNAMED

CONFIG = MiniConfig(image=16, width=64, layers=2, embed=32, text_width=64, text_layers=1)
NOUNS = 3


def _painted(size: int, rng: np.random.Generator, bare: bool) -> Scene:
    """One coloured square on grey, or a grey surface with a dark spot half of the time."""
    image = rng.integers(110, 140, (size, size, 3)).astype(np.uint8)
    objects = np.full((size, size), -1, np.int16)
    area = (slice(size // 4, size), slice(0, size // 2))
    if bare:
        defect = np.zeros((size, size), bool)
        defect[area] = rng.random() < 0.5
        image[defect] = 0
        return Scene(image, objects, objects, (), 1, "a damaged surface" if defect.any() else "a surface", defect)
    noun = int(rng.integers(NOUNS))
    image[area] = np.eye(3)[noun] * 255
    objects[area] = noun
    return Scene(image, objects, objects, (noun,), 0, f"a photo of {Bank(NOUNS).names[noun]} in the sky")


def sources(size: int, nouns: int, seed: list[int]) -> tuple[Callable[[], Scene], Callable[[], Scene]]:
    rng = np.random.default_rng(seed)
    return lambda: _painted(size, rng, False), lambda: _painted(size, rng, True)


def plan(out: Path, steps: int = 6) -> Plan:
    return Plan(
        out,
        steps,
        by_steps=True,
        checkpoint=2,
        batch=8,
        nouns=NOUNS,
        warm_up=1,
        fast=False,
        config=CONFIG,
        stages=(Stage(16, 0.5, 0.4), Stage(24, 1.0, 0.7)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps through both image sizes."""
    out = tmp_path_factory.mktemp("mini")
    train(plan(out), sources)
    return out


@pytest.fixture(scope="module")
def weights(finished: Path) -> Path:
    export(finished, finished / "export")
    return finished / "export" / "mini.safetensors"


def test_the_loss_falls(tmp_path: Path) -> None:
    run = Run(replace(plan(tmp_path, 30), stages=(Stage(16, 1.0, 0.0),), nouns=NOUNS), sources)
    losses = [run.step() for _ in range(25)][1:]
    assert losses[-1]["loss"] < losses[0]["loss"] - 1
    assert losses[-1]["patch"] < losses[0]["patch"]


def test_a_resumed_run_continues_bit_identically(tmp_path: Path, finished: Path) -> None:
    class StopError(Exception):
        pass

    def stop(run: Run) -> dict[str, float]:
        raise StopError

    with pytest.raises(StopError):
        train(replace(plan(tmp_path), probe=5), sources, stop)  # after the checkpoint of step 4
    train(plan(tmp_path), sources)
    whole, resumed = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (finished, tmp_path))
    assert whole["counts"] == resumed["counts"]
    for part in ("learner", "ema"):
        assert all(torch.equal(value, resumed[part][key]) for key, value in whole[part].items())


def test_the_export_loads_strictly_in_plain_open_clip(weights: Path) -> None:
    state, meta = read_compact(weights)
    model = open_clip.CLIP(**meta["model_cfg"])
    model.load_state_dict(full_state(state, 49408), strict=True)
    assert all(v.dtype in (torch.float16, torch.int32) for v in state.values())
    assert len(state["token_embedding.weight"]) == len(state["token_ids"]) + 1 < 600


def test_the_expanded_table_gives_the_same_texts_and_images(finished: Path, weights: Path) -> None:
    saved = torch.load(finished / CHECKPOINT, weights_only=True)
    tokenizer = CompactTokenizer(saved["token_ids"].tolist(), CONFIG.context)
    learner = Learner(MiniConfig(**saved["config"]), tokenizer.rows)
    learner.load_state_dict({key: value.half().float() for key, value in saved["ema"].items()})
    model, pixels = Mini(weights), torch.randn(2, 3, 24, 24)
    texts = ["dog", "a photo of an elephant", "xyzzy", "a dog in a quantum chromodynamics laboratory"]
    with torch.no_grad():
        wanted = learner.encode_tokens(tokenizer(texts))
        cls, patches = learner.encode_images(pixels)
    dense = model.encode_dense(pixels, "maskclip_value")
    torch.testing.assert_close(torch.nn.functional.normalize(model.encode_text(texts), dim=-1), wanted)
    torch.testing.assert_close(model.encode_image(pixels), cls)
    torch.testing.assert_close(dense.features.flatten(2).transpose(1, 2), patches)


def test_unknown_words_are_accepted_and_reported(weights: Path) -> None:
    model = Mini(weights)
    assert [reach.trust for reach in model.reach(["dog", "a photo of a dog", "xyzzy"])] == ["good", "good", "none"]
    assert torch.isfinite(model.encode_text(["xyzzy", "größe", ""])).all()
    assert get(model.default_recipe).name == "maskclip_value"
    assert model.protocol.crop == 24


def test_missing_or_foreign_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "MINI", "weights/nowhere.safetensors")
    with pytest.raises(ModelError, match="no weights in this installation"):
        Mini()
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="is not a mini model"):
        Mini(tmp_path / "bad.safetensors")


def test_the_shipped_file_is_compared_with_its_pinned_digest(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "MINI", str(weights))
    monkeypatch.setattr(mini, "SHA256", json.loads((weights.parent / "mini.json").read_text())["sha256"])
    assert Mini().name == "mini"
    monkeypatch.setattr(mini, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="is not the one densevl ships"):
        Mini()


def test_the_surfaces_of_the_model_are_those_of_the_renderer() -> None:
    assert Bank(NOUNS).names[NOUNS:] == mini.SURFACES


def test_patch_labels_are_shares_of_pixels_and_mirror_with_the_image() -> None:
    sample = to_sample(_painted(16, np.random.default_rng(0), False), NOUNS, len(Bank(NOUNS)))
    np.testing.assert_allclose(sample.shares.sum(-1), 1)
    assert sample.shares[0, 0, :NOUNS].sum() == pytest.approx(0.5)
    assert sample.mirrored().shares[1, 1, :NOUNS].sum() == sample.shares[1, 0, :NOUNS].sum() == 1


def test_a_batch_holds_surfaces_and_recent_images() -> None:
    scene, surface = sources(16, NOUNS, [0])
    stream = Stream(scene, surface, NOUNS, len(Bank(NOUNS)), [1])
    batches = [stream.batch(16) for _ in range(8)]
    assert all(len(batch.captions) == 16 and batch.damage.shape[1] == 4 for batch in batches)
    assert sum(len(batch.surfaces) for batch in batches) > 0


NOBODY = torch.zeros(1, 4, dtype=torch.bool)


def test_patch_loss_is_least_where_the_scores_say_the_truth() -> None:
    bank = torch.eye(4)
    shares = torch.eye(4, 5)[torch.tensor([[0, 3]])]
    right, wrong = bank[[0, 3]][None], bank[[3, 0]][None]
    scale = torch.tensor(10.0)
    losses = [patch_loss(patches, bank, shares, 2, scale, NOBODY) for patches in (right, wrong)]
    assert losses[0] < 0.01 < losses[1]


def test_a_background_without_a_name_may_be_any_texture_but_no_noun() -> None:
    bank, scale, shares = torch.eye(4), torch.tensor(10.0), torch.eye(5)[4].view(1, 1, 5)
    loss = [float(patch_loss(bank[None, [c]], bank, shares, 2, scale, NOBODY)) for c in range(4)]
    assert loss[2] == loss[3] < 0.01 < 5 < loss[0] == loss[1]
    between = torch.nn.functional.normalize(bank[2] + bank[3], dim=0)
    assert patch_loss(between.view(1, 1, 4), bank, shares, 2, scale, NOBODY) < 0.1


def test_nouns_that_a_named_texture_does_not_show_compete_for_the_background_only() -> None:
    bank, scale = torch.eye(4), torch.tensor(10.0)
    unsure = torch.nn.functional.normalize(bank[0] + bank[1], dim=0).view(1, 1, 4)
    absent = torch.tensor([[False, True, False, False]])
    for shares, less in ((torch.eye(5)[0], True), (torch.eye(5)[2], False)):
        losses = [patch_loss(unsure, bank, shares.view(1, 1, 5), 2, scale, some) for some in (NOBODY, absent)]
        assert (losses[1] < losses[0] - 0.5) == less
    truth = torch.tensor([[1.0, 0, 0.4, 0]])
    losses = [image_loss(unsure[0], bank, truth, scale, some) for some in (NOBODY, absent)]
    assert losses[1] < losses[0]


def test_a_batch_tells_the_absent_nouns_of_named_scenes_alone() -> None:
    rng, classes = np.random.default_rng(0), len(Bank(NOUNS))
    named, unnamed = (replace(_painted(16, rng, False), texture=t) for t in (0, UNNAMED))
    bare = to_sample(_painted(16, rng, True), NOUNS, classes, surface=True)
    batch = collate([*(to_sample(scene, NOUNS, classes) for scene in (named, unnamed)), bare], NOUNS)
    assert batch.shares.shape[-1] == classes + 1
    assert batch.truth.shape == batch.absent.shape == (3, classes)
    others = [noun for noun in range(NOUNS) if noun not in named.nouns]
    assert batch.absent[0].nonzero().flatten().tolist() == others
    assert not batch.absent[1:].any()
    assert batch.shares[1, :, -1].sum() > 0 == batch.truth[1, NOUNS:].sum()


def test_a_run_goes_on_from_a_file_with_its_weights_sizes_and_words(weights: Path, tmp_path: Path) -> None:
    run = Run(Plan.going_on(tmp_path, 4, weights, by_steps=True, batch=8, nouns=NOUNS, fast=False), sources)
    state, header = read_compact(weights)
    assert run.config == replace(CONFIG, image=24)
    assert run.tokenizer.ids.tolist() == state["token_ids"].tolist()
    assert all(torch.equal(run.ema[f"clip.{key}"], v.float()) for key, v in state.items() if key != "token_ids")
    assert float(run.ema["patch_scale"].exp()) == pytest.approx(float(header["patch_scale"]))
    assert np.isfinite(run.step()["loss"])
    run.save()
    again = Run(run.plan, sources)
    assert again.step_count == 1
    assert all(torch.equal(value, again.ema[key]) for key, value in run.ema.items())
    export(tmp_path, tmp_path)
    assert (tmp_path / "mini.safetensors").stat().st_size == weights.stat().st_size
    export(tmp_path, tmp_path / "mixed", weights)
    alone, both = (read_compact(folder / "mini.safetensors")[0] for folder in (tmp_path, tmp_path / "mixed"))
    for key, value in both.items():
        torch.testing.assert_close(value.float(), (alone[key].float() + state[key].float()) / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 32), (2, 32, 8)])
def test_muon_updates_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=6))
    assert values.max() < 1.3
    assert values.min() > 0.5


@torch.no_grad()
def test_anomaly_maps_run_on_the_model_and_find_nothing_new_in_the_reference(weights: Path) -> None:
    model, pixels = Mini(weights), torch.randn(2, 3, 64, 64)
    damage = window_map(model, pixels, torch.zeros(CONFIG.embed))
    assert torch.equal(damage, torch.full((2, 8, 8), 0.5)), "a margin of nothing says nothing"
    distance = memory_map(model, pixels, pixels[:1])
    assert distance[0].abs().max() < 1e-5 < distance[1].mean()


def test_metrics_by_hand() -> None:
    counts = confusion(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]), 4)
    assert mean_iou(counts) == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    assert auroc(np.array([0.1, 0.2, 0.2, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.875)
    assert {"twemoji", "openmoji", "held-out pairs"} <= set(SETS)


@pytest.mark.parametrize("value", [HELD_OUT, 4])
def test_twins_show_the_same_nouns_and_textures_and_no_held_out_pair(value: int) -> None:
    rng = np.random.default_rng(1)
    scenes = draw(80, value, rng)
    others = twins(scenes, {HELD_OUT, value}, rng)
    assert [len(one.nouns) for one in scenes] == [len(one.nouns) for one in others]
    assert not any(one.shows({HELD_OUT, value}) for one in others)
    for kind in range(len(KINDS)):
        rows = [i for i in range(80) if kind_of(i) == kind]
        for i in rows:
            shown = [value in hashes for hashes in scenes[i].hashes()]
            assert shown == [kind == 0, kind == 1], "one kind of pair only"
            assert scenes[i].members(value)
        for of in (lambda one: one.nouns, lambda one: (one.texture,)):
            counts = [sorted(x for i in rows for x in of(some[i])) for some in (scenes, others)]
            assert counts[0] == counts[1]


def test_a_comparison_of_pairs_counts_objects_of_the_pair_apart() -> None:
    class Knows:
        """Answers with the truth, but misses the pair's nouns in scenes that show the pair."""

        seed, count = 5, 60

        def maker(self, part: object, offset: int) -> object:
            return Draws()

        def read(self, scenes: list[Scene], recipe: str, whole: bool) -> tuple[np.ndarray, ...]:
            truth = np.stack([scene.objects for scene in scenes]).ravel() + 1
            noun = np.maximum(truth, 1)
            for i, scene in enumerate(scenes):
                lost = Content(scene.nouns, scene.texture).members(HELD_OUT)
                part = slice(i * truth.size // len(scenes), (i + 1) * truth.size // len(scenes))
                noun[part][np.isin(truth[part] - 1, list(lost))] = 0
            return truth, noun, (truth > 0).astype(float)

    class Draws:
        def of(self, nouns: tuple[int, ...], texture: int) -> Scene:
            objects = np.full((2, 4), -1, np.int16)
            objects[0, : len(nouns)] = nouns
            return Scene(np.zeros((2, 4, 3), np.uint8), objects, objects, nouns, texture, "")

    held, other = (compare(Knows(), "any", 0.0, value)["all"] for value in (HELD_OUT, HASHES - 1))
    assert (held["objects of the pair"], held["same nouns in twins"], held["objects beside"]) == (0, 100, 100)
    assert held["gap"] > 0 == other["gap"]
