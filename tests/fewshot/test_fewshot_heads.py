"""Few-shot heads against textbook forms, other libraries and themselves fitted anew."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close
from densevl.errors import LabelError, ModelError, OptionError, WeightsError
from densevl.fewshot import HEADS as ALL
from densevl.fewshot import build, restore
from densevl.fewshot.choosing import best
from densevl.fewshot.head import Samples, settle
from densevl.fewshot.heads.ape import Ape, criterion
from densevl.fewshot.heads.gda import ALPHAS, Gda, leave_one_out
from densevl.fewshot.heads.linear import LinearProbe
from densevl.fewshot.heads.nearest import Nearest
from densevl.fewshot.heads.prolip import ProLip
from densevl.fewshot.heads.tip import STEPS, TipAdapter
from densevl.fewshot.settings import require

C, K, D, SCALE = 5, 6, 12, 20.0
ABSENT = 4


def draw(shots: int = K, classes: int = C, seed: int = 0, noise: float = 0.5):
    """Features around class centres, shuffled; words near the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, D, generator=generator), dim=1)
    labels = torch.arange(classes).repeat_interleave(shots)[torch.randperm(classes * shots, generator=generator)]
    features = F.normalize(centres[labels] + noise * torch.randn(len(labels), D, generator=generator) / 2, dim=1)
    text = F.normalize(centres + 0.6 * torch.randn(classes, D, generator=generator) / 2, dim=1)
    return features, labels, text


FEATURES, LABELS, TEXT = draw()
QUERY = draw(seed=1)[0]
PROJECTION = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3)))[0]


HEADS = {name: head for name, head in ALL.items() if name != "prompt"}  # whose tests are in test_learned_prompts.py


def make(name: str, **settings):
    return build(name, **({"projection": PROJECTION} if name == "prolip" else {}), **settings)


FIXED = {
    "nearest": {},
    "exemplars": {},
    "tip": {"alpha": 3.0, "beta": 4.0},
    "ape": {"alpha": 3.0, "beta": 4.0},
    "gda": {"alpha": 0.1},
    "tipx": {"alpha": 3.0, "beta": 4.0, "gamma": 2.0},
    "linear": {"strength": 0.1},
    "adapter": {"steps": 10, "width": 8},
    "prolip": {"steps": 30},
}


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_examples_does_not_matter(name) -> None:
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(5))
    one = make(name, **FIXED[name]).fit(FEATURES, LABELS, TEXT, scale=SCALE).logits(QUERY)
    other = make(name, **FIXED[name]).fit(FEATURES[order], LABELS[order], TEXT, scale=SCALE).logits(QUERY)
    assert torch.allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "prolip"])
def test_a_class_without_examples_keeps_its_text_logit(name) -> None:
    kept = LABELS != ABSENT
    text = TEXT.roll(1, dims=0)  # words that examples contradict
    head = make(name).fit(FEATURES[kept], LABELS[kept], text, scale=SCALE)
    words, logits = SCALE * QUERY @ text.mT, head.logits(QUERY)
    close(logits[:, ABSENT], words[:, ABSENT])
    shares = [x.softmax(dim=1)[:, ABSENT] for x in (logits, words)]
    assert torch.allclose(*shares, atol=1e-4)  # and the others share out what words give them
    assert not torch.allclose(logits[:, 0], words[:, 0], atol=1e-3)


