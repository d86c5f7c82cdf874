"""Head "prompt": its gradient, its rows, its stopping, its checkpoint, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.errors import LabelError, ModelError, OptionError, WeightsError
from densevl.fewshot import build, restore
from densevl.fewshot.prompts import contexts as contexts_module
from densevl.fewshot.prompts import fitting
from densevl.fewshot.prompts.contexts import Contexts, Spoken, descend, joined, unit_prompts
from densevl.fewshot.prompts.fitting import blocks
from densevl.fewshot.prompts.training import Task
from densevl.fewshot.words import class_rows
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.learned_templates import LearnedTemplate
from densevl.vocabulary.text_classifier import TextClassifier

TEMPLATES = ("a photo of a {}.", "one {} in snow", "{}", "an old {}")
STRINGS = [["cat"], ["bus", "coach"], ["slice of pizza"], ["sky"]]
LABELS = LabelSet(("cat", "bus", "pizza"), tuple(map(tuple, STRINGS[:3])))
C = 3


@pytest.fixture(scope="module")
def words(tiny) -> torch.Tensor:
    """Rows of the three classes and of the background word, by `TextClassifier`."""
    text = TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LABELS, Background(words=("sky",)))
    return class_rows(text, C)


def draw(shots: int = 4, seed: int = 0, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(C, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(C).repeat_interleave(shots)
    return centres[labels] + 0.3 * torch.randn(len(labels), width, generator=generator), labels


def made(tiny, **settings):
    return build("prompt", tower=tiny, templates=TEMPLATES, **{"steps": 6, "contexts": 2, **settings})


def fit(head, words, shots: int = 4):
    return head.fit(*draw(shots), words, scale=20.0, strings=STRINGS)


def row_by_loops(tower, head, strings) -> torch.Tensor:
    """A row from the formula, by `encode_learned` a text at a time."""
    total = 0
    for string in strings:
        one = 0
        for template in head.templates:
            row = tower.encode_learned(torch.from_numpy(template.words)[None], string, template.before)[0]
            one = one + row / row.norm()
        one = one / len(head.templates)
        total = total + one / one.norm()
    return total / total.norm()


def test_rows_are_those_of_the_formula_for_classes_background_and_any_words(tiny, words) -> None:
    head = fit(made(tiny, folds=1), words)
    assert all(isinstance(one, LearnedTemplate) for one in head.templates)
    want = torch.stack([row_by_loops(tiny, head, own) for own in STRINGS])
    close(head.text, want)
    assert not torch.allclose(head.text[3], words[3], atol=1e-3), "background words are said in the same contexts"
    close(head.words([["boat"]])[0], row_by_loops(tiny, head, ["boat"]))
    text = TextClassifier(tiny, head.templates, use_cache=False).encode(LABELS, Background(words=("sky",)))
    close(class_rows(text, C), want)
    query = draw(seed=3)[0]
    close(head.logits(query), 20 * F.normalize(query, dim=1) @ want.mT)


def test_contexts_from_templates_start_as_the_templates_read(tiny) -> None:
    some = TEMPLATES[:2]
    start = Contexts.of_templates(tiny, some, 2, 4, 0)
    spoken = Spoken.of(STRINGS)
    with torch.no_grad():
        rows = joined(unit_prompts(tiny, start, spoken.strings), spoken.member)
    text = TextClassifier(tiny, some, use_cache=False).encode(LABELS, Background(words=("sky",)))
    close(rows, class_rows(text, C))
    assert start.fronts == [4, 1]
    assert len(Contexts.of_templates(tiny, ("{}",), 3, 5, 0).words[2]) == 5, "a bare name leaves nothing to learn"


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rate": 1e3}])
def test_without_a_step_that_helps_words_stay_as_they_are_to_the_bit(tiny, words, settings) -> None:
    head = made(tiny, **settings)
    if settings["steps" if "steps" in settings else "rate"]:
        labels = torch.arange(C).repeat_interleave(4)
        head.fit(words[labels] + 0.01 * draw()[0], labels, words, scale=20.0, strings=STRINGS)
    else:
        fit(head, words)
    assert head.found["steps"] == 0
    assert torch.equal(head.text, words)
    assert head.templates == TEMPLATES


@pytest.mark.parametrize("parts", [512, 3])
def test_the_gradient_is_that_of_finite_differences(tiny, words, monkeypatch, parts) -> None:
    monkeypatch.setattr(contexts_module, "AT_ONCE", parts)
    tower = wrap(copy.deepcopy(random_clip()).double(), "double")
    features, labels = draw()
    spoken = Spoken.of(STRINGS[:3])
    weights = torch.rand(len(labels), dtype=torch.float64)
    task = Task(
        F.normalize(features.double(), dim=1), labels, weights / weights.sum(), spoken, words[:3].double(), 20.0, 0.7
    )
    torch.manual_seed(1)
    start = [torch.randn(n, 16, dtype=torch.float64) for n in (2, 3)]
    step = [1e-6 * torch.randn_like(one) for one in start]

    def loss(sign: int) -> float:
        moved = [one + sign * by for one, by in zip(start, step, strict=True)]
        with torch.no_grad():
            rows = joined(unit_prompts(tower, Contexts(moved, [2, 1]), spoken.strings), spoken.member)
            logits = 20 * F.normalize(features.double(), dim=1) @ rows.mT
            entropy = -(task.weights * logits.log_softmax(1)[torch.arange(len(labels)), labels]).sum()
            return float(entropy + 0.7 * ((rows - task.text) ** 2).sum() / 3)

    given = Contexts([one.clone().requires_grad_(True) for one in start], [2, 1])
    _, value = descend(tower, given, spoken, task.loss)
    slope = sum(float((one.grad * by).sum()) for one, by in zip(given.words, step, strict=True))
    assert value == pytest.approx(loss(0))
    assert slope == pytest.approx((loss(1) - loss(-1)) / 2, rel=1e-4)


def test_examples_are_learned_and_a_tie_holds_rows_back(tiny, words) -> None:
    def moved(**settings) -> tuple[float, float]:
        head = fit(made(tiny, folds=1, steps=20, rate=0.3, **settings), words)
        return head.found["loss"], float((head.text - words)[:3].norm())

    loose, tied = moved(tie=0.0), moved(tie=100.0)
    assert loose[0] < 0.8 * float(F.cross_entropy(20 * F.normalize(draw()[0], dim=1) @ words[:3].mT, draw()[1]))
    assert tied[1] < 0.5 * loose[1]


def test_folds_keep_neighbours_together_and_judge_each_once() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 0])
    found = blocks(labels, 2)
    assert [one.tolist() for one in found] == [
        [True, True, True, False, False, True, False, False],
        [False, False, False, True, False, False, True, True],
    ]
    assert blocks(torch.arange(3), 2) == []
    assert blocks(labels, 1) == []


def test_the_best_number_of_steps_is_what_fits_of_each_length_would_choose(tiny, words) -> None:
    features, labels = draw(shots=2, seed=5)
    head = made(tiny, steps=4, rate=0.5).fit(features, labels, words, scale=20.0, strings=STRINGS)
    unit = F.normalize(features, dim=1)
    total = torch.zeros(5, dtype=torch.float64)
    for judged in blocks(labels, 2):
        counts = torch.bincount(labels)[labels[judged]]
        for steps in range(5):
            alone = made(tiny, steps=4, rate=0.5, folds=1)
            alone._settings["steps"] = 4
            rows = words[:3] if not steps else _rows_after(tiny, features[~judged], labels[~judged], words, steps)
            logp = (20.0 * unit[judged] @ rows.mT).double().log_softmax(1)
            own = logp.gather(1, labels[judged, None])[:, 0]
            total[steps] += ((6 * own / 7 + logp.mean(1) / 7) / counts).sum()
    assert head.found["steps"] == int(total.argmax())
    assert head.found["gain"] == pytest.approx(float(total.max() - total[0]) / 3, abs=1e-4)


def _rows_after(tiny, features, labels, words, steps) -> torch.Tensor:
    """Rows of the classes after some steps of four, by a plain loop over torch's own Adam."""
    start = Contexts.of_templates(tiny, TEMPLATES, 2, 4, 0)
    own = Contexts([one.clone().requires_grad_(True) for one in start.words], start.fronts)
    spoken, unit = Spoken.of(STRINGS[:3]), F.normalize(features, dim=1)
    table = torch.cat([tiny.word_vectors(one) for one in spoken.strings])
    solver = torch.optim.Adam(own.words)
    for step in range(steps):
        solver.param_groups[0]["lr"] = 0.5 * float(table.square().mean().sqrt()) * (1 + np.cos(np.pi * step / 4)) / 2
        rows = joined(unit_prompts(tiny, own, spoken.strings), spoken.member)
        loss = F.cross_entropy(20 * unit @ rows.mT, labels) + ((rows - words[:3]) ** 2).sum() / 3
        solver.zero_grad()
        loss.backward()
        solver.step()
    with torch.no_grad():
        return joined(unit_prompts(tiny, own, spoken.strings), spoken.member)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 9, 14, 17])
