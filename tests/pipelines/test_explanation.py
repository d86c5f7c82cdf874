"""`Explainer` and `densevl explain`: parts add up, maps lie where they should, what cannot be explained is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import PHOTOS, close, random_clip, wrap
from densevl import Explainer, Segmenter, load_backbone
from densevl.cli import app
from densevl.errors import ImageError, LabelError, ModelError, OptionError, OutputError, PrecisionError
from densevl.explaining.decomposition import require_split
from densevl.fitted import fingerprint
from densevl.images import read_image
from densevl.pipelines.feeding import embed_images
from densevl.vocabulary import LabelSet
from densevl.vocabulary.text_classifier import TextClassifier

SCENES = PHOTOS.parent / "scenes"
SCENE = SCENES / "wood.png"


@pytest.fixture(scope="module")
def explain():
    return Explainer("mini")


@pytest.fixture(scope="module")
def exact():
    return Explainer(wrap(random_clip().double()))


def cosine(backbone, image, words) -> torch.Tensor:
    """The model's own cosines."""
    rows = TextClassifier(backbone).encode(LabelSet.parse(words)).vectors
    return F.normalize(embed_images(backbone, [read_image(image)]), dim=-1)[0] @ rows.T


def test_all_parts_add_up_to_the_cosine(explain) -> None:
    found = explain(SCENE, "penguin")
    close(torch.tensor(found.score), cosine(explain.backbone, SCENE, "penguin")[0])
    assert abs(sum(found.parts.values()) - found.score) < 1e-4
    close(found.blocks.sum(), found.map.sum() + found.cls)


def test_against_takes_the_mean_of_the_others_off(explain) -> None:
    found = explain(SCENE, "penguin", against="pizza,wood")
    word, *others = cosine(explain.backbone, SCENE, "penguin,pizza,wood")
    close(torch.tensor(found.score), word - sum(others) / 2)
    assert abs(sum(found.parts.values()) - found.score) < 1e-4


def test_parts_add_up_in_float64(exact) -> None:
    found = exact(np.random.randint(0, 255, (40, 50, 3), dtype=np.uint8), "cat")
    assert abs(sum(found.parts.values()) - found.score) < 1e-7  # words are float32


def test_the_better_synonym_is_explained(explain) -> None:
    assert (
        explain(SCENE, "aeroplane | wood").label
        == ("wood", "aeroplane")[int(cosine(explain.backbone, SCENE, "aeroplane,wood").argmax() == 0)]
    )


def test_heads_of_all_blocks_add_up_to_the_patches(explain) -> None:
    whole, heads = explain(SCENE, "penguin"), explain.heads(SCENE, "penguin", blocks=-explain.depth)
    close(heads.maps.sum((0, 1)), whole.map)
    close(heads.scores.sum(1), whole.blocks)
    few = explain.heads(SCENE, "penguin", blocks=(6, 2))
    assert few.blocks == (2, 6)
    close(few.maps, heads.maps[[1, 5]])
    (block, head), score = heads.top(1)[0]
    assert abs(score) == np.abs(heads.scores).max() == abs(heads.scores[block - 1, head - 1])


def test_a_thing_is_where_its_patches_are(explain) -> None:
    """In the scene the penguin stands at the lower left, and the bicycle is above it; 12 x 12 patches."""
    found = explain(SCENE, "penguin", against="pizza,bicycle,mushroom").map
    penguin, bicycle = found[8:11, 1:5].mean(), found[4:6, 0:3].mean()
    assert penguin > 0.001 > found.mean() > -0.001 > bicycle


@pytest.fixture(scope="module")
def mushroom(explain):
    return explain.pairs(SCENE, "a red mushroom")


def test_pairs_in_a_box_and_of_a_span_are_sums(explain, mushroom) -> None:
    found = mushroom
    assert found.tokens == ("a", "red", "mushroom")
    assert abs(found.gap) < 1e-4
    parts = found.map.sum() + found.end.sum() + found.cls.sum()
    this, other, both = found.references.values()
    assert abs(parts - (found.score - this - other + both)) < 1e-4
    close(found.span("red mushroom"), found.map[1] + found.map[2])
    close(found.region((0, 0, 192, 192)), found.scores)
    close(found.region((16, 32, 48, 40)), found.map[:, 2, 1] / 2 + found.map[:, 2, 2] / 2)
    close(torch.tensor(found.score), F.cosine_similarity(
        embed_images(explain.backbone, [read_image(SCENE)]), explain.backbone.encode_text(["a red mushroom"])
    )[0])  # fmt: skip