def test_with_prolip_a_class_without_examples_keeps_its_words() -> None:
    kept = LABELS != ABSENT
    head = make("prolip").fit(FEATURES[kept], LABELS[kept], TEXT, scale=SCALE)
    assert torch.allclose(head.logits(QUERY), SCALE * F.normalize(QUERY @ head.projection, dim=1) @ TEXT.mT, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_dense_maps_are_judged_place_by_place(name) -> None:
    head = make(name, **FIXED[name]).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    grid = head.logits(QUERY.view(5, 6, D))
    assert grid.shape == (5, 6, C)
    close(grid.view(-1, C), head.logits(QUERY))
    assert torch.allclose(head.logits(3 * QUERY[:1]), grid[0, :1], atol=1e-4)  # length of features says nothing


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_state_gives_the_same_logits(name) -> None:
    head = make(name).fit(FEATURES, LABELS, TEXT, scale=SCALE, weights=torch.rand(len(LABELS)) + 0.5)
    again = restore(*head.state())
    close(again.logits(QUERY), head.logits(QUERY))
    assert again.settings() == head.settings()
    tensors, facts = head.state()
    tensors.pop("text")
    with pytest.raises(WeightsError, match="lacks or spoils 'text'"):
        restore(tensors, facts)


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if head.adds])
def test_in_parts_is_as_at_once(name) -> None:
    whole = make(name, **FIXED[name]).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    head = make(name, **FIXED[name]).fit(FEATURES[:7], LABELS[:7], TEXT, scale=SCALE)
    for start in range(7, len(LABELS), 8):
        head.partial_fit(FEATURES[start : start + 8], LABELS[start : start + 8])
    assert torch.allclose(head.logits(QUERY), whole.logits(QUERY), atol=1e-4)


def test_parts_merge_and_examples_can_be_taken_out() -> None:
    whole = Gda(0.1).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    left, right = (Gda(0.1).fit(FEATURES[part], LABELS[part], TEXT, scale=SCALE) for part in (slice(11), slice(11, 99)))
    before = left.logits(QUERY)
    close(left.merge(right).logits(QUERY), whole.logits(QUERY))
    close(left.remove(FEATURES[11:], LABELS[11:]).logits(QUERY), before)
    own = LABELS == ABSENT
    assert not whole.remove(FEATURES[own], LABELS[own]).seen[ABSENT]
    with pytest.raises(ModelError, match="more examples are taken out"):
        whole.remove(FEATURES[own], LABELS[own])
    with pytest.raises(ModelError, match="different words"):
        whole.merge(Gda(0.1).fit(FEATURES, LABELS, TEXT.flip(0), scale=SCALE))


def test_gda_without_words_is_linear_discriminant_analysis() -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    features, labels, text = draw(shots=40)
    head = Gda(alpha=1e6).fit(features, labels, text, scale=SCALE)
    ridge = D / (len(labels) - 1)  # of the mean variance
    lda = analysis.LinearDiscriminantAnalysis("lsqr", shrinkage=ridge / (1 + ridge)).fit(features.numpy(), labels)
    theirs = torch.from_numpy(lda.coef_).double()
    ours = head.weight
    ours, theirs = ours - ours.mean(dim=0), theirs - theirs.mean(dim=0)
    close(F.normalize(ours, dim=1), F.normalize(theirs, dim=1))
    query = draw(shots=40, seed=2, noise=1.5)[0]
    assert (head.logits(query).argmax(dim=1).numpy() == lda.predict(query.numpy())).mean() == 1


@pytest.mark.parametrize("ridge", [None, 0.2])
def test_gda_is_the_papers_formula(ridge) -> None:
    x, means = FEATURES.double(), torch.stack([FEATURES[c == LABELS].double().mean(dim=0) for c in range(C)])
    covariance = (x - means[LABELS]).mT @ (x - means[LABELS]) / (len(x) - 1)
    share = 1 if ridge is None else ridge * (len(x) - 1) / D
    p = D * torch.linalg.pinv((len(x) - 1) * covariance + share * covariance.trace() * torch.eye(D))
    added = QUERY.double() @ p @ means.mT - (means @ p * means).sum(dim=1) / 2
    direct = SCALE * QUERY.double() @ TEXT.double().mT + 0.3 * added
    found = Gda(alpha=0.3, ridge=ridge).fit(FEATURES, LABELS, TEXT, scale=SCALE).logits(QUERY)
    close(found.softmax(dim=1), direct.softmax(dim=1).float())


