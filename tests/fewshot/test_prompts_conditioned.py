"""Head "prompt" with contexts that depend on the image: its rows, its gradient, its choice, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from test_fewshot_pipeline import BOXES, EXAMPLES, NAMES, PLAIN, TEST, picture
from test_learned_prompts import LABELS, STRINGS, TEMPLATES, draw
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl import FewShot
from densevl.errors import ModelError, OptionError, WeightsError
from densevl.fewshot import build, restore
from densevl.fewshot.prompts import contexts as contexts_module
from densevl.fewshot.prompts.conditioned import Conditioned, Net, gather
from densevl.fewshot.prompts.contexts import Contexts, Spoken, joined, unit_prompts
from densevl.fewshot.prompts.fitting import blocks
from densevl.fewshot.prompts.training import Task
from densevl.fewshot.words import class_rows
from densevl.vocabulary import Background
from densevl.vocabulary.text_classifier import TextClassifier


@pytest.fixture(scope="module")
def words(tiny) -> torch.Tensor:
    """Rows of the three classes and of the background word."""
    text = TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LABELS, Background(words=("sky",)))
    return class_rows(text, 3)


def made(tiny, **settings):
    own = {"steps": 4, "contexts": 2, "folds": 1, "rate": 0.3, "conditioned": True, **settings}
    return build("prompt", tower=tiny, templates=TEMPLATES, **own)


def fit(head, words, shots: int = 2):
    return head.fit(*draw(shots), words, scale=20.0, strings=STRINGS)


def logits_by_loops(tower, head, feature) -> torch.Tensor:
    """Logits of one feature from the formula, a text at a time."""
    unit, net, contexts = feature / feature.norm(), head.conditioned.net, head.conditioned.contexts
    hidden = (net.down @ (unit * len(unit) ** 0.5) + net.inner).clamp(min=0)
    shift = net.up @ hidden + net.outer
    found = []
    for own in STRINGS:
        row = 0
        for string in own:
            texts = [
                tower.encode_learned((context + shift)[None], string, before)[0]
                for context, before in zip(contexts.words, contexts.fronts, strict=True)
            ]
            row = row + F.normalize(sum(text / text.norm() for text in texts), dim=0)
        found.append(20 * unit @ F.normalize(row, dim=0))
    return torch.stack(found)


def test_every_feature_is_compared_with_the_rows_of_the_formula(tiny, words) -> None:
    head = fit(made(tiny), words)
    query = draw(seed=3)[0][:4].reshape(2, 2, -1)
    want = torch.stack([logits_by_loops(tiny, head, one) for one in query.flatten(0, 1)]).reshape(2, 2, 4)
    close(head.logits(query), want)
    rows = [head.conditioned.rows(tiny, F.normalize(one, dim=0), Spoken.of(STRINGS)) for one in query[0]]
    assert not torch.allclose(rows[0], rows[1], atol=1e-4), "the net has learned to look at the image"
    assert head.logits(query[:0]).shape == (0, 2, 4)


def test_a_net_of_zeros_leaves_the_contexts_as_they_are(tiny, words) -> None:
    head = fit(made(tiny), words)
    start = Contexts.of_templates(tiny, TEMPLATES, 2, 4, 0)
    head.conditioned = Conditioned(start, Net.drawn(24, tiny.word_width, 0))
    with torch.no_grad():
        rows = joined(unit_prompts(tiny, start, Spoken.of(STRINGS).strings), Spoken.of(STRINGS).member)
    query = draw(seed=3)[0][:3]
    close(head.logits(query), 20 * F.normalize(query, dim=1) @ rows.mT)


def test_without_it_nothing_of_the_head_is_another(tiny, words) -> None:
    plain = build("prompt", tower=tiny, templates=TEMPLATES, steps=3, contexts=2, folds=1)
    off = made(tiny, conditioned=False, steps=3, rate=0.1, batch=1)
    assert torch.equal(fit(plain, words).text, fit(off, words).text)
    assert not any(name.startswith("net ") for name in off.state()[0])


@pytest.mark.parametrize("parts", [512, 3])
def test_the_gradient_is_that_of_finite_differences(tiny, words, monkeypatch, parts) -> None:
    monkeypatch.setattr(contexts_module, "AT_ONCE", parts)
    tower = wrap(copy.deepcopy(random_clip()).double(), "double")
    features, labels = draw(2)
    spoken, weights = Spoken.of(STRINGS[:3]), torch.rand(len(labels), dtype=torch.float64)
    unit = F.normalize(features.double(), dim=1)
    task = Task(unit, labels, weights / weights.sum(), spoken, words[:3].double(), 20.0, 0.7)
    torch.manual_seed(1)
    start = [torch.randn(n, 16, dtype=torch.float64) for n in (2, 3)]
    net = [0.3 * torch.randn(shape, dtype=torch.float64) for shape in ((4, 24), (4,), (16, 4), (16,))]
    step = [1e-6 * torch.randn_like(one) for one in [*start, *net]]
    chosen = torch.tensor([4, 1, 3])

    def loss(sign: int) -> float:
        """The mean over the batch of N w_i (CE + tie), with rows of each image."""
        one, two, down, inner, up, outer = (own + sign * by for own, by in zip([*start, *net], step, strict=True))
        total = 0.0
        for index in chosen.tolist():
            shift = up @ (down @ (24**0.5 * unit[index]) + inner).clamp(min=0) + outer
            with torch.no_grad():
                rows = joined(
                    unit_prompts(tower, Contexts([one + shift, two + shift], [2, 1]), spoken.strings), spoken.member
                )
            entropy = -(20 * rows @ unit[index]).log_softmax(0)[labels[index]]
            total += 6 * task.weights[index] * (entropy + 0.7 * ((rows - task.text) ** 2).sum() / 3) / 3
        return float(total)

    own = Conditioned(Contexts(start, [2, 1]), Net(*net)).leaves(torch.device("cpu"))
    value = gather(tower, own, task, chosen)
    leaves = [*own.contexts.words, *own.net.tensors().values()]
    slope = sum(float((leaf.grad * by).sum()) for leaf, by in zip(leaves, step, strict=True))
    assert value == pytest.approx(loss(0))
    assert slope == pytest.approx((loss(1) - loss(-1)) / 2, rel=1e-4)


def test_examples_are_learned(tiny, words) -> None:
    features, labels = draw(2)
    before = float(F.cross_entropy(20 * F.normalize(features, dim=1) @ words[:3].mT, labels))
    head = fit(made(tiny, steps=12, tie=0.0), words)
    assert float(F.cross_entropy(head.logits(features)[:, :3], labels)) < 0.8 * before
    assert head.found["steps"] == 12


def test_folds_keep_the_words_to_the_bit_where_they_are_better(tiny, words) -> None:
    labels = torch.arange(3).repeat_interleave(2)
    near = words[labels] + 0.01 * draw(2)[0]
    told: list[tuple[int, int]] = []
    head = made(tiny, folds=2, rate=1e3, progress=lambda done, of: told.append((done, of)))
    head.fit(near, labels, words, scale=20.0, strings=STRINGS)
    assert head.found["steps"] == 0
    assert head.conditioned is None
    assert torch.equal(head.logits(near), 20 * F.normalize(near, dim=1) @ words.mT)
    assert told == [(done + 1, 12) for done in range(8)]


def test_the_gain_is_that_of_left_out_examples(tiny, words) -> None:
    features, labels = draw(2)
    head = made(tiny, folds=2, steps=2)
    head.fit(features, labels, words, scale=20.0, strings=STRINGS)
    total, unit = 0.0, F.normalize(features, dim=1)
    for kept in blocks(labels, 2):
        alone = made(tiny, steps=2).fit(features[~kept], labels[~kept], words, scale=20.0, strings=STRINGS)
        for sign, logits in ((1, alone.logits(features[kept])[:, :3]), (-1, 20 * unit[kept] @ words[:3].mT)):
            logp = logits.double().log_softmax(1)
            own = logp.gather(1, labels[kept, None])[:, 0]
            total += sign * float((6 * own / 7 + logp.mean(1) / 7).sum()) / 2
    assert head.found["gain"] == pytest.approx(total / 3, abs=1e-4)


@pytest.mark.parametrize("level", ["image", "region"])
def test_images_and_regions_take_it_and_a_saved_head_answers_alike(tiny, tmp_path, level) -> None:
    few = {"steps": 2, "folds": 1, "contexts": 1, "rate": 0.3, "conditioned": True}
    operator = {"operator": "cls_mask"} if level == "region" else {}
    made = FewShot(tiny, "prompt", level=level, options=few, **PLAIN, **operator).fit(EXAMPLES[level], labels=NAMES)
    again = FewShot.load(
        made.save(tmp_path / "head")[0], tiny, use_cache=False, **{"proposals": None} if operator else {}
    )

    def answer(one: FewShot) -> torch.Tensor:
        if level == "image":
            return torch.from_numpy(one(picture("blue", seed=9)).probabilities)
        return torch.from_numpy(one(TEST, boxes=BOXES).scores)

    assert torch.equal(answer(made), answer(again))
    for refused in (made.templates, lambda: made.words(["sky"]), lambda: again.templates()):
        with pytest.raises(ModelError, match="depend on the image"):
            refused()
    with pytest.raises(ModelError, match="call fit with all examples"):
        made.partial_fit(EXAMPLES[level])
    with pytest.raises(WeightsError, match="depend on each image"):
        FewShot(tiny, templates=str(tmp_path / "head.safetensors"), **PLAIN)


def test_what_it_is_not_for_is_refused(tiny, words) -> None:
    with pytest.raises(OptionError, match="thousands of places"):
        FewShot(tiny, "prompt", level="pixel", options={"conditioned": True}, **PLAIN)
    with pytest.raises(OptionError, match="true or false"):
        made(tiny, conditioned=1)
    with pytest.raises(OptionError, match="batch is a whole number"):
        made(tiny, batch=0)
    head = made(tiny)
    head._settings["rate"] = 1e38  # beyond what may be given, so that numbers overflow
    with pytest.raises(ModelError, match="smaller rate"):
        fit(head, words)
    head = restore(*fit(made(tiny, steps=1), words).state())
    with pytest.raises(ModelError, match="restored without its model"):
        head.logits(draw()[0])
    head.attach(tiny, TEMPLATES)
    assert head.logits(draw()[0]).shape == (12, 4)
