"""Heads `adapter` and `tipx`, averaged weights and classes that come later, against loops and explicit tokens."""

from __future__ import annotations

import math

import pytest
import torch
from test_fewshot_heads import FEATURES, LABELS, QUERY, SCALE, TEXT, C, D, make
from torch.nn import functional as F

from conftest import TINY, close, random_clip, wrap
from densevl.backbones import mix
from densevl.errors import ModelError, OptionError
from densevl.fewshot import build, restore
from densevl.fewshot.heads.adapter import HEADS, Adapter
from densevl.fewshot.heads.prolip import ProLip, RunningMean
from densevl.fewshot.heads.tipx import TipX


def seen_shares(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1)


# adapter


def tokens_one_by_one(head: Adapter, feature: torch.Tensor) -> torch.Tensor:
    """Logits (C,) float64 of one feature: a token for the image and one for each word, masked attention over all."""
    net = {name: value.double() for name, value in head.net.items()}
    tokens = torch.cat([feature[None], head.text]).double()
    low = tokens @ net["down"]
    q, k, v = (low @ part for part in net["qkv"].chunk(3, dim=1))
    width, found = low.shape[1] // HEADS, torch.zeros_like(low)
    for a in range(HEADS):
        cut = slice(a * width, (a + 1) * width)
        for i in range(len(tokens)):
            sees = range(len(tokens)) if i == 0 else [0]
            weights = torch.tensor([math.exp(float(q[i, cut] @ k[j, cut]) / math.sqrt(width)) for j in sees])
            for j, weight in zip(sees, weights / weights.sum(), strict=True):
                found[i, cut] += weight * v[j, cut]
    moved = (1 - head.share) * tokens + head.share * found @ net["up"]
    return head.scale * F.normalize(moved[:1], dim=1)[0] @ F.normalize(moved[1:], dim=1).mT


def test_the_adapter_is_attention_between_explicit_tokens() -> None:
    head = Adapter(share=0.4, width=8, steps=15, rate=0.02).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    assert float(head.net["up"].abs().max()) > 0.05
    direct = torch.stack([tokens_one_by_one(head, row) for row in F.normalize(QUERY[:6], dim=1)])
    close(seen_shares(head.logits(QUERY[:6])), seen_shares(direct).float())


def test_without_words_it_is_clip_adapter() -> None:
    head = Adapter(share=0.4, width=8, words=False, steps=15, rate=0.02).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    x, net = QUERY.double(), {name: value.double() for name, value in head.net.items()}
    moved = 0.6 * x + 0.4 * (x @ net["down"]).clamp(min=0) @ net["up"]
    direct = SCALE * F.normalize(moved, dim=1) @ TEXT.double().mT
    close(seen_shares(head.logits(QUERY)), seen_shares(direct).float())
    assert head.found["loss"] < head.found["loss before"]


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("settings", [{"share": 0.0, "steps": 20}, {"steps": 0}])
def test_no_share_and_no_steps_are_the_words(words, settings) -> None:
    head = Adapter(words=words, width=8, **settings).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    close(head.logits(QUERY), SCALE * QUERY @ TEXT.mT)


@pytest.mark.parametrize("name", ["adapter", "prolip"])
def test_a_seed_decides_all(name) -> None:
    one, other = (make(name, steps=10).fit(FEATURES, LABELS, TEXT, scale=SCALE).logits(QUERY) for _ in range(2))
    assert torch.equal(one, other)