def test_a_killed_fit_goes_on_to_the_same_bytes(tiny, words, tmp_path, monkeypatch, at) -> None:
    monkeypatch.setattr(fitting, "SECONDS", 0.0)
    path = tmp_path / "fit.safetensors"

    def kill(done: int, of: int) -> None:
        assert of == 18
        if done == at:
            raise Killed

    whole = fit(made(tiny, rate=0.3), words)
    with pytest.raises(Killed):
        fit(made(tiny, rate=0.3, checkpoint=path, progress=kill), words)
    assert path.exists() == (at > 1)
    steps: list[int] = []
    again = fit(made(tiny, rate=0.3, checkpoint=path, progress=lambda done, of: steps.append(done)), words)
    assert steps[0] == at
    assert torch.equal(again.text, whole.text)
    assert again.templates == whole.templates
    assert again.found == whole.found


def test_a_checkpoint_of_another_fit_or_a_damaged_one_is_not_gone_on_from(tiny, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "SECONDS", 0.0)
    path = tmp_path / "fit.safetensors"
    fit(made(tiny, checkpoint=path), words)
    for change in ({"tie": 0.5}, {"seed": 1, "start": "random"}, {"steps": 7}):
        begun: list[int] = []
        fit(made(tiny, **change, checkpoint=path, progress=lambda done, of, begun=begun: begun.append(done)), words)
        assert begun[0] == 1
    path.write_bytes(path.read_bytes()[:-9])
    begun = []
    fit(made(tiny, checkpoint=path, progress=lambda done, of: begun.append(done)), words)
    assert begun[0] == 1


