"""The split of CLS by block, head and token against a float64 reading of the authors' code."""

from __future__ import annotations

import oracle_clip
import oracle_clip_scores
import pytest
import torch

from conftest import close, random_clip, wrap
from densevl.recipes import shares


@pytest.fixture(scope="module")
def exact():
    """A tiny CLIP in float64."""
    return wrap(random_clip().double())


def test_parts_by_head_are_those_of_the_authors(exact) -> None:
    pixels = torch.randn(3, 32, 32).double()
    tower = exact.tower
    outputs = [tower.embed(pixels[None], "size")]
    for index in range(tower.depth):
        outputs.append(tower.run(index, outputs[-1].clone(), (4, 4)))
    split = shares.Split(tower, outputs[-1])
    want, _, embedding = oracle_clip_scores.clip_prs(oracle_clip.Trunk(exact.model.state_dict(), heads=2), pixels)
    close(split.embedding_BE[0], embedding)
    for index in range(tower.depth):
        parts = shares.attention_parts(tower.view(index, (4, 4)), outputs[index], by_head=True)
        count = shares.count(tower.depth) * parts.shape[1] * parts.shape[2]
        found = split(parts.flatten(1, 2), 1 / count)[0].unflatten(0, parts.shape[1:3])
        close(found, want[index].transpose(0, 1))


def test_heads_add_up_to_the_recipe(exact) -> None:
    pixels = torch.randn(2, 3, 32, 32).double()
    tower = exact.tower
    want = exact.encode_dense(pixels, "clip_prs").features
    x, total = tower.embed(pixels, "size"), 0
    for index in range(tower.depth):
        parts = shares.attention_parts(tower.view(index, (4, 4)), x, by_head=True)
        total, x = total + parts.sum(1), tower.run(index, x.clone(), (4, 4))
    found = shares.Split(tower, x)(total, tower.depth / (shares.count(tower.depth) * x.shape[1]))
    close(found[:, 1:].mT.unflatten(2, (4, 4)), want)
