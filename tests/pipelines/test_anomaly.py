"""`AnomalyDetector` end to end on a tiny random CLIP, and once on the shipped one."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import close, random_clip, wrap
from densevl import fitted
from densevl.anomaly.scoring import BY_NAME
from densevl.anomaly.trained.learning import LearnedPrompts
from densevl.errors import ImageError, ModelError, OptionError, ProposalError, RecipeError, WeightsError
from densevl.images import find_images
from densevl.pipelines.anomaly.adaptation import Sample, train_adapters
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.folder import gathered
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import ANOMALY, scoring

RNG = np.random.default_rng(5)
SURFACE = RNG.integers(90, 130, (40, 40, 3), np.uint8)
DAMAGED = SURFACE.copy()
DAMAGED[4:12, 20:28] = 250
OTHERS = [np.clip(SURFACE.astype(int) + RNG.integers(-9, 9, SURFACE.shape), 0, 255).astype(np.uint8) for _ in range(4)]


@pytest.mark.parametrize("scoring", [name for name in BY_NAME if name != "adaptclip"])
@pytest.mark.parametrize("shots", [0, 1, 3])
def test_every_scoring_gives_a_finite_map_of_the_images_size(tiny, scoring, shots) -> None:
    detect = AnomalyDetector(tiny, scoring, item="tile")
    if shots:
        detect.fit(OTHERS[:shots])
    elif not detect.scoring.is_textual:
        with pytest.raises(ModelError, match="call fit"):
            detect(DAMAGED)
        return
    result = detect(DAMAGED)
    assert result.map.shape == (40, 40)
    assert result.map.dtype == np.float32
    assert np.isfinite(result.map).all()
    assert np.isfinite(result.score)
    assert set(result.parts) <= {"text", "text_logit", "memory"}
    json.dumps(result.facts())


@pytest.mark.parametrize("windows", ["exact", "shared", "pooled"])
def test_a_result_does_not_depend_on_its_batch(tiny, windows) -> None:
    detect = AnomalyDetector(tiny, options={"windows": windows}, item="tile").fit(OTHERS[:2])
    alone = [detect(image) for image in (*OTHERS, DAMAGED)]
    together = list(detect.many([*OTHERS, DAMAGED], batch=3))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.grid - other.grid).max() < 1e-4
        assert abs(one.score - other.score) < 1e-4


def test_a_reference_has_no_distance_to_itself(tiny) -> None:
    detect = AnomalyDetector(tiny, "dino", options={"augment": "none", "smooth": 0.0}).fit([SURFACE, *OTHERS])
    assert detect(SURFACE).score < 1e-6
    assert detect(DAMAGED).score > 1e-3
    winclip = AnomalyDetector(tiny, "winclip").fit([SURFACE])
    assert winclip(SURFACE).parts["memory"].max() < 1e-5  # the harmonic mean's epsilon is all that is left


def test_more_references_never_increase_a_distance(tiny) -> None:
    few = AnomalyDetector(tiny, "dino").fit(OTHERS[:1])(DAMAGED).parts["memory"]
    many = AnomalyDetector(tiny, "dino").fit(OTHERS)(DAMAGED).parts["memory"]
    assert (many <= few + 1e-6).all()


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize("scoring", ["winclip", "dense", "dino"])
def test_thresholds_come_from_normal_images_only(tiny, shots, scoring) -> None:
    detect = AnomalyDetector(tiny, scoring).fit(OTHERS[:shots])
    assert detect(DAMAGED).is_anomalous is None
    assert detect(DAMAGED).mask is None
    detect.calibrate(fpr=0.05)
    assert detect.thresholds.images == (8 if shots == 1 else 4)
    assert detect(DAMAGED).mask.shape == (40, 40)
    assert detect.calibrate(0.05, OTHERS).thresholds.images == 4
    scores = [detect(image).score for image in OTHERS]
    assert abs(detect.thresholds.image - max(scores)) < 1e-6


def test_lone_augmented_reference_is_not_compared_with_its_own_copies(tiny) -> None:
    detect = AnomalyDetector(tiny, "dino").fit([SURFACE]).calibrate(0.01)
    assert detect.thresholds.pixel > 1e-4
    assert detect.scorer.spread.memory[1] > 1e-5


def test_words_alone_can_be_calibrated(tiny) -> None:
    detect = AnomalyDetector(tiny, item="tile")
    with pytest.raises(ModelError, match="no normal images"):
        detect.calibrate()
    with pytest.raises(OptionError, match="between 0 and 1"):
        detect.calibrate(fpr=1)
    assert detect.calibrate(0.1, OTHERS)(DAMAGED).is_anomalous in (True, False)


@pytest.mark.parametrize("scoring", ["winclip", "dense", "patchcore"])
def test_a_saved_detector_gives_the_same_results(tiny, tmp_path, scoring) -> None:
    detect = AnomalyDetector(tiny, scoring, item="tile", states={"anomalous": ["bent {}"]}).fit(OTHERS)
    detect.calibrate(0.1)
    files = detect.save(tmp_path / "tile.v1")
    assert [file.name for file in files] == ["tile.v1.safetensors", "tile.v1.json"]
    again = AnomalyDetector.load(tmp_path / "tile.v1", tiny)
    one, other = detect(DAMAGED), again(DAMAGED)
    assert np.array_equal(one.grid, other.grid)
    assert one.score == other.score
    assert vars(one.thresholds) == vars(other.thresholds)
    assert again.references == detect.references
    with pytest.raises(ModelError, match="no normal images"):
        again.calibrate()


def test_a_memory_of_another_backbone_or_damaged_files_are_refused(tiny, tmp_path) -> None:
    AnomalyDetector(tiny, "dino").fit(OTHERS[:1]).save(tmp_path / "a")
    with pytest.raises(WeightsError, match="has other weights"):
        AnomalyDetector.load(tmp_path / "a", wrap(random_clip(seed=1), "other"))
    AnomalyDetector(tiny, "dino").fit(OTHERS[1:2]).save(tmp_path / "b")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="does not belong"):
        AnomalyDetector.load(tmp_path / "a", tiny)
    facts = json.loads((tmp_path / "b.json").read_text())
    for broken in ("{", "[]", json.dumps({**facts, "scoring": {"text": "x"}})):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(WeightsError):
            AnomalyDetector.load(tmp_path / "b", tiny)
    for lost in ("item", "facts_sha256"):
        facts.pop(lost)
    (tmp_path / "b.json").write_text(json.dumps({**facts, "facts_sha256": fitted.stamp(facts)}))
    with pytest.raises(WeightsError, match="'item' is missing"):
        AnomalyDetector.load(tmp_path / "b.json", tiny)
    with pytest.raises(WeightsError, match="cannot be read"):
        AnomalyDetector.load(tmp_path / "none", tiny)
    with pytest.raises(ModelError, match="nothing to save"):
        AnomalyDetector(tiny).save(tmp_path / "c")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((1, 900, 3), np.uint8),
        np.full((40, 40), 30000, np.uint16),
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40), bool),
        torch.rand(3, 50, 30),
        Image.new("RGBA", (33, 21)),
        np.zeros((2000, 1500, 3), np.uint8),
    ],
    ids=["1 px", "1 x 900", "16 bit", "grey", "RGBA", "bool", "tensor", "PIL RGBA", "large"],
)
def test_images_of_any_kind_give_a_map(tiny, image) -> None:
    detect = AnomalyDetector(tiny, "winclip").fit(OTHERS[:1])
    result = detect(image)
    assert result.map.shape == result.image.shape[:2]
    assert np.isfinite(result.map).all()
    assert detect.fit([image])(image).parts["memory"].max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"scoring": "winclp"}, RecipeError, "closest: winclip"),
        ({"item": " "}, OptionError, "item is"),
        ({"size": 4}, OptionError, "at least one patch, 8"),
        ({"options": {"colour": 1}}, RecipeError, "no field 'colour'"),
        ({"weights": "x.pt"}, OptionError, "loaded already"),
        ({"options": {"memory": ("windows",)}, "proxy": "mini-sam"}, RecipeError, "does not use a proxy"),
        ({"options": {"recipe": "no_such"}}, RecipeError, "no recipe"),
    ],
)
def test_impossible_settings_are_one_clear_line(tiny, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        AnomalyDetector(tiny, **settings)


OTHER_TOWERS = {
    "convolutional": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "rotary": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 56},
}


@pytest.mark.parametrize("kind", OTHER_TOWERS)
def test_towers_that_have_no_windows_say_so_and_score_otherwise(kind) -> None:
    import open_clip

    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    make = open_clip.CLIP if kind == "convolutional" else open_clip.CustomTextCLIP
    model = make(embed_dim=24, vision_cfg={**OTHER_TOWERS[kind], "timm_proj": "linear"}, text_cfg=text)
    other = wrap(model.eval().requires_grad_(False), kind)
    for windows in ("exact", "shared"):
        with pytest.raises(RecipeError, match="use 'pooled'"):
            AnomalyDetector(other, options={"windows": windows})(DAMAGED)
    for settings in ({"options": {"windows": "pooled"}}, {"scoring": "dense"}, {"scoring": "dino"}):
        assert np.isfinite(AnomalyDetector(other, **settings).fit(OTHERS[:1])(DAMAGED).map).all()


def test_zero_normal_images_are_one_clear_line(tiny, tmp_path) -> None:
    for nothing in ([], tmp_path, iter(())):
        with pytest.raises(ImageError, match=r"no normal images|no images"):
            AnomalyDetector(tiny).fit(nothing)
    with pytest.raises(ImageError, match="give a folder"):
        AnomalyDetector(tiny).fit(3)
    with pytest.raises(RecipeError, match="has no memory"):
        AnomalyDetector(tiny, options={"memory": ()}).fit(OTHERS)


def test_fit_takes_folders_paths_and_arrays_alike(tiny, tmp_path) -> None:
    for number, image in enumerate(OTHERS):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.iterdir())
    kinds = (tmp_path, str(tmp_path), [tmp_path], paths, OTHERS, np.stack(OTHERS))
    grids = [AnomalyDetector(tiny, "dino").fit(kind)(DAMAGED).grid for kind in kinds]
    assert all(np.array_equal(grids[0], grid) for grid in grids)
    assert AnomalyDetector(tiny, "dino").fit(tmp_path).references[0].endswith("0.png")


def test_a_proxy_is_remembered_instead_of_the_model(tiny) -> None:
    detect = AnomalyDetector(tiny, "dense", options={"smooth": 0.0}, proxy="mini-sam").fit(OTHERS[:2])
    assert list(detect.memories) == ["proxy"]
    assert detect(DAMAGED).map.shape == (40, 40)


def test_a_large_memory_is_compressed(tiny) -> None:
    detect = AnomalyDetector(tiny, "dino", options={"most": 10}).fit(OTHERS)
    assert {len(memory) for memory in detect.memories.values()} == {10}
    assert np.isfinite(detect(DAMAGED).score)


def test_a_folder_is_scored_past_a_bad_image(tiny, tmp_path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, image in (("good", OTHERS[1]), ("bad", DAMAGED)):
        Image.fromarray(image).save(source / f"{name}.png")
    (source / "cut.png").write_bytes((source / "good.png").read_bytes()[:200])
    before = {path: path.read_bytes() for path in source.iterdir()}
    detect = AnomalyDetector(tiny, "dino").fit(OTHERS[:1]).calibrate(0.1)
    together = [gathered.Scores(), gathered.Sheet(ANOMALY.picture)]
    report = to_files(scoring(detect), find_images(source), out, together=together)
    assert list(report.errors) == [str(source / "cut.png")]
    names = {path.name for path in out.iterdir()}
    stems = {f"{stem}.{end}" for stem in ("good", "bad") for end in ("png", "json", "npy")}
    assert names == stems | {"scores.csv", "errors.jsonl", "contact_sheet.jpg", "densevl.json"}
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert [row["image"].split("/")[-1] for row in rows] == ["bad.png", "good.png"]
    assert float(rows[0]["score"]) > float(rows[1]["score"])
    assert json.loads((out / "bad.json").read_text())["thresholds"]["fpr"] == 0.1
    assert np.load(out / "bad.npy", allow_pickle=False).shape == (4, 4)
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_the_shipped_model_finds_a_hole_by_words_and_by_one_normal_image() -> None:
    rng = np.random.default_rng(0)
    surface = np.full((96, 96, 3), (190, 150, 100), np.uint8) + rng.integers(0, 20, (96, 96, 1), np.uint8)
    surface[::16] //= 2
    broken, hole = surface.copy(), (slice(40, 60), slice(60, 78))
    broken[hole] = 12
    detect = AnomalyDetector("mini", options={"windows": "shared"}, item="wooden surface")
    for _ in range(2):
        result = detect(broken)
        assert result.map[hole].mean() > 2 * result.map.mean()
        assert result.score > detect(surface).score
        detect.fit([surface])


@pytest.fixture(scope="module")
def adapters(tiny):
    masks = [np.zeros((40, 40), bool), (DAMAGED != SURFACE).any(axis=2)]
    samples = [Sample((other, DAMAGED)[bad], masks[bad], SURFACE) for other in OTHERS for bad in (0, 1)]
    losses = []
    found = train_adapters(tiny, samples, epochs=6, words=4, rate=5e-3, report=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    return found


@pytest.mark.parametrize("shots", [0, 1])
def test_trained_adapters_score_and_survive_a_file(tiny, adapters, tmp_path, shots) -> None:
    file = adapters.save(tmp_path / "a.safetensors")
    one, other = (AnomalyDetector(tiny, "adaptclip", adapters=given) for given in (adapters, file))
    for detect in (one, other):
        if shots:
            detect.fit([SURFACE]).calibrate(0.1)
    first, second = one(DAMAGED), other(DAMAGED)
    assert np.array_equal(first.grid, second.grid)
    assert first.score == second.score
    assert 0 <= first.map.min() <= first.map.max() <= 1
    batch = list(one.many([OTHERS[0], DAMAGED, OTHERS[1]]))[1]  # batch norms do not look at the batch
    assert np.abs(batch.grid - first.grid).max() < 1e-5
    if shots:
        one.save(tmp_path / "d")
        again = AnomalyDetector.load(tmp_path / "d", tiny, adapters=file)
        assert np.array_equal(again(DAMAGED).grid, first.grid)


def test_adapters_of_another_backbone_or_for_nothing_are_refused(tiny, adapters, tmp_path) -> None:
    file = adapters.save(tmp_path / "a.safetensors")
    other = wrap(random_clip(seed=1), "other")
    for given in (adapters, file):
        with pytest.raises(WeightsError, match="trained on model 'tiny'"):
            AnomalyDetector(other, "adaptclip", adapters=given)
    with pytest.raises(ModelError, match="needs trained adapters"):
        AnomalyDetector(tiny, "adaptclip")
    with pytest.raises(RecipeError, match="does not use adapters"):
        AnomalyDetector(tiny, adapters=adapters)
    with pytest.raises(ModelError, match=r"\.safetensors"):
        adapters.save(tmp_path / "a.bin")
    AnomalyDetector(tiny, "dino").fit(OTHERS[:1]).save(tmp_path / "memory")
    with pytest.raises(WeightsError, match="no adapters of this version"):
        AnomalyDetector(tiny, "adaptclip", adapters=tmp_path / "memory.safetensors")


def test_adapters_need_sound_and_damaged_samples(tiny) -> None:
    sound = Sample(SURFACE, np.zeros((40, 40), bool), SURFACE)
    with pytest.raises(ModelError, match="0 of them damaged"):
        train_adapters(tiny, [sound])
    with pytest.raises(ProposalError, match=r"mask 0 is \(4, 4\), the image"):
        train_adapters(tiny, [Sample(SURFACE, np.zeros((4, 4), bool), SURFACE)])


def test_learned_words_are_read_in_place_of_words_and_alone_get_gradients(tiny) -> None:
    table = tiny._model.token_embedding
    word = table(tiny.tokenizer(["red"]))[0, 1]
    found = tiny.encode_learned(torch.stack([word, word])[:, None], "tile")
    close(found, tiny.encode_text(["red tile"]).expand(2, -1))
    words = torch.zeros(2, 3, tiny.word_width, requires_grad=True)
    tiny.encode_learned(words, "tile").sum().backward()
    assert words.grad.abs().sum() > 0
    assert table.weight.grad is None
    assert not table._forward_hooks
    with pytest.raises(ModelError, match="take at most 17"):
        tiny.encode_learned(torch.zeros(2, 18, tiny.word_width), "tile")


def test_adapters_need_a_model_with_words(tiny) -> None:
    class Wordless:
        name = "wordless"

    with pytest.raises(ModelError, match="no text tower"):
        LearnedPrompts(Wordless(), "tile", 4)


def test_only_the_blocks_that_are_read_run(tiny, monkeypatch) -> None:
    ran = []
    plain = type(tiny.tower).run

    def counted(self, index, *rest):
        ran.append(index)
        return plain(self, index, *rest)

    monkeypatch.setattr(type(tiny.tower), "run", counted)
    AnomalyDetector(tiny, "dino", options={"augment": "none", "layers": (2, 4)}).fit(OTHERS[:2])
    assert max(ran) == 3
    AnomalyDetector(tiny, "winclip")(DAMAGED)
    assert max(ran) == 6