@pytest.mark.parametrize(("floor", "ridge"), [(0.0, None), (0.1, None), (0.0, 0.2)])
@pytest.mark.parametrize("counts", [(6, 6, 6, 6, 6), (1, 2, 5, 3, 0)])
def test_leaving_one_out_of_gda_equals_fitting_without_it(floor, ridge, counts) -> None:
    kept = torch.cat([(c == LABELS).nonzero().flatten()[:count] for c, count in enumerate(counts)])
    weights = torch.linspace(0.7, 1.0, len(kept))
    samples = Samples.check(FEATURES[kept], LABELS[kept], weights, C)
    own = {"alpha": 1.0, "floor": floor, "ridge": ridge}
    head = Gda(**own).fit(samples.features, samples.labels, TEXT, scale=SCALE, weights=weights)
    judged, usable = leave_one_out(head.moments, samples, floor, ridge)
    assert usable.tolist() == [counts[label] > 1 for label in samples.labels.tolist()]
    for index in usable.nonzero().flatten().tolist():
        rest = torch.arange(len(kept)) != index
        alone = Gda(**own).fit(samples.features[rest], samples.labels[rest], TEXT, scale=SCALE, weights=weights[rest])
        words = SCALE * samples.features[index : index + 1] @ TEXT.mT
        fast = settle(words + judged[index : index + 1].float(), words, alone.seen)
        assert torch.allclose(fast, alone.logits(samples.features[index : index + 1]), atol=1e-3)


@pytest.mark.parametrize("name", ["gda", "tip"])
def test_alpha_is_what_refitting_without_each_example_would_choose(name) -> None:
    fixed = {"beta": 4.0, "whiten": False} if name == "tip" else {"ridge": 0.3}
    chosen = make(name, **fixed).fit(FEATURES, LABELS, TEXT, scale=SCALE).found["alpha"]
    step = STEPS[2] / STEPS[1]
    alphas = ALPHAS if name == "gda" else [0.0, *(chosen * step**power for power in range(-4, 5))]
    assert chosen > 0

    def without_each(alpha: float) -> torch.Tensor:
        rows = []
        for index in range(len(LABELS)):
            rest = torch.arange(len(LABELS)) != index
            head = make(name, alpha=alpha, **fixed).fit(FEATURES[rest], LABELS[rest], TEXT, scale=SCALE)
            rows.append(head.logits(FEATURES[index : index + 1]))
        return torch.cat(rows)

    seen = torch.ones(C, dtype=torch.bool)
    slow = best(((alpha, without_each(alpha)) for alpha in alphas), SCALE * FEATURES @ TEXT.mT, seen, LABELS)
    assert slow == pytest.approx(chosen)


@pytest.mark.parametrize("name", ["gda", "tip", "ape", "linear"])
def test_words_that_are_always_right_are_not_outvoted_by_noise(name) -> None:
    generator = torch.Generator().manual_seed(1)
    text = torch.eye(C, D)
    labels = torch.arange(C).repeat(4)
    noise = torch.randn(len(labels), D, generator=generator)
    noise[:, :C] = 0
    features = F.normalize(text[labels] + 2 * F.normalize(noise, dim=1), dim=1)
    head = make(name).fit(features, labels, text, scale=SCALE)
    noise = torch.randn(200, D, generator=generator)
    noise[:, :C] = 0
    query = F.normalize(text[torch.arange(200) % C] + 2 * F.normalize(noise, dim=1), dim=1)
    assert (head.logits(query).argmax(dim=1) == torch.arange(200) % C).float().mean() > 0.98


@pytest.mark.parametrize("name", HEADS)
def test_examples_that_contradict_the_words_are_learned(name) -> None:
    head = make(name, **({"rate": 0.02} if name == "prolip" else {}))
    features = FEATURES @ PROJECTION.mT if name == "prolip" else FEATURES
    query = draw(seed=0, noise=0.2)[0]
    labels = draw(seed=0, noise=0.2)[1]
    wrong = TEXT.roll(1, dims=0)
    right = head.fit(features, LABELS, wrong, scale=SCALE).logits(query @ PROJECTION.mT if name == "prolip" else query)
    before = (query @ wrong.mT).argmax(dim=1) == labels
    after = right.argmax(dim=1) == labels
    assert before.float().mean() < 0.3
    assert after.float().mean() > 0.9