def test_muted_heads_give_their_mean(exact) -> None:
    """Against hooks on the input of the output projection, which is what heads give."""
    heads = [(7, 2), (3, 1)]
    images = [np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    muted = exact.mute(heads, images)
    blocks, want, seen = exact.backbone.model.visual.transformer.resblocks, {}, []
    pixels = exact.backbone.normalize(images[0])[None].double()

    def given(block, x):
        """(B, N, A, d) of a block, by its own weights."""
        own = blocks[block]
        q, k, v = (own.ln_1(x) @ own.attn.in_proj_weight.T + own.attn.in_proj_bias).unflatten(-1, (3, 2, 16)).unbind(2)
        looks = torch.einsum("bnad,bmad->banm", q, k).div(4).softmax(-1)
        return torch.einsum("banm,bmad->bnad", looks, v)

    def run(x, replaced):
        for index, own in enumerate(blocks):
            y = given(index, x)
            seen.append(y)
            for block, head in replaced:
                if block - 1 == index:
                    y[:, 0, head - 1], y[:, 1:, head - 1] = want[block, head]
            x = x + own.attn.out_proj(y.flatten(2))
            x = x + own.mlp(own.ln_2(x))
        return exact.backbone.tower.pool(x)

    many = torch.stack([exact.backbone.normalize(image) for image in images]).double()
    run(exact.backbone.tower.embed(many, "size"), [])
    for block, head in heads:
        own = seen[block - 1][:, :, head - 1]
        want[block, head] = own[:, 0].mean(0), own[:, 1:].mean((0, 1))
    close(muted.encode_image(pixels)[0], run(exact.backbone.tower.embed(pixels, "size"), heads)[0])
    assert (muted.encode_image(pixels) - exact.backbone.encode_image(pixels)).abs().max() > 1e-3
    vanilla = muted.encode_dense(pixels, "vanilla")
    close(vanilla.cls, muted.encode_image(pixels))


def test_a_muted_model_is_another_model(explain) -> None:
    muted = explain.mute([(6, 1)], SCENES)
    assert fingerprint(muted) != fingerprint(explain.backbone) != fingerprint(explain.mute([(6, 2)], SCENES))
    plain, other = (Segmenter(model)(SCENE, "penguin,wood").confidence for model in (explain.backbone, muted))
    assert not np.array_equal(plain, other)
    with pytest.raises(ModelError, match="are muted; take the model as it was before"):
        Explainer(muted)
    with pytest.raises(PrecisionError, match="are muted; take the model as it was to run in int8"):
        muted.at_precision("int8")
    assert muted.at_precision("auto").precision == "float32"
    for heads in ([], 3, [(6,)], [(6, 3)], [(0, 1)]):
        with pytest.raises(OptionError):
            explain.mute(heads, SCENES)
    with pytest.raises(ImageError):
        explain.mute([(6, 1)], [])


def test_words_of_a_head_explain_a_share_of_it(explain) -> None:
    found = explain.head_texts(SCENES, "penguin,pizza,wood,snow,water", block=6, head=1, m=3)
    assert 1 <= len(found) <= 3  # three images span no more directions
    assert sum(share for _, share in found) <= 1 + 1e-9
    assert {text for text, _ in found} <= {"penguin", "pizza", "wood", "snow", "water"}


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda e: e(SCENE, "cat,dog"), LabelError, "2 labels to explain"),
        (lambda e: e("absent.png", "cat"), ImageError, "absent"),
        (lambda e: e.heads(SCENE, "cat", blocks=0), OptionError, "from 1 to 6"),
        (lambda e: e.heads(SCENE, "cat", blocks=-7), OptionError, "from 1 to 6, or -1 to -6 for the last"),
        (lambda e: e.heads(SCENE, "cat", blocks="last"), OptionError, "from 1 to 6"),
        (lambda e: e.head_texts(SCENE, block=6, head=1), ImageError, "at least two"),
        (lambda e: e.head_texts(SCENES, block=6, head=3), OptionError, "heads 1 to 2"),
        (lambda e: e.head_texts(SCENES, block=6, head=1, m=0), OptionError, "at least 1"),
        (lambda e: e.pairs(SCENE, "word " * 40), LabelError, "longer than the 32 tokens"),
        (lambda e: e.pairs(SCENE, ["cat"]), LabelError, "give one string"),
        (lambda e: e(SCENE, "cat").save("map.jpg"), OutputError, "end the name in .png"),
        (lambda e: e(SCENE, "cat").save(None), OutputError, "save to a NoneType"),
        *[
            (lambda e, wrong=wrong: e.heads(SCENE, "cat").top(wrong), OptionError, "count is .*at least 1")
            for wrong in ("a", 2.5, -1, 0, True)
        ],
    ],
)
def test_what_cannot_be_explained_is_refused(explain, call, error, said) -> None:
    with pytest.raises(error, match=said):
        call(explain)


