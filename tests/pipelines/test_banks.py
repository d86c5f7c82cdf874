"""Banks built from photos and used by a Segmenter: what they add, and whose they must be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import densevl
from conftest import PHOTOS
from densevl import RegionClassifier, Segmenter, load_backbone, load_proxy
from densevl.cli import app
from densevl.errors import DensevlError, OptionError, RecipeError
from densevl.inference.windows import WindowGrid
from densevl.pipelines.regions.banking import BankBuilder
from densevl.pipelines.segmentation.bank import Banks
from densevl.pipelines.segmentation.segments import Segments
from densevl.proposals import Proposals
from densevl.proposals.sam.mini_sam import WEIGHTS
from densevl.regions.bank import Bank, BankError
from densevl.vocabulary.text_classifier import TextClassifier

SCENES = PHOTOS.parent / "scenes"
LABELS = ["penguin", "elephant", "pizza"]


def quarters(rgb: np.ndarray) -> Proposals:
    height, width = rgb.shape[:2]
    boxes = [[0, 0, width // 2, height // 2], [width // 2, height // 2, width, height]]
    return Proposals.from_boxes(boxes, (height, width))


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini")


@pytest.fixture(scope="module")
def keys():
    return load_proxy("mini-sam")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(SCENES.glob("*.png"))[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def tiny_photo():
    """As much of a classifier of the photo model as is asked before anything runs."""
    backbone = SimpleNamespace(name="photo", device="cpu")
    return SimpleNamespace(operators={"pool": 1.0}, order="classify_then_pool", backbone=backbone, facts=dict)


@pytest.fixture
def builder(tmp_path, mini, keys):
    return BankBuilder(tmp_path / "bank", RegionClassifier(mini, "pool", proposals=quarters), keys)


def test_a_build_takes_what_is_new(builder, photos, mini, keys) -> None:
    assert len(builder.build(photos).added) == 3
    assert (len(builder.bank.photos), len(builder.bank)) == (3, 6)
    again = BankBuilder(builder.bank.path, builder.classifier, keys)
    built = again.build(photos)
    assert (len(built.kept), built.added) == (3, ())
    other = RegionClassifier(mini, "pool", recipe="vanilla", proposals=quarters)
    with pytest.raises(BankError, match=r"made with other settings .*recipe"):
        BankBuilder(builder.bank.path, other, keys)
    assert BankBuilder(builder.bank.path, other, keys, overwrite=True).build(photos).added


def test_photos_that_are_gone_or_changed_leave(builder, photos, tmp_path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(photos, mine)
    builder.build(mine)
    names = sorted(mine.iterdir())
    names[0].unlink()
    shutil.copy(names[1], names[2])
    built = builder.build(mine, forget=True)
    assert (len(built.removed), len(built.added), len(built.kept)) == (1, 1, 1)
    assert len(Bank.load(builder.bank.path).photos) == 2


def test_a_killed_build_goes_on(builder, photos, monkeypatch, keys) -> None:
    monkeypatch.setattr("densevl.pipelines.regions.filling.KEPT_BACK", 1)
    look, calls = builder._look, []

    def stops(path):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(builder, "_look", stops)
    with pytest.raises(KeyboardInterrupt):
        builder.build(photos)
    again = BankBuilder(builder.bank.path, builder.classifier, keys)
    built = again.build(photos)
    assert (len(built.kept), len(built.added)) == (2, 1)


def test_a_share_of_nothing_changes_nothing(builder, photos, mini, keys) -> None:
    builder.build(photos)
    photo = SCENES / "wood.png"
    plain = Segmenter(mini, proposals=quarters)(photo, LABELS)
    none = Segmenter(mini, proposals=quarters, bank=builder.bank.path, bank_share=0.0)(photo, LABELS)
    half = Segmenter(mini, proposals=quarters, bank=builder.bank.path, bank_share=0.5, neighbours=2)(photo, LABELS)
    assert np.array_equal(plain.labels, none.labels)
    assert np.array_equal(plain.confidence, none.confidence)
    assert not np.array_equal(half.confidence, plain.confidence)
    assert half.meta["banks"]["neighbours"] == 2


def test_scores_are_painted_on_what_each_token_covers(builder, photos, mini, keys) -> None:
    """Of a map whose segments lie on the tokens' grid each token has its segment's score, to rounding."""
    builder.build(photos)
    banks = Banks(builder.bank, 0.25, 3, mini, mini.resolve(None), keys)
    rgb = np.asarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3)), np.uint8)
    ids = np.repeat(np.repeat(np.array([[0, 1, 1], [7, 0, 2]]), 32, axis=0), 32, axis=1)
    windows = WindowGrid.place(64, 96, None, None, 32)
    text = torch.nn.functional.normalize(
        torch.randn(4, mini.embed_dim, generator=torch.Generator().manual_seed(1)), dim=1
    )
    scores = torch.rand(1, 2, 3, 4)
    found = banks.mix(scores, windows, rgb, Segments(torch.from_numpy(ids)), [text])
    from densevl.regions.keys import region_keys

    for y in range(2):
        for x in range(3):
            mask = (ids == ids[y * 32, x * 32])[None]
            query = region_keys(keys, rgb, Proposals.from_masks(mask, (64, 96)))
            want = 0.75 * scores[0, y, x] + 0.25 * (builder.bank.support(query, 3) @ text.T)[0]
            torch.testing.assert_close(found[0, y, x], want, atol=1e-5, rtol=0)


def test_several_banks_are_averaged(builder, photos, mini, keys, tmp_path) -> None:
    builder.build(photos)
    shutil.copytree(builder.bank.path, tmp_path / "copy")
    twice = Segmenter(mini, proposals=quarters, bank=[builder.bank, tmp_path / "copy"])(SCENES / "wood.png", LABELS)
    once = Segmenter(mini, proposals=quarters, bank=builder.bank)(SCENES / "wood.png", LABELS)
    np.testing.assert_allclose(twice.confidence, once.confidence, atol=1e-5)


def test_words_for_the_model_of_a_bank_are_encoded_once(builder, photos, mini, monkeypatch) -> None:
    """Not for each photo."""
    builder.build(photos)
    segment, calls = Segmenter(mini, proposals=quarters, bank=builder.bank), []
    other = TextClassifier(mini, use_cache=False)
    encode = other.encode
    monkeypatch.setattr(other, "encode", lambda *asked: calls.append(asked) or encode(*asked))
    monkeypatch.setattr(segment.words, "of_banks", (other,))
    for _ in range(3):
        segment(SCENES / "wood.png", LABELS)
    assert len(calls) == 1


def test_a_bank_that_is_empty_or_named_twice_is_refused(builder, photos, mini) -> None:
    builder.build(photos)
    with pytest.raises(BankError, match="is named twice"):
        Segmenter(mini, proposals=quarters, bank=[builder.bank.path, f"{builder.bank.path}/"])
    with pytest.raises(BankError, match="holds no regions"):
        Segmenter(mini, proposals=quarters, bank=Bank(builder.bank.path, builder.bank.facts))


def test_a_bank_of_a_model_that_is_not_at_hand_names_it(builder, photos, mini) -> None:
    builder.build(photos)
    values = {**builder.bank.facts["values"], "model": "fgclip2", "weights": "0" * 64}
    other = Bank(builder.bank.path, {**builder.bank.facts, "values": values}, builder.bank.parts)
    with pytest.raises(BankError, match=r"was made with model 'fgclip2' \(weights 000000000000\), not 'mini'"):
        Segmenter(mini, proposals=quarters, bank=other)


def test_a_bank_of_other_weights_is_refused(builder, photos, mini, keys) -> None:
    builder.build(photos)
    bank = builder.bank
    other = Bank(bank.path, {**bank.facts, "values": {**bank.facts["values"], "weights": "0" * 64}}, bank.parts)
    with pytest.raises(BankError, match="weights of 'mini' other than"):
        Segmenter(mini, proposals=quarters, bank=other)
    other = Bank(bank.path, {**bank.facts, "keys": {**bank.facts["keys"], "weights": "0" * 64}}, bank.parts)
    with pytest.raises(BankError, match="another proxy named 'mini-sam'"):
        Segmenter(mini, proposals=quarters, bank=other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe": "clip_prs"}, "does not score by cosines"),
        ({"bank_share": 1.5}, "bank_share is 1.5"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"bank": 7}, "bank is 7"),
        ({"bank": "absent"}, "no bank"),
        ({"bank": []}, "no bank"),
    ],
)
def test_wrong_settings_are_refused(builder, photos, mini, settings, words) -> None:
    builder.build(photos)
    with pytest.raises(DensevlError, match=words):
        Segmenter(mini, proposals=quarters, **{"bank": builder.bank, **settings})


@pytest.mark.parametrize("operator", ["pool+cls_mask", None], ids=["two operators", "no vectors"])
def test_what_keeps_no_single_vector_a_region_fills_no_bank(tmp_path, tiny_photo, mini, keys, operator) -> None:
    classify = RegionClassifier(mini, operator) if operator else tiny_photo
    with pytest.raises(OptionError, match="a bank"):
        BankBuilder(tmp_path / "bank", classify, keys)
    assert not (tmp_path / "bank").exists()


def test_the_proxy_is_found_again_by_its_name_or_file(tmp_path, photos, mini) -> None:
    file = tmp_path / "other.safetensors"
    shutil.copy(Path(densevl.__file__).parent / WEIGHTS, file)
    for name in ("mini-sam", str(file)):
        made = BankBuilder(tmp_path / Path(name).stem, RegionClassifier(mini, "pool", proposals=quarters), name)
        made.build(photos)
        segment = Segmenter(mini, proposals=quarters, bank=made.bank.path)
        assert segment.banks.facts()["banks"][0]["regions"] == 6
    file.unlink()
    with pytest.raises(BankError, match=r"has keys of .*other\.safetensors', which cannot be loaded"):
        Segmenter(mini, proposals=quarters, bank=tmp_path / "other")


def test_another_photo_is_another_bank_to_a_run(builder, photos, tmp_path) -> None:
    """A run that goes on must notice: its results hold the fingerprint."""
    builder.build(photos)
    before = Bank.load(builder.bank.path).fingerprint
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(SCENES / "wood.png", more)
    builder.build(more)
    assert Bank.load(builder.bank.path).fingerprint != before


def test_a_bank_needs_segments(builder, photos, mini) -> None:
    builder.build(photos)
    with pytest.raises(RecipeError, match="a bank needs segments"):
        Segmenter(mini, bank=builder.bank)(SCENES / "wood.png", LABELS)


def test_the_commands_build_and_use_a_bank(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "mini", "--proposals", "grid"]
    built = CliRunner().invoke(app, ["bank", "build", str(SCENES), "--out", "scenes.bank", *model])
    assert built.exit_code == 0, built.output
    assert "regions in scenes.bank" in built.stdout
    again = CliRunner().invoke(app, ["bank", "build", str(SCENES), "--out", "scenes.bank", *model])
    assert "(0 new," in again.stdout
    shown = CliRunner().invoke(app, ["bank", "show", "scenes.bank", "--json"])
    assert json.loads(shown.stdout)["keys"] == "efficientnet-lite0"
    used = ["segment", str(SCENES / "wood.png"), "--labels", "penguin,pizza", "--bank", "scenes.bank"]
    done = CliRunner().invoke(app, [*used, "--model", "mini", "--proposals", "mini-sam", "--out", "out"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "wood.json").read_text())["meta"]["banks"]["share"] == 0.5