@pytest.mark.parametrize("name", ["nearest", "tip", "ape", "gda", "linear"])
@pytest.mark.parametrize("classes", [1, 2, C])
def test_one_example_a_class_is_enough(name, classes) -> None:
    features, labels, text = draw(shots=1, noise=0.1)
    kept = labels < classes
    logits = make(name).fit(features[kept], labels[kept], text, scale=SCALE).logits(draw(noise=0.2)[0])
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", ["nearest", "tip", "ape", "gda", "linear"])
def test_words_that_say_nothing_leave_it_to_single_examples(name) -> None:
    features, labels, _ = draw(shots=1, noise=0.1)
    head = make(name).fit(features, labels, torch.ones(C, D) / D**0.5, scale=SCALE)
    query, truth, _ = draw(noise=0.2)
    assert (head.logits(query).argmax(dim=1) == truth).float().mean() > 0.9


def test_copies_of_one_example_say_nothing_of_variance() -> None:
    head = Gda().fit(FEATURES[:1].repeat(5, 1), torch.zeros(5, dtype=torch.int64), TEXT, scale=SCALE)
    assert torch.allclose(head.logits(QUERY), SCALE * QUERY @ TEXT.mT, atol=1e-4)


def test_tip_is_the_papers_formula() -> None:
    alpha, beta = 1.17, 2.0
    onehot = F.one_hot(LABELS, C).float()
    direct = SCALE * QUERY @ TEXT.mT + alpha * torch.exp(-beta * (1 - QUERY @ FEATURES.mT)) @ onehot
    found = TipAdapter(alpha * K, beta, whiten=False).fit(FEATURES, LABELS, TEXT, scale=SCALE).logits(QUERY)
    close(found.softmax(dim=1), direct.softmax(dim=1))


def test_apes_criterion_is_the_loop_over_all_pairs() -> None:
    vectors = [torch.cat([TEXT[c : c + 1], FEATURES[c == LABELS]]).double() for c in range(C)]
    total, count = torch.zeros(D, dtype=torch.float64), 0
    for i, j in itertools.permutations(range(C), 2):
        for one in vectors[i]:
            for other in vectors[j]:
                total, count = total + one * other, count + 1
    direct = -0.7 * total / count + 0.3 * TEXT.double().var(dim=0)
    assert torch.allclose(criterion(FEATURES, LABELS, TEXT), direct, atol=1e-12)


def test_ape_is_the_papers_formula() -> None:
    alpha, beta, gamma = 2.0, 3.0, 0.4
    head = Ape(alpha * K, beta, gamma=gamma, whiten=False).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    channels = criterion(FEATURES, LABELS, TEXT).topk(D // 2).indices
    f, k, w = (F.normalize(rows[:, channels], dim=1) for rows in (QUERY, FEATURES, TEXT))
    onehot = F.one_hot(LABELS, C).float()
    divergence = (onehot * torch.log2(onehot.clamp(min=1e-30) / (k @ w.mT).softmax(dim=1))).sum(dim=1)
    values = onehot * (gamma * divergence).exp()[:, None]
    direct = SCALE * QUERY @ TEXT.mT + alpha * torch.exp(-beta * (1 - f @ k.mT)) @ values
    close(head.logits(QUERY).softmax(dim=1), direct.softmax(dim=1))


@pytest.mark.parametrize("name", ["tip", "ape"])
def test_fewer_keys_keep_the_weight_of_a_class(name) -> None:
    features, labels, text = draw(shots=50)
    head = make(name, keep=4).fit(features, labels, text, scale=SCALE, weights=torch.full((len(labels),), 0.9))
    assert len(head.keys) == 4 * C
    assert torch.allclose(torch.bincount(head.labels, head.weights), torch.full((C,), 45.0))
    whole = make(name).fit(features, labels, text, scale=SCALE)
    agree = head.logits(QUERY).argmax(dim=1) == whole.logits(QUERY).argmax(dim=1)
    assert agree.float().mean() > 0.9
    assert len(head.partial_fit(features, labels).keys) == 4 * C


def test_nearest_is_the_largest_cosine() -> None:
    head = Nearest(whiten=False).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    cosine = QUERY @ FEATURES.mT
    direct = torch.stack([SCALE * cosine[:, c == LABELS].amax(dim=1) for c in range(C)], dim=1)
    close(head.logits(QUERY).softmax(dim=1), direct.softmax(dim=1))


def test_the_linear_probe_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    weights = torch.linspace(0.5, 1.5, len(LABELS))
    head = LinearProbe(strength=0.5).fit(FEATURES, LABELS, torch.zeros(C, D), scale=SCALE, weights=weights)
    theirs = linear_model.LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10000)
    theirs.fit(FEATURES.double().numpy(), LABELS.numpy(), sample_weight=weights.double().numpy())
    assert np.allclose(head.weight.numpy(), theirs.coef_, atol=1e-4)


