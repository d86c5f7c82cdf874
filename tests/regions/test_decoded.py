"""Masks with a decoder's own scores: from transformers' own classes and from files, weighed with CLIP's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import close, random_clip, wrap
from densevl.errors import DensevlError, OptionError
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals import ProposalError, Proposals
from densevl.proposals.decoded import Decoded, DecodedFiles, hf_decoder
from densevl.regions import ensemble
from densevl.vocabulary import NOTHING, LabelSet

SIZE = (40, 60)
PHOTO = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def masks(count: int = 3) -> np.ndarray:
    found = np.zeros((count, *SIZE), bool)
    for index in range(count):
        found[index, 5 * index : 20 + 5 * index, 8 * index : 30 + 8 * index] = True
    return found


def decoded(**more) -> Decoded:
    logits = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    return Decoded(masks(), logits, ["cat", "road, route", "tree-merged"], **more)


def by_hand(
    clip: np.ndarray, own: np.ndarray, void: int, columns: dict[int, list[int]], say: list[float]
) -> np.ndarray:
    """FC-CLIP's equation for one region, with plain exponents: (C + 1,), the last is "no object"."""
    e = np.exp(own.astype(np.float64))
    empty = e[void] / e.sum()
    p_in = np.delete(e, void) / np.delete(e, void).sum()
    p = np.array(
        [clip[c] ** w * (sum(p_in[k] for k in columns[c]) ** (1 - w) if c in columns else 1) for c, w in enumerate(say)]
    )
    return np.append(p / p.sum() * (1 - empty), empty)


@pytest.mark.parametrize("paper", ["fc-clip", "odise", "0.25,1"])
@pytest.mark.parametrize("void", [-1, 0])
def test_it_is_the_papers_ensemble(paper, void) -> None:
    labels = LabelSet.parse(["Route | lane", "cat", "lamp", "tree"])
    logits = np.random.default_rng(2).normal(size=(3, 4))
    given = Decoded(masks(), logits, ["cat", "road, route", "tree-merged"], void=void, trained=["cat", "tree"])
    logp = torch.randn(3, 5, generator=torch.manual_seed(3)).log_softmax(dim=1)
    classes = torch.tensor([0, 0, 1, 2, 3])
    found, columns = ensemble.with_decoder(logp, classes, given, labels, ensemble.shares(paper))
    assert columns.tolist() == [0, 1, 2, 3, NOTHING, NOTHING]
    seen, unseen = {"fc-clip": (0.4, 0.8), "odise": (0.3, 0.7)}.get(paper, (0.25, 1.0))
    p = logp.double().exp().numpy()
    for row in range(3):
        clip = np.array([max(p[row, :2]), *p[row, 2:]])
        wanted = by_hand(clip, logits[row], void, {0: [1], 1: [0], 3: [2]}, [unseen, seen, 1.0, seen])
        close(found[row].exp()[[0, 1, 2, 3, 5]], torch.from_numpy(wanted))
    assert found[:, 4].isneginf().all()


def test_a_region_that_clip_does_not_see_is_the_decoder_s_alone() -> None:
    labels = LabelSet.parse(["cat", "road", "tree", "lamp"])
    logp = torch.randn(3, 4, generator=torch.manual_seed(3)).log_softmax(dim=1)
    seen = torch.tensor([True, False, True])
    found, _ = ensemble.with_decoder(logp, torch.arange(4), decoded(), labels, (0.4, 0.8), seen)
    own, void = decoded().log_probs()
    close(found[1, :3].exp(), torch.from_numpy(np.exp(own[1]) * (1 - void[1])))
    assert found[1, 3].isneginf()