def test_the_adapter_stops_where_words_are_right_and_examples_are_noise() -> None:
    noise = F.normalize(torch.randn(40, D, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.arange(40) % C
    found = Adapter(width=8, rate=0.02).fit(noise, labels, TEXT, scale=SCALE).found
    assert found["steps"] < 60  # of up to 200
    real = Adapter(width=8, rate=0.02).fit(FEATURES, LABELS, TEXT.roll(1, 0), scale=SCALE).found
    assert real["steps"] > found["steps"]


# tipx


def by_loops(head: TipX, query: torch.Tensor, keys: torch.Tensor, captions: torch.Tensor | None) -> torch.Tensor:
    """Logits (N, C) float64 from the papers' formulas, one pair at a time, means over each class."""
    text, alpha, beta = head.text.double(), head.found["alpha"], head.found["beta"]
    gamma, delta = head.found["gamma"], head.found["delta"]
    keys, query = keys.double(), query.double()

    def signature(x: torch.Tensor) -> torch.Tensor:
        return (text @ x / 0.5).softmax(dim=0)

    def divergence(x: torch.Tensor, y: torch.Tensor) -> float:
        p, q = signature(x), signature(y)
        return float((p * (p / q).log()).sum())

    pairs = [(i, j) for i in range(len(keys)) for j in range(len(keys)) if i != j]
    unlike = [-divergence(keys[i], keys[j]) for i, j in pairs]
    cosines = [float(keys[i] @ keys[j]) for i, j in pairs]
    low, high = min(unlike), max(unlike)
    rows = []
    for x in query:
        logits = head.scale * text @ x
        for c in range(len(text)):
            own = (head.labels == c).nonzero().flatten().tolist()
            total = 0.0
            for i in own:
                close_by = float(x @ keys[i])
                if captions is not None:
                    close_by = (1 - delta) * close_by + delta * float(x @ captions[i].double())
                psi = min(cosines) + (-divergence(x, keys[i]) - low) / (high - low) * (max(cosines) - min(cosines))
                total += alpha * math.exp(-beta * (1 - close_by)) + gamma * psi
            logits[c] += total / len(own)
        rows.append(logits)
    return torch.stack(rows)


@pytest.mark.parametrize("captioned", [False, True])
def test_tipx_is_the_papers_formulas(captioned) -> None:
    head = TipX(3.0, 4.0, gamma=2.0, delta=0.3, whiten=False).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    captions = F.normalize(FEATURES + 0.3 * FEATURES.flip(0), dim=1) if captioned else None
    if captions is not None:
        head.caption(2 * captions)
    assert head.found["delta"] == (0.3 if captioned else 0.0)
    direct = by_loops(head, QUERY[:8], FEATURES, captions)
    close(seen_shares(head.logits(QUERY[:8])), seen_shares(direct).float())
    close(restore(*head.state()).logits(QUERY), head.logits(QUERY))


def test_without_gamma_and_captions_it_is_tip() -> None:
    head = TipX(gamma=0.0).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    tip = build("tip").fit(FEATURES, LABELS, TEXT, scale=SCALE)
    assert torch.equal(head.logits(QUERY), tip.logits(QUERY))


def test_gamma_is_chosen_by_leaving_each_out() -> None:
    """The closed form of what the others say is that of a head without the example."""
    head = TipX(3.0, 4.0, gamma=2.0, whiten=False).fit(FEATURES, LABELS, TEXT, scale=SCALE)
    alike = head._signs_alike(FEATURES @ TEXT.mT, torch.arange(len(LABELS)))
    for index in (0, 7, 19):
        rest = torch.arange(len(LABELS)) != index
        alone = TipX(3.0, 4.0, gamma=2.0, whiten=False).fit(FEATURES[rest], LABELS[rest], TEXT, scale=SCALE)
        close(alike[index : index + 1], alone._signs_alike(FEATURES[index : index + 1] @ TEXT.mT, None))
    assert TipX(alpha=0.0).fit(FEATURES, LABELS, TEXT.roll(1, 0), scale=SCALE).found["gamma"] > 0


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: TipX(gamma=-1.0), "gamma is .* not -1"),
        (lambda: TipX(delta=1.5), "delta is a number from 0 to 1, not 1.5"),
        (lambda: Adapter(share=2.0), "share is .* not 2"),
        (lambda: Adapter(width=6), "width is .* not 6"),
        (lambda: make("prolip", margin=-0.1), "margin is .* not -0.1"),
        (lambda: make("prolip", average="mean"), "none or beta"),
        (lambda: TipX().fit(FEATURES, LABELS, TEXT).caption(FEATURES[:3]), "a finite row for each"),
        (lambda: TipX(keep=2).fit(FEATURES, LABELS, TEXT).caption(FEATURES), "means"),
        (lambda: TipX(whiten=True).fit(FEATURES, LABELS, TEXT).caption(FEATURES), "leave one of the two out"),
        (lambda: TipX().fit(FEATURES, LABELS, TEXT).caption(FEATURES).partial_fit(FEATURES, LABELS), "anew"),
    ],
)
def test_what_cannot_be_is_refused(act, match) -> None:
    with pytest.raises((OptionError, ModelError), match=match):
        act()


# averaged weights


def test_the_running_mean_is_the_weighted_mean() -> None:
    drawn = torch.randn(9, 3, 4, dtype=torch.float64)
    place = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    weights = (place * (1 - place)) ** -0.5 / math.pi
    mean = RunningMean(9)
    for one in drawn:
        mean.take(one)
    close(mean.value, (weights[:, None, None] * drawn).sum(dim=0) / weights.sum())


