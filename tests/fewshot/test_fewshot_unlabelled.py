"""`FewShot.fit_unlabelled` and captions: from images without labels to a head, at every level."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_fewshot_pipeline import BOXES, EXAMPLES, NAMES, answer, picture, quick

from conftest import close
from densevl.errors import LabelError, ModelError, OptionError
from densevl.fewshot import HEADS
from densevl.fewshot.pseudo import pseudo_labels
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.examples import text_rows
from densevl.pipelines.settings import LEVELS
from densevl.vocabulary import LabelSet

PHOTOS = [image for name in NAMES for image in EXAMPLES["image"][name]]


def halves(image: np.ndarray) -> np.ndarray:
    """A proposer: the left half and the right."""
    masks = np.zeros((2, *image.shape[:2]), bool)
    for mask, box in zip(masks, BOXES, strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    return masks


def made_with(tiny, head: str, level: str) -> FewShot:
    own = {"proposals": halves} if level == "region" else {}
    return FewShot(tiny, head, level=level, **{**quick(head, level), **own})


@pytest.mark.parametrize("level", LEVELS)
def test_the_examples_are_those_that_words_are_surest_of(tiny, level) -> None:
    made = made_with(tiny, "gda", level).fit_unlabelled(PHOTOS, NAMES, count=2)
    rows = torch.cat([next(iter(one.values())) for one in made.features.unnamed(PHOTOS)])
    text = text_rows(made.segmenter, level, LabelSet.parse(NAMES), shown=False)
    scale = next(iter(made.features.scales.values()))
    labels = pseudo_labels("top", rows, text, scale=scale, count=2).labels
    assert dict(made.counts) == {NAMES[i]: int((labels == i).sum()) for i in range(3) if (labels == i).any()}
    head = made._build().fit(rows[labels >= 0], labels[labels >= 0], text, scale=scale)
    close(next(iter(made.heads.values())).logits(rows), head.logits(rows))


@pytest.mark.parametrize("head", HEADS)
def test_any_head_learns_from_them_and_says_so(tiny, head, tmp_path) -> None:
    made = made_with(tiny, head, "image").fit_unlabelled(PHOTOS, NAMES, how="retrieve", count=3)
    assert sum(made.counts.values()) > 3
    result = made(picture("blue", seed=9))
    assert result.meta["fewshot"]["unlabelled"] == "retrieve"
    made.save(tmp_path / "guessed")
    again = FewShot.load(tmp_path / "guessed", tiny, use_cache=False)
    assert again.guessed == "retrieve"
    close(answer(again), answer(made))
    assert again.fit(EXAMPLES["image"]).guessed is None


@pytest.fixture
def files(tmp_path):
    """Two images of each class, and a caption of each, by their names."""
    found = {}
    for name in NAMES:
        for number, image in enumerate(EXAMPLES["image"][name][:2]):
            found.setdefault(name, []).append(tmp_path / f"{name}{number}.png")
            Image.fromarray(image).save(found[name][-1])
    captions = {path.name: f"a {name} square" for name, paths in found.items() for path in paths}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return found, captions, tmp_path


def test_captions_are_found_by_path_or_name_and_reach_the_keys(tiny, files) -> None:
    examples, captions, folder = files
    settings = {**quick("tipx", "image"), "options": {"delta": 0.5, "alpha": 2.0, "beta": 4.0, "gamma": 0.0}}
    plain = FewShot(tiny, "tipx", **settings).fit(examples)
    by_file = FewShot(tiny, "tipx", **settings).fit(examples, captions=folder / "captions.json")
    by_path = {str(folder / name): caption for name, caption in captions.items()}
    close(answer(FewShot(tiny, "tipx", **settings).fit(examples, captions=by_path)), answer(by_file))
    assert np.abs(answer(plain) - answer(by_file)).max() > 1e-4
    head = by_file.heads["image"]
    rows = torch.nn.functional.normalize(tiny.encode_text([f"a {name} square" for name in NAMES]), dim=1)
    close(head.captions, rows[head.labels])


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda made, files: made.fit(files[0], captions={"red0.png": "a red one"}), LabelError, "no caption of"),
        (lambda made, files: made.fit(files[0], captions={"red0.png": 3}), LabelError, "it must be a sentence"),
        (lambda made, files: made.fit(files[0], captions={}), LabelError, "no captions"),
        (lambda made, files: made.fit(EXAMPLES["image"], captions={"a": "b"}), LabelError, "captions are for files"),
        (lambda made, files: made.fit_unlabelled([], NAMES), LabelError, "no images without labels"),
        (lambda made, files: made.fit_unlabelled(PHOTOS, NAMES, how="guess"), OptionError, "how"),
        (
            lambda made, files: made.fit_unlabelled(PHOTOS, NAMES, count=0),
            OptionError,
            "count is a whole number",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny, files, act, error, match) -> None:
    with pytest.raises(error, match=match):
        act(FewShot(tiny, "tipx", **quick("tipx", "image")), files)


def test_captions_for_another_head_are_refused(tiny, files) -> None:
    with pytest.raises(OptionError, match="captions are for head 'tipx'"):
        FewShot(tiny, "gda", **quick("gda", "image")).fit(files[0], captions=files[1])


def test_a_model_without_words_cannot_name_them(tiny) -> None:
    made = FewShot("photo", "exemplars")
    with pytest.raises(ModelError, match="cannot name images by words"):
        made.fit_unlabelled(PHOTOS, NAMES)