def test_the_linear_probe_starts_at_the_words_and_its_rows_add_up_to_nothing() -> None:
    tight = LinearProbe(strength=1e6).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    assert torch.allclose(tight.logits(QUERY), SCALE * QUERY @ TEXT.mT, atol=1e-3)
    loose = LinearProbe(strength=0.1).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    assert loose.weight.norm() > 1
    close(loose.weight.sum(dim=0), torch.zeros(D))


def test_prolip_lowers_the_loss_and_is_tied_to_the_models_projection() -> None:
    wrong = TEXT.roll(1, dims=0)
    heads = [ProLip(PROJECTION, strength, rate=0.01).fit(FEATURES, LABELS, wrong) for strength in (0.0, 1.0, 1e4)]
    for head in heads[:2]:
        assert head.found["loss"] < 0.9 * head.found["loss before"]
    moved = [head.found["moved"] for head in heads]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.02
    assert ProLip(PROJECTION).fit(FEATURES, LABELS, wrong).found["strength"] == pytest.approx(1 / K)


def test_weights_count_as_repeated_examples() -> None:
    doubled = torch.arange(len(LABELS)) % 2 + 1
    repeated = torch.arange(len(LABELS)).repeat_interleave(doubled)
    for name in ("tip", "gda", "linear", "prolip"):
        settings = {"tip": {"alpha": 3.0, "beta": 4.0}, "gda": {"alpha": 0.1}, "linear": {"strength": 0.1}}.get(
            name, {}
        )
        one = make(name, **settings).fit(FEATURES, LABELS, TEXT, scale=SCALE, weights=doubled)
        other = make(name, **settings).fit(FEATURES[repeated], LABELS[repeated], TEXT, scale=SCALE)
        assert torch.allclose(one.logits(QUERY), other.logits(QUERY), atol=2e-3), name