def test_a_margin_of_zero_is_cross_entropy_and_the_mean_lies_between() -> None:
    plain, same = (make("prolip", steps=20, **own).fit(FEATURES, LABELS, TEXT) for own in ({}, {"margin": 0.0}))
    assert torch.equal(plain.projection, same.projection)
    held = make("prolip", steps=20, margin=0.3).fit(FEATURES, LABELS, TEXT)
    assert not torch.equal(plain.projection, held.projection)
    assert held.found["loss before"] > plain.found["loss before"]  # its own row is taken off
    mean = make("prolip", steps=20, average="beta").fit(FEATURES, LABELS, TEXT)
    assert 0 < mean.found["moved"] < plain.found["moved"]
    assert isinstance(restore(*mean.state()), ProLip)


def test_a_mixture_ends_at_both_models(tiny) -> None:
    other = wrap(random_clip(seed=1), "other")
    pixels = torch.randn(1, 3, *tiny.tower.image_size)
    for share, one in ((0, tiny), (1, other)):
        made, state = mix(tiny, other, share), one.model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in made.model.state_dict().items())
        assert torch.equal(made.encode_image(pixels), one.encode_image(pixels))
        assert torch.equal(made.encode_text(["cat"]), one.encode_text(["cat"]))
        assert made.text_fingerprint == one.text_fingerprint
    half, key = mix(tiny, other, 0.5), "visual.proj"
    means = (tiny.model.state_dict()[key].double() + other.model.state_dict()[key].double()) / 2
    close(half.model.state_dict()[key], means.float())
    assert torch.equal(tiny.model.state_dict()[key], mix(tiny, other, 0).model.state_dict()[key])
    with pytest.raises(OptionError, match="0 to 1"):
        mix(tiny, other, 1.5)
    with pytest.raises(ModelError, match="cannot be mixed"):
        mix(tiny, wrap(random_clip(config={**TINY, "embed_dim": 48}), "wide"), 0.5)
    for names in ((tiny, "mini"), ("mini", tiny)):
        with pytest.raises(ModelError, match=r"'mini' is a str, not a model; load it first"):
            mix(*names, 0.5)


# classes that come later


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nearest", {}),
        ("exemplars", {}),
        ("gda", {"alpha": 0.1}),
        ("tip", {"alpha": 3.0, "beta": 4.0}),
        ("tipx", {"alpha": 3.0, "beta": 4.0, "gamma": 2.0}),
        ("ape", {"alpha": 3.0, "beta": 4.0}),
    ],
)
@pytest.mark.parametrize("words_between", [False, True])
def test_two_sessions_are_one(name, settings, words_between) -> None:
    """Three classes and a row of background, then two further classes before it, one of which has no examples."""
    ground = F.normalize(torch.randn(1, D, generator=torch.Generator().manual_seed(2)), dim=1)
    first, later = LABELS < 3, LABELS == 3
    known = first | later
    whole = make(name, **settings).fit(FEATURES[known], LABELS[known], torch.cat([TEXT, ground]), scale=SCALE)
    text = torch.cat([TEXT[:3], ground]) if words_between else TEXT[:3]
    head = make(name, **settings).fit(FEATURES[first], LABELS[first], text, scale=SCALE)
    head.retext(torch.cat([TEXT, ground]), [0, 1, 2, *[-1] * words_between])
    if name != "tipx":  # its range of psi is that of all examples
        head.logits(QUERY)
    head.partial_fit(FEATURES[later], LABELS[later])
    close(head.logits(QUERY), whole.logits(QUERY))


def test_further_classes_that_do_not_fit_are_refused() -> None:
    head = make("gda").fit(FEATURES, LABELS, TEXT, scale=SCALE)
    for text, moved, match in [
        (TEXT[:, :5], range(C), "finite rows"),
        (TEXT, range(3), "each its own"),
        (TEXT, [0, 0, 1, 2, 3], "each its own"),
        (TEXT, [0, 1, 2, 3, 9], "each its own"),
        (TEXT, [0, 1, 2, 3, -1], "cannot be left out"),
    ]:
        with pytest.raises(ModelError, match=match):
            head.retext(text, list(moved))
    with pytest.raises(ModelError, match="learns from all"):
        make("linear", strength=0.1).fit(FEATURES, LABELS, TEXT).retext(TEXT, range(C))
