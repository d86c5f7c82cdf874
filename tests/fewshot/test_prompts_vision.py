"""Head "prompt" with tokens in the image tower: what it sees, its gradient, its choice, and what it refuses."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from test_fewshot_pipeline import EXAMPLES, NAMES, PLAIN, picture
from test_learned_prompts import LABELS, STRINGS, TEMPLATES
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl import FewShot
from densevl.backbones.towers import TimmViT, tower_of
from densevl.errors import ModelError, OptionError, WeightsError
from densevl.fewshot import build
from densevl.fewshot.prompts.contexts import Contexts, Spoken, joined, unit_prompts
from densevl.fewshot.prompts.training import Task
from densevl.fewshot.prompts.visual import Coupled, Coupling, Looking, gather, image_tower, look
from densevl.fewshot.words import class_rows
from densevl.vocabulary import Background
from densevl.vocabulary.text_classifier import TextClassifier

LABELLED = torch.arange(3).repeat_interleave(2)


@pytest.fixture(scope="module")
def words(tiny) -> torch.Tensor:
    """Rows of the three classes and of the background word."""
    text = TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LABELS, Background(words=("sky",)))
    return class_rows(text, 3)


def shown() -> torch.Tensor:
    """Two pictures of each of three classes, normalised."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(3, 3, 1, 1, generator=generator)
    return centres[LABELLED] + 0.3 * torch.randn(6, 3, 32, 32, generator=generator)


def made(tiny, **settings):
    own = {"steps": 4, "folds": 1, "rate": 0.3, "vision": True, **settings}
    return build("prompt", tower=tiny, templates=TEMPLATES, **own)


def fit(head, tiny, words, pixels=None):
    pixels = shown() if pixels is None else pixels
    return head.fit(tiny.encode_image(pixels), LABELLED, words, scale=20.0, strings=STRINGS, pixels=pixels)