def test_spans_and_boxes_that_are_not_there_are_refused(mushroom) -> None:
    with pytest.raises(LabelError, match="not part of the caption; its words are a red mushroom"):
        mushroom.span("dog")
    for words in (None, 5):
        with pytest.raises(LabelError, match="give part of the caption as one string"):
            mushroom.span(words)
    for box in ((0, 0, 500, 5), (5, 5, 5, 9), (1, 2), None, (float("nan"), 0, 1, 1)):
        with pytest.raises(OptionError, match="192x192"):
            mushroom.region(box)


def test_models_without_a_split_are_refused() -> None:
    with pytest.raises(ModelError, match="scores of model 'photo' cannot be split: it is no CLIP"):
        require_split(None, "photo")
    lowered = load_backbone("mini").at_precision("int8")
    assert Explainer(lowered).backbone.precision == "float32"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["explain", str(SCENE), "--label", "penguin"], "penguin_patches"),
        (["explain", "--label", "penguin", str(SCENE)], "penguin_patches"),
        (["explain", "heads", str(SCENE), "--label", "penguin", "--blocks", "-2"], "penguin_heads"),
        (["explain", "pairs", str(SCENE), "a penguin", "--box", "0,100,96,192"], "a_penguin_pairs"),
    ],
)
def test_commands_write_a_picture_and_its_numbers(tmp_path, command, name) -> None:
    done = CliRunner().invoke(app, [*command, "--model", "mini", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / f"wood_{name}.json").read_text())
    assert told["meta"]["image"] == str(SCENE)
    assert read_image(tmp_path / f"wood_{name}.png").shape[1] == (640 if "heads" in name else 1200)
    again = CliRunner().invoke(app, [*command, "--model", "mini", "--out", str(tmp_path), "--json"])
    assert "map" not in again.stdout
    assert abs(json.loads(again.stdout)["score"] - told["score"]) < 1e-9
    if "pairs" in name:
        for facts in (told, json.loads(again.stdout)):
            assert facts["region"]["box"] == [0, 100, 96, 192]
            assert [row["word"] for row in facts["region"]["words"]] == ["a", "penguin"]
        (_, own), height = (np.array(row["map"]) for row in told["words"]), 192
        rows = np.clip((np.arange(12) + 1) * height / 12 - 100, 0, 16) / 16
        close(told["region"]["words"][1]["score"], float((own[:, :6] * rows[:, None]).sum()))


def test_another_explanation_is_not_replaced(tmp_path) -> None:
    def run(photo, *more):
        asked = ["explain", str(photo), "--model", "mini", "--out", str(tmp_path / "out"), "-q", *more]
        return CliRunner().invoke(app, asked)

    other = tmp_path / SCENE.name
    other.write_bytes((SCENES / "snow.png").read_bytes())
    assert run(SCENE, "--label", "penguin").exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for again in (run(other, "--label", "penguin"), run(SCENE, "--label", "penguin", "--against", "pizza")):
        assert again.exit_code == 4
        assert "holds another explanation" in again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert run(SCENE, "--label", "pizza").exit_code == run(other, "--label", "penguin", "--overwrite").exit_code == 0
    assert (tmp_path / "out/wood_pizza_patches.png").exists()
    assert (tmp_path / "out/wood_penguin_patches.json").read_bytes() != before["wood_penguin_patches.json"]
    folder = run(SCENES, "--label", "penguin")
    assert (folder.exit_code, "is a folder; explain one image" in folder.stderr) == (2, True)


def test_a_sheet_names_the_blocks_that_are_summed(explain) -> None:
    for blocks, said in (((6, 6, 3), "blocks 3, 6"), ((3, 4, 5), "blocks 3 to 5"), (-1, "block 6")):
        assert explain.heads(SCENE, "penguin", blocks=blocks).summed == said


def test_articles_and_conjunctions_are_no_unknown_words(explain) -> None:
    assert not explain.pairs(SCENE, "the penguin, on wood, and a pizza").warnings
    assert any("'zyzzyva'" in said for said in explain.pairs(SCENE, "a zyzzyva").warnings)


def test_a_command_for_words_prints_them() -> None:
    arguments = ["explain", "words", str(SCENES), "--words", "penguin,pizza,snow", "--model", "mini", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert all(row["block"] == 6 and 0 <= row["share"] <= 1 for row in rows)
