"""Pairs of text and image against Jacobians by autograd, a bilinear toy, and the rule of the sum."""

from __future__ import annotations

import pytest
import torch

from conftest import close, random_clip, wrap
from densevl.errors import LabelError, ModelError
from densevl.explaining.captions import read_caption
from densevl.explaining.second_order import Integrated, LastBlock, forward_derivative, integrate, interact

CAPTION = "a red cat"


@pytest.fixture(scope="module")
def exact():
    """A tiny CLIP in float64."""
    return wrap(random_clip().double())


def jacobian(embed, x: torch.Tensor, reference: torch.Tensor, points: int) -> torch.Tensor:
    """The mean Jacobian along the path times x - r, by autograd and midpoints: (N, E)."""
    places = (torch.arange(points).double() + 0.5) / points
    at = (reference + places[:, None, None] * (x - reference)).requires_grad_()
    found = embed(at).mean(dim=0)
    rows = [torch.autograd.grad(value, at, retain_graph=True)[0].sum(dim=0) for value in found]
    return (torch.stack(rows, dim=1) * (x - reference)[:, None]).sum(dim=-1)


def image_side(backbone):
    tower = backbone.tower
    block = tower._blocks[-1]

    def before(pixels):
        x = tower.embed(pixels, "size")
        for index in range(tower.depth - 1):
            x = tower.run(index, x.clone(), (4, 4))
        return x[0]

    def embed(x):
        return backbone.model.visual.ln_post(block(x)[:, 0]) @ backbone.model.visual.proj

    pixels = torch.randn(1, 3, 32, 32).double()
    read = LastBlock(tower.view(tower.depth - 1, (4, 4)), 0, tower.read)
    return read, before(pixels), before(torch.zeros_like(pixels)), embed


def test_the_last_block_of_an_image_is_its_jacobian(exact) -> None:
    read, x, reference, embed = image_side(exact)
    close(read(x), embed(x[None])[0])
    found = integrate(read, x, reference)
    close(found.changes_NE, jacobian(embed, x, reference, 1000), tolerance=1e-5, why="midpoints of the oracle")
    middle = (x + reference) / 2  # at one place, where no rule of integration counts
    close(read.changes(middle[None], x - reference)[0], jacobian(embed, x, reference, 1))


@pytest.mark.parametrize("block", [-1, 1])
def test_blocks_of_a_text_are_their_jacobian(exact, block) -> None:
    caption, model = read_caption(exact, CAPTION, block), exact.model

    def embed(x):
        mask = torch.full((x.shape[1],) * 2, -torch.inf).double().triu(1)
        for own in list(model.transformer.resblocks)[-1 if block < 0 else 0 :]:
            x = own(x, attn_mask=mask)
        return model.ln_final(x)[:, -1] @ model.text_projection

    x, reference = caption.x_SD, caption.reference_SD
    close(embed(x[None])[0], exact.encode_text([CAPTION])[0].double(), tolerance=1e-6, why="float32")
    middle = (x + reference) / 2
    close(caption.read.changes(middle[None], x - reference)[0], jacobian(embed, x, reference, 1))


def test_pairs_add_up_to_what_the_references_leave(exact) -> None:
    read, x, reference, embed = image_side(exact)
    caption = read_caption(exact, CAPTION)
    found = interact(integrate(caption.read, caption.x_SD, caption.reference_SD), integrate(read, x, reference))
    text, none = caption.read(caption.x_SD), caption.read(caption.reference_SD)
    image, empty = embed(torch.stack([x, reference]))
    want = (text - none) @ (image - empty) / text.norm() / image.norm()
    close(found.pairs_SN.sum(), want, tolerance=1e-4, why="the promise")
    assert abs(found.gap) < 1e-4
    close(torch.tensor(found.score), (text @ image / text.norm() / image.norm()).float())


def test_the_mark_of_the_start_is_the_same_in_the_reference(exact) -> None:
    caption = read_caption(exact, CAPTION)
    close(caption.x_SD[0], caption.reference_SD[0])


def test_a_bilinear_score_is_split_exactly() -> None:
    text, image = torch.randn(3, 5).double(), torch.randn(4, 6).double()
    left, right = torch.randn(5, 7).double(), torch.randn(6, 7).double()

    class Linear:
        def __init__(self, matrix):
            self.matrix = matrix

        def __call__(self, x):
            return x.sum(0) @ self.matrix

        def tokens(self, count):
            return count

        def changes(self, x_PND, delta_ND):
            return (delta_ND @ self.matrix).expand(len(x_PND), -1, -1)

    sides = [integrate(Linear(m), x, torch.zeros_like(x)) for x, m in ((text, left), (image, right))]
    found = interact(*sides)
    norm = (text.sum(0) @ left).norm() * (image.sum(0) @ right).norm()
    for i in range(3):
        for j in range(4):
            close(found.pairs_SN[i, j], text[i] @ left @ right.T @ image[j] / norm)
    assert isinstance(sides[0], Integrated)


def test_a_forward_derivative_is_a_difference() -> None:
    x, delta = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    layer = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 5), torch.nn.GELU()).double()
    layer.requires_grad_(False)
    want = (layer(x + 1e-6 * delta) - layer(x - 1e-6 * delta)) / 2e-6
    close(forward_derivative(layer, x, delta), want, tolerance=1e-7, why="a difference of steps")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", LabelError, "has no words"),
        ("cat " * 40, LabelError, "longer than the 20 tokens"),
    ],
)
def test_captions_that_cannot_be_read_are_refused(tiny, text, error, said) -> None:
    with pytest.raises(error, match=said):
        read_caption(tiny, text)


def test_sub_words_are_joined(tiny) -> None:
    caption = read_caption(tiny, "An unbelievableness, café!")
    assert caption.words == ("an", "unbelievableness", ",", "café", "!")
    assert caption.owners[0] == caption.owners[-1] == -1
    assert sorted(set(caption.owners)) == [-1, 0, 1, 2, 3, 4]
    assert len(caption.owners) > 7


def test_another_tokenizer_is_refused(tiny) -> None:
    other = wrap(tiny.model)
    other.tokenizer = lambda texts: torch.zeros(len(texts), 20, dtype=torch.long)
    with pytest.raises(ModelError, match="no transformer of CLIP"):
        read_caption(other, CAPTION)