@pytest.mark.parametrize(
    ("name", "label", "meets"),
    [
        ("tree-merged", "Tree", True),
        ("wall-other-merged", "wall", True),
        ("wall-brick", "brick wall", True),
        ("dining_table", "dining table", True),
        ("road, route", "route", True),
        ("car", "animal", False),
        ("cat", "animal", False),
        ("Dog", "animal", True),
    ],
)
def test_names_meet_through_synonyms(name, label, meets) -> None:
    labels = LabelSet.parse([label, "sky"] if label != "animal" else {"animal": ["dog", "hound"], "sky": ["sky"]})
    assert ensemble.matches([name], labels)[0, 0].item() is meets


def test_a_classifier_weighs_them_and_says_so() -> None:
    backbone = wrap(random_clip())
    classify = RegionClassifier(backbone, "cls_mask", proposals=lambda rgb: decoded(), templates="photo")
    plain = RegionClassifier(
        backbone, "cls_mask", proposals=lambda rgb: Proposals.from_masks(masks()), templates="photo"
    )
    labels = ["cat", "road", "lamp"]
    found, clip = classify(PHOTO, labels), plain(PHOTO, labels)
    for row in range(3):
        wanted = by_hand(clip.scores[row], decoded().logits[row], 3, {0: [0], 1: [1]}, [0.4, 0.4, 1.0])
        close(torch.from_numpy(found.scores[row]), torch.from_numpy(wanted[:-1]).float())
        close(torch.tensor(found.nothing[row]), torch.tensor(wanted[-1]).float())
    assert found.meta["decoder"] == {"classes": ["cat", "road"], "clip_share": [0.4, 0.8]}
    given = classify(PHOTO, labels, regions=decoded())
    np.testing.assert_array_equal(given.scores, found.scores)
    alone = RegionClassifier(backbone, "cls_mask", proposals=None, templates="photo", clip_share=(1.0, 1.0))
    kept = alone(PHOTO, labels, regions=decoded().select([2, 0]))
    near = clip.scores[[2, 0]] * (1 - kept.nothing[:, None])
    np.testing.assert_allclose(kept.scores, near, atol=1e-5)
    renamed = found.reclassify(["tree", "sea"])
    assert renamed.meta["decoder"]["classes"] == ["tree"]
    unmet = found.reclassify(["sun", "sea"])
    assert any("none of the labels is a class of the decoder" in warning for warning in unmet.warnings)


def swin():
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def mask2former():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label={0: "cat", 1: "road, route", 2: "tree-merged"},
    )
    return Mask2FormerForUniversalSegmentation(config)


def oneformer():
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    config = OneFormerConfig(
        backbone_config=swin(),
        num_queries=5,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        query_dec_layers=1,
        task_seq_len=7,
        text_encoder_width=16,
        is_training=False,
        id2label={0: "cat", 1: "road, route", 2: "tree-merged"},
    )
    return OneFormerForUniversalSegmentation(config)


def eomt():
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_queries=5,
        num_blocks=1,
        num_register_tokens=1,
        num_upscale_blocks=1,
        id2label={0: "cat", 1: "road, route", 2: "tree-merged"},
    )
    return EomtForUniversalSegmentation(config)


@pytest.fixture(scope="module", params=[mask2former, oneformer, eomt], ids=lambda make: make.__name__)
def model(request):
    pytest.importorskip("transformers")
    torch.manual_seed(6)
    return request.param().eval()


def run(model, **inputs):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(7))
    tasks = {"task_inputs": torch.zeros(2, 7, dtype=torch.long)} if "OneFormer" in type(model).__name__ else {}
    with torch.inference_mode():
        return model(pixels, **tasks)