BAD = {
    "features are one row": ((FEATURES[0], LABELS, TEXT), {}, ModelError, r"float \(N, D\)"),
    "features are integers": ((FEATURES.long(), LABELS, TEXT), {}, ModelError, r"float \(N, D\)"),
    "features hold NaN": ((FEATURES * math.nan, LABELS, TEXT), {}, ModelError, "not finite"),
    "a feature is zero": ((FEATURES * 0, LABELS, TEXT), {}, ModelError, "zeros"),
    "features of another model": ((FEATURES[:, 1:], LABELS, TEXT), {}, ModelError, "wants 12"),
    "labels are too few": ((FEATURES, LABELS[1:], TEXT), {}, LabelError, "one for each"),
    "labels are floats": ((FEATURES, LABELS.float(), TEXT), {}, LabelError, "integers"),
    "no examples": ((FEATURES[:0], LABELS[:0], TEXT), {}, LabelError, "at least one"),
    "a label below 0": ((FEATURES, LABELS - 1, TEXT), {}, LabelError, "allow 0 to 4"),
    "a label above C": ((FEATURES, LABELS + 1, TEXT), {}, LabelError, "span 1 to 5"),
    "words are one row": ((FEATURES, LABELS, TEXT[0]), {}, ModelError, r"\(C, D\)"),
    "words hold NaN": ((FEATURES, LABELS, TEXT * math.nan), {}, ModelError, "finite"),
    "scale is 0": ((FEATURES, LABELS, TEXT), {"scale": 0}, ModelError, "above 0"),
    "weights are too few": ((FEATURES, LABELS, TEXT), {"weights": [1.0]}, ModelError, "for each feature"),
    "a weight is 0": ((FEATURES, LABELS, TEXT), {"weights": torch.zeros(len(LABELS))}, ModelError, "above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_examples_are_refused_in_one_line(case) -> None:
    given, named, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        Gda().fit(*given, **named)
    assert "\n" not in str(caught.value)


SETTINGS = [
    ("gdp", {}, "closest: gda"),
    ("gda", {"alfa": 1}, r"no setting 'alfa' \(closest: alpha\); it has alpha, floor, ridge"),
    ("nearest", {"alpha": 1}, "it has whiten"),
    ("tip", {"whiten": 1}, "true or false"),
    ("gda", {"alpha": "abc"}, "alpha is a number of 0 or more, at most 1,000,000, not 'abc'"),
    ("gda", {"alpha": 1e30}, "at most"),
    ("adapter", {"width": 6}, "multiple of 4"),
    ("adapter", {"words": 1}, "true or false"),
    ("gda", {"alpha": -1}, "0 or more"),
    ("gda", {"floor": -1}, "0 or more"),
    ("tip", {"beta": 0}, "beta is a number above 0"),
    ("tip", {"keep": 0}, "keep is a whole number of 1 or more"),
    ("ape", {"share": 0}, "above 0 up to 1, not 0"),
    ("ape", {"gamma": -1}, "gamma is a number from 0 to 100"),
    ("linear", {"strength": 0}, "strength is a number above 0"),
    ("linear", {"steps": 0}, "steps is a whole number of 1 or more"),
    ("prolip", {}, "give projection="),
    ("prolip", {"projection": PROJECTION, "rate": 0}, "rate is a number above 0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), SETTINGS)
def test_impossible_settings_are_refused_before_the_work(name, settings, message) -> None:
    with pytest.raises(OptionError, match=message):
        build(name, **settings)


def test_no_setting_takes_what_is_no_value_of_its_kind() -> None:
    for head in ALL.values():
        for setting, rule in head.rules.items():
            odd = {"nan": math.nan, "inf": math.inf, "text": "abc", "list": [1], "tensor": torch.ones(1)}
            odd |= {} if rule.flag else {"bool": True}
            odd |= {"fraction": 1.5} if rule.whole else {}
            for value in odd.values():
                with pytest.raises(OptionError, match=f"^{setting} is (a |true|none|words)") as caught:
                    require({setting: value}, head.rules)
                assert "\n" not in str(caught.value)


def test_every_setting_has_a_rule_and_its_default_keeps_it() -> None:
    for head in ALL.values():
        defaults = {
            name: own.default
            for name, own in inspect.signature(head).parameters.items()
            if name not in ("further", *head.parts) and own.kind is not own.VAR_KEYWORD
        }
        assert defaults.keys() == head.rules.keys()
        require(defaults, head.rules)


def test_heads_say_what_they_cannot_do() -> None:
    with pytest.raises(ModelError, match="call fit first"):
        Gda().logits(QUERY)
    with pytest.raises(ModelError, match="call fit first"):
        Gda().partial_fit(FEATURES, LABELS)
    with pytest.raises(ModelError, match="learns from all examples at once"):
        LinearProbe(0.1).fit(FEATURES, LABELS, TEXT).partial_fit(FEATURES, LABELS)
    with pytest.raises(ModelError, match="features are 3 wide, this head wants 12"):
        Gda().fit(FEATURES, LABELS, TEXT).logits(torch.zeros(1, 3))
    with pytest.raises(ModelError, match="words are 11 wide"):
        ProLip(PROJECTION).fit(FEATURES, LABELS, TEXT[:, 1:])