def by_hand(visual, pixels, tokens_JnD) -> torch.Tensor:
    """A picture through open_clip's own modules, block after block, tokens behind the patches."""
    x = visual.conv1(pixels).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    count = x.shape[1]
    for number, block in enumerate(visual.transformer.resblocks):
        if number < len(tokens_JnD):
            x = x[:, :count]
            x = torch.cat([x, tokens_JnD[number].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize(("blocks", "count"), [(1, 3), (4, 2), (7, 1)])
def test_tokens_stand_in_the_first_blocks_and_attention_sees_them(blocks, count) -> None:
    model = copy.deepcopy(random_clip()).double()
    pixels, tokens = torch.randn(2, 3, 32, 32).double(), torch.randn(blocks, count, 32).double()
    with torch.no_grad():
        found = look(wrap(model, "double").tower, pixels, tokens)
        close(found, by_hand(model.visual, pixels, tokens))
        assert not torch.allclose(found, model.encode_image(pixels), atol=0.1)


def test_without_tokens_it_is_the_model(tiny) -> None:
    pixels = shown()
    close(look(tiny.tower, pixels, torch.zeros(2, 0, 32)), tiny.encode_image(pixels))


def test_rotary_places_of_patches_stay_where_they_are() -> None:
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    visual = open_clip.CLIP(16, {**vision, "image_size": 56}, text).eval().requires_grad_(False).double().visual
    tower, trunk = tower_of(visual, "eva"), visual.trunk
    assert isinstance(tower, TimmViT)
    pixels, tokens = torch.randn(1, 3, 56, 56).double(), torch.randn(2, 3, 192).double()
    rope = copy.deepcopy(trunk.rope)
    rope.update_feat_shape([4, 4])
    x = tower.embed(pixels, "size")
    x, lead = torch.cat([x[:, :1], torch.zeros(1, 3, 192), x[:, 1:]], dim=1), trunk.blocks[0].attn.num_prefix_tokens
    for number, block in enumerate(trunk.blocks):
        if number < 2:
            x = torch.cat([x[:, :1], tokens[number][None], x[:, 4:]], dim=1)
        block.attn.num_prefix_tokens = lead + 3
        x = block(x, rope=rope.get_embed())
        block.attn.num_prefix_tokens = lead
    close(look(tower, pixels, tokens), visual.head(trunk.forward_head(trunk.norm(x[:, [0, *range(4, 20)]]))))


def test_tokens_are_linear_maps_of_the_words_before_the_name(tiny) -> None:
    context = Contexts.of_templates(tiny, TEMPLATES[1:2], 1, 4, 0).deep(tiny, 2)
    own = Coupled(context, Coupling.drawn(2, 32, tiny.word_width, 0))
    assert context.fronts == [1]
    assert len(context.words[0]) == 3
    for block, found in enumerate(own.tokens()):
        word = context.words[0][0].split(tiny.word_width)[block]
        want = [sum(w * x for w, x in zip(row, word, strict=True)) for row in own.maps.weight[block]]
        close(found[0], torch.stack(want) + own.maps.bias[block])


def test_the_gradient_of_words_and_maps_is_that_of_finite_differences(words) -> None:
    tower = wrap(copy.deepcopy(random_clip()).double(), "double")
    pixels, spoken = shown().double(), Spoken.of(STRINGS[:3])
    weights = torch.rand(6, dtype=torch.float64)
    fixed = (spoken, words[:3].double(), 20.0, 0.7)
    task = Task(torch.zeros(6, 24).double(), LABELLED, weights / weights.sum(), *fixed, pixels=pixels)
    torch.manual_seed(1)
    start = [torch.randn(3, 32), torch.randn(2, 32, 16), torch.randn(2, 32)]
    start = [one.double() for one in start]
    step, chosen = [1e-6 * torch.randn_like(one) for one in start], torch.tensor([4, 1, 3])

    def loss(sign: int) -> float:
        """The mean over the batch of N w_i CE, and the tie."""
        line, weight, bias = (own + sign * by for own, by in zip(start, step, strict=True))
        with torch.no_grad():
            rows = joined(unit_prompts(tower, Contexts([line], [2]), spoken.strings), spoken.member)
            tokens = [line[:2, 16 * j : 16 * (j + 1)] @ weight[j].T + bias[j] for j in range(2)]
            unit = F.normalize(by_hand(tower.model.visual, pixels[chosen], torch.stack(tokens)), dim=1)
        each = -(20 * unit @ rows.T).log_softmax(1)[torch.arange(3), LABELLED[chosen]]
        return float((6 * task.weights[chosen] * each).sum() / 3 + 0.7 * ((rows - task.text) ** 2).sum() / 3)

    own = Coupled(Contexts(start[:1], [2]), Coupling(*start[1:])).leaves(torch.device("cpu"))
    value = gather(tower, image_tower(tower, 2), own, task, chosen)
    leaves = [own.contexts.words[0], own.maps.weight, own.maps.bias]
    slope = sum(float((leaf.grad * by).sum()) for leaf, by in zip(leaves, step, strict=True))
    assert value == pytest.approx(loss(0))
    assert slope == pytest.approx((loss(1) - loss(-1)) / 2, rel=1e-4)


def test_examples_are_learned_and_folds_may_keep_the_words_to_the_bit(tiny, words) -> None:
    pixels = shown()

    def entropy(head) -> float:
        seen = Looking(tiny, head.tokens).encode_image(pixels) if head.tokens is not None else tiny.encode_image(pixels)
        return float(F.cross_entropy(head.logits(seen)[:, :3], LABELLED))

    kept = fit(made(tiny, steps=0), tiny, words)
    head = fit(made(tiny, steps=15, tie=0.0, deep=2, batch=6), tiny, words)
    assert entropy(head) < 0.8 * entropy(kept)
    assert tuple(head.tokens.shape) == (2, head.templates[0].before, 32)
    wild = fit(made(tiny, folds=2, rate=1e3, steps=2), tiny, words)
    assert wild.found["steps"] == 0
    assert wild.tokens is None
    assert torch.equal(wild.text, words)


def test_a_saved_head_answers_alike_and_learning_again_begins_anew(tiny, tmp_path) -> None:
    few = {"steps": 2, "folds": 1, "rate": 0.3, "vision": True, "deep": 2}
    one = FewShot(tiny, "prompt", options=few, **PLAIN).fit(EXAMPLES["image"], labels=NAMES)
    first, query = one.heads["image"].tokens, picture("blue", seed=9)
    again = FewShot.load(one.save(tmp_path / "head")[0], tiny, use_cache=False)
    told = torch.from_numpy(one(query).probabilities)
    assert torch.equal(told, torch.from_numpy(again(query).probabilities))
    plain = F.normalize(tiny.encode_image(one.features.fed([query])), dim=1)
    assert not torch.allclose(told, (tiny.logit_scale * plain @ one.heads["image"].text.T).softmax(1)[0], atol=1e-3)
    with pytest.raises(OptionError, match="were learned from"):
        one.calibrate(EXAMPLES["image"])
    assert torch.equal(one.fit(EXAMPLES["image"], labels=NAMES).heads["image"].tokens, first)
    for refused in (one.templates, lambda: again.words(["sky"])):
        with pytest.raises(ModelError, match="goes with tokens in the image tower"):
            refused()
    with pytest.raises(ModelError, match="with vision learns at once"):
        one.partial_fit(EXAMPLES["image"])
    with pytest.raises(WeightsError, match="no fixed templates"):
        FewShot(tiny, templates=str(tmp_path / "head.safetensors"), **PLAIN)


def test_what_it_is_not_for_is_refused_before_the_first_example(tiny, words) -> None:
    for level in ("region", "pixel"):
        with pytest.raises(OptionError, match=f"vision is for level 'image', not '{level}'"):
            FewShot(tiny, "prompt", level=level, options={"vision": True}, **PLAIN)
    for settings, message in (
        ({"contexts": 2}, "one context"),
        ({"conditioned": True}, "conditioned reads features"),
        ({"views": 2}, "views reads features"),
        ({"vision": 1}, "true or false"),
    ):
        with pytest.raises(OptionError, match=message):
            made(tiny, **settings)
    with pytest.raises(OptionError, match="runs in bfloat16"):
        made(tiny.at_precision("bfloat16"))
    with pytest.raises(OptionError, match="the template has none"):
        fit(build("prompt", tower=tiny, templates=("{} in snow",), vision=True, folds=1), tiny, words)
    for pixels in (None, torch.zeros(5, 3, 32, 32), torch.full((6, 3, 32, 32), torch.nan)):
        with pytest.raises(ModelError, match="pixels are"):
            made(tiny).fit(torch.ones(6, 24), LABELLED, words, strings=STRINGS, pixels=pixels)
    with pytest.raises(ModelError, match="pixels are"):
        made(tiny, vision=False).fit(torch.ones(6, 24), LABELLED, words, strings=STRINGS, pixels=shown())