def test_outputs_of_transformers_own_classes_are_read(model) -> None:
    outputs = run(model)
    for index in (0, 1):
        found = Decoded.from_hf(outputs, model.config.id2label, SIZE, index=index)
        logits = torch.nn.functional.interpolate(outputs.masks_queries_logits, SIZE, mode="bilinear")[index]
        inside = (logits > 0).numpy()
        filled = inside.any(axis=(1, 2))
        sure = np.array([float(row.sigmoid()[row > 0].mean()) for row in logits[filled]])
        assert (found.masks() != inside[filled]).mean() < 1e-4  # a logit of 0 within rounding
        np.testing.assert_allclose(found.quality, sure, atol=1e-4)
        p = outputs.class_queries_logits.double().softmax(-1)[index][filled]
        own, void = found.log_probs()
        np.testing.assert_allclose(void, p[:, -1], atol=1e-6)
        np.testing.assert_allclose(np.exp(own) * (1 - void[:, None]), p[:, :-1], atol=1e-6)
        assert found.names == ("cat", "road, route", "tree-merged")


def test_a_padded_input_is_cut_to_the_photo(model) -> None:
    outputs = run(model)
    found = Decoded.from_hf(outputs, model.config.id2label, (32, 64), share=(0.5, 1.0))
    whole = Decoded.from_hf(outputs, model.config.id2label, (64, 64))
    cut = whole.masks()[:, :32]
    np.testing.assert_array_equal(found.masks(), cut[cut.any(axis=(1, 2))])


def test_a_model_of_transformers_proposes() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(6)
    processor = transformers.Mask2FormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}, size_divisor=32)
    found = hf_decoder(mask2former().eval(), processor)(PHOTO)
    assert found.size == SIZE
    assert len(found) <= 5
    processor.do_split_image = True
    with pytest.raises(ProposalError, match="splits photos"):
        hf_decoder(mask2former(), processor)


def test_files_come_back_and_go_by_the_photo_s_name(tmp_path) -> None:
    given = decoded(trained=["cat"])
    given.save(tmp_path / "street.npz")
    np.savez(tmp_path / "plain.npz", masks=masks(), logits=given.logits, names=np.array(given.names), void=-1)
    for found in (DecodedFiles(tmp_path).of("photos/street.jpg"), Decoded.load(tmp_path / "plain.npz")):
        np.testing.assert_array_equal(found.masks(), masks())
        np.testing.assert_array_equal(found.logits, given.logits)
        assert (found.names, found.void) == (given.names, 3)
    assert DecodedFiles(tmp_path / "street.npz").of("any.png").trained == ("cat",)
    with pytest.raises(ProposalError, match="no decoder file for 'photos/stret"):
        DecodedFiles(tmp_path).of("photos/stret.jpg")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Decoded(masks(), np.zeros((3, 3)), ["a", "b", "c"]), "void=None"),
        (lambda: Decoded(masks(), np.zeros((3, 4)), ["a", "b", "c"], void=None), "as void="),
        (lambda: Decoded(masks(), np.zeros((2, 4)), ["a", "b", "c"]), "3 masks of 3 names"),
        (lambda: Decoded(masks(), np.full((3, 4), 0.25), ["a", "b", "c"]), "look like probabilities"),
        (lambda: Decoded(masks(), np.full((3, 4), np.nan), ["a", "b", "c"]), "NaN"),
        (lambda: Decoded(masks(), np.zeros((3, 4)), ["a", "b", "c"], void=4), "void is 4"),
        (lambda: Decoded(masks(), np.zeros((3, 4)), {1: "a", 2: "b", 3: "c"}), "with gaps"),
        (lambda: Decoded(masks(), np.zeros((3, 4)), "a,b,c"), "not a list of strings"),
        (lambda: Decoded.from_hf(object(), {0: "a"}, SIZE), "without class and mask logits"),
        (lambda: DecodedFiles(__file__), "not a decoder file"),
        (lambda: DecodedFiles("none.npz"), "does not exist"),
        (lambda: ensemble.shares("fcclip"), "clip_share 'fcclip' is unknown"),
        (lambda: ensemble.shares((0.5, 2.0)), "within 0..1"),
        (lambda: ensemble.shares("0.4"), "both within 0..1"),
    ],
)
def test_mistakes_are_one_clear_line(make, said) -> None:
    with pytest.raises(DensevlError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (ProposalError, OptionError))