def test_a_restored_head_says_the_same_and_other_words_once_its_model_is_there(tiny, words) -> None:
    head = fit(made(tiny, folds=1), words)
    again = restore(*head.state())
    assert torch.equal(again.text, head.text)
    assert again.templates == head.templates
    with pytest.raises(ModelError, match="restored without its model"):
        again.words([["boat"]])
    again.attach(tiny, TEMPLATES)
    assert torch.equal(again.words([["boat"]]), head.words([["boat"]]))
    tensors, facts = head.state()
    tensors["template words 1"] = tensors["template words 1"][0]
    with pytest.raises(WeightsError, match="lacks or spoils"):
        restore(tensors, facts)


def test_a_session_trains_its_own_classes_only_and_moves_by_their_share(tiny, words) -> None:
    features, labels = draw()
    head = fit(made(tiny, folds=1, tie=0.0), words)
    before, own = head.templates, labels > 0
    head.partial_fit(features[own], labels[own])
    assert head.templates != before
    assert head.found["steps"] == 12
    kept = head.templates
    head.partial_fit(features[:4], labels[:4])  # one class alone
    assert head.templates == kept


def test_classes_that_come_later_are_said_in_the_contexts_there_are(tiny, words) -> None:
    head = fit(made(tiny, folds=1), words)
    more = [*STRINGS[:3], ["boat"], STRINGS[3]]
    rows = class_rows(TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LabelSet(("b",), (("boat",),))), 1)
    head.retext(torch.cat([words[:3], rows, words[3:]]), [0, 1, 2, 4], strings=more)
    close(head.text, head.words(more))
    assert head.seen.tolist() == [True, True, True, False, False]
    features, labels = draw()
    head.partial_fit(features[:8], torch.where(labels[:8] == 0, 3, 1))
    assert head.seen.tolist() == [True, True, True, True, False]
    close(head.text, head.words(more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contexts": 0}, "contexts is a whole number of 1 or more, not 0"),
        ({"steps": -1}, "steps is .* not -1"),
        ({"folds": 0}, "folds is .* not 0"),
        ({"length": 1.5}, "length is a whole number of 1 or more, not 1.5"),
        ({"tie": -1.0}, "tie is .* not -1"),
        ({"rate": 0.0}, "rate is a number above 0"),
        ({"start": "word"}, "start is words or random, not 'word'"),
        ({"tower": object.__new__(type("Photo", (), {"name": "photo"}))}, "'photo' has no text tower"),
        ({"tower": None}, "no text tower"),
        ({"lambda_": 1}, "no setting 'lambda_'"),
    ],
)
def test_settings_out_of_range_are_refused(tiny, settings, message) -> None:
    with pytest.raises(OptionError, match=message):
        build("prompt", **{"tower": tiny, **settings})


def test_what_cannot_be_said_is_refused(tiny, words) -> None:
    with pytest.raises(LabelError, match="give strings="):
        made(tiny).fit(*draw(), words)
    with pytest.raises(ModelError, match="'cat cat"):
        made(tiny).fit(*draw(), words, strings=[[" ".join(["cat"] * 15)], *STRINGS[1:]])
    head = made(tiny, folds=1)
    head._settings["rate"] = 1e38  # beyond what may be given, so that numbers overflow
    with pytest.raises(ModelError, match="smaller rate"):
        fit(head, words)
