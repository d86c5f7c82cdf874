"""Tokens beside the patches of an image tower, which follow from the words of the context (MaPLe, Khattak et al., CVPR
2023).

    p_j = F_j(v_j),  t = E_text(v_1..J, c),  f = E_image(x, p_1..J)
    min over v and F of  sum_i w_i CE(scale f_i.t, y_i) + tie mean_c |t_c - t0_c|^2

In each of the first J blocks of both towers n words stand before the name and n tokens behind the patches; at the next
block new ones take their places. F_j is a linear map of a block's words to the width of the image tower. Tokens enter
the first block without the tower's own norm before it, and are gone before the embedding is pooled. One context, as the
paper has it. Shape letters: J blocks, n tokens, W width of a word, D width of the image tower, B images, E joint space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch.nn import functional as F

from densevl.backbones.towers import NativeViT, TimmViT
from densevl.errors import ModelError, OptionError
from densevl.fewshot.prompts.contexts import Contexts, Parts, Tower, descend, joined, leaf, unit_prompts
from densevl.fewshot.prompts.fitting import Plan, Progress, all_or_none
from densevl.fewshot.prompts.training import Task, sized_step, sizes_of
from densevl.recipes.tower import Tower as ImageTower

BATCH = 32  # images that are judged together


@dataclass(frozen=True, eq=False)
class Coupling(Parts):
    """The maps F. Attributes: weight: (J, D, W). bias: (J, D)."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def drawn(cls, blocks: int, width: int, word_width: int, seed: int) -> Self:
        """Random maps, as linear layers begin."""
        generator, most = torch.Generator().manual_seed(seed), 1 / math.sqrt(word_width)

        def draw(*shape: int) -> torch.Tensor:
            return most * (2 * torch.rand(blocks, width, *shape, generator=generator) - 1)

        return cls(draw(word_width), draw())

    def tokens(self, words_nJW: torch.Tensor) -> torch.Tensor:
        """(J, n, D), of the words of each block."""
        return torch.einsum("njw,jdw->jnd", words_nJW.to(self.weight), self.weight) + self.bias[:, None]


@dataclass(frozen=True, eq=False)
class Coupled:
    """A context and the maps that lead from it to the image tower."""

    contexts: Contexts
    maps: Coupling

    def tokens(self) -> torch.Tensor:
        """(J, n, D)."""
        (words_nJ,), (front,) = self.contexts.words, self.contexts.fronts
        return self.maps.tokens(words_nJ[:front].unflatten(1, (len(self.maps.weight), -1)))

    def leaves(self, device: torch.device) -> Coupled:
        """A copy to be trained."""
        own = partial(leaf, device=device)
        return Coupled(self.contexts.map(own), self.maps.map(own))

    def detached(self) -> Coupled:
        """Without gradients."""
        return Coupled(self.contexts.map(torch.Tensor.detach), self.maps.map(torch.Tensor.detach))


def image_tower(model: Any, blocks: int) -> ImageTower:
    """The image tower of a model, if tokens can stand beside its patches in so many blocks.

    Raises:
        OptionError: they cannot.
    """
    tower = getattr(model, "tower", None)
    kind = getattr(tower, "kind", "none of densevl's")
    if type(tower) not in (NativeViT, TimmViT) or kind != "a ViT":
        lowered = getattr(model, "precision", "float32")
        why = f"it runs in {lowered}" if lowered != "float32" else f"its image tower is {kind}"
        raise OptionError(
            f"vision puts tokens beside the patches of a plain ViT in float32, and of model '{model.name}' {why}; "
            "leave vision out, or take mini or ViT-B-16/openai"
        )
    if blocks > tower.depth:  # type: ignore[union-attr]
        raise ModelError(f"vision with deep={blocks}: the image tower of '{model.name}' has {tower.depth} blocks")  # type: ignore[union-attr]
    return tower  # type: ignore[return-value]


def look(tower: ImageTower, pixels: torch.Tensor, tokens_JnD: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, E) of pixels (B, 3, S, S), not normalised; gradients reach the tokens.

    Tokens stand behind the leading ones, where the places of patches count from the end.
    """
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    x_BND = tower.embed(pixels, "size")
    lead, rest, count = tower.prefix, x_BND[:, tower.prefix :], tokens_JnD.shape[1]
    x_BND = torch.cat([x_BND[:, :lead], x_BND.new_zeros(len(x_BND), count, x_BND.shape[2]), rest], dim=1)
    for index in range(tower.depth):
        if index < len(tokens_JnD):
            own = tokens_JnD[index].to(x_BND).expand(len(x_BND), -1, -1)
            x_BND = torch.cat([x_BND[:, :lead], own, x_BND[:, lead + count :]], dim=1)
        x_BND = tower.run(index, x_BND, grid)
    return tower.pool(torch.cat([x_BND[:, :lead], x_BND[:, lead + count :]], dim=1))


class Looking:
    """A model whose image tower has tokens beside its patches, for whole images alone."""

    def __init__(self, model: Any, tokens_JnD: torch.Tensor) -> None:
        self._model, self._tower = model, image_tower(model, len(tokens_JnD))
        self._tokens, self.name = tokens_JnD.to(model.device), model.name
        self.picture_size, self.normalize = model.picture_size, model.normalize

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, E), not normalised."""
        return look(self._tower, pixels.to(self._tokens.device), self._tokens)


def train(
    tower: Tower, image: ImageTower, task: Task, start: Coupled, plan: Plan, hear: Callable[[], None]
) -> tuple[Coupled, float]:
    """Batches in a seeded order, Adam, a rate that falls as a cosine; the result, and the mean loss of the last round.

    Raises:
        ModelError: it diverges.
    """
    own = start.leaves(task.features.device)
    # One step changes a token by as large a share of it whatever the words' width.
    rates = [(own.contexts.words, plan.rate), ([own.maps.weight, own.maps.bias], 0.1 / own.maps.weight.shape[2])]
    solver = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in rates])
    sizes = [sizes_of(words, tower.word_width) for words in start.contexts.words]
    losses: list[float] = []
    for step, chosen_B in enumerate(plan.batches(len(task.targets))):
        for group, (_, rate) in zip(solver.param_groups, rates, strict=True):
            group["lr"] = rate * plan.fallen(step)
        solver.zero_grad(set_to_none=True)
        with torch.enable_grad():
            losses.append(gather(tower, image, own, task, chosen_B))
        sized_step(solver, own.contexts.words, sizes)
        if not math.isfinite(losses[-1]) or not all(torch.isfinite(one).all() for one in own.maps.tensors().values()):
            raise ModelError(f"learning prompts diverged at step {step + 1}; take a smaller rate")
        hear()
    return own.detached(), plan.recent(losses, len(task.targets))


def gather(tower: Tower, image: ImageTower, own: Coupled, task: Task, chosen_B: torch.Tensor) -> float:
    """Add the gradient of some samples' loss, scaled as that of all samples is, to words and maps; returns the loss."""
    pixels, share = task.pixels[chosen_B], len(task.targets) / len(chosen_B)  # type: ignore[index]
    unit_BE = F.normalize(look(image, pixels, own.tokens()), dim=-1)
    few = replace(task.part(chosen_B), features=unit_BE, weights=share * task.weights[chosen_B])
    return descend(tower, own.contexts, task.spoken, few.loss)[1]


@torch.no_grad()
def seen(image: ImageTower, pixels: torch.Tensor, tokens_JnD: torch.Tensor) -> torch.Tensor:
    """Unit embeddings (N, E) of pixels (N, 3, S, S), some at a time."""
    return torch.cat([F.normalize(look(image, part, tokens_JnD), dim=-1) for part in pixels.split(BATCH)])


@torch.no_grad()
def likelihood(
    tower: Tower, image: ImageTower, own: Coupled, task: Task, kept_N: torch.Tensor, smoothing: float
) -> float:
    """As `Task.likelihood`, of samples that are looked at with the tokens."""
    each = kept_N.nonzero().flatten()
    rows_CE = joined(unit_prompts(tower, own.contexts, task.spoken.strings), task.spoken.member)
    features = task.features.index_copy(0, each, seen(image, task.pixels[each], own.tokens()))  # type: ignore[index]
    return replace(task, features=features).likelihood(rows_CE, each, smoothing)


def learn(
    tower: Tower, task: Task, contexts: Contexts, blocks: int, plan: Plan, progress: Progress | None = None
) -> tuple[Coupled | None, dict[str, float]]:
    """A context and its maps; see `all_or_none`.

    Raises:
        OptionError: no word stands before the name, or the image tower takes no tokens.
    """
    image = image_tower(tower, blocks)
    if not contexts.fronts[0]:
        raise OptionError("vision makes tokens of the words before the name, and the template has none: take another")
    width = image.embed(task.pixels[:1], "size").shape[2]  # type: ignore[index]
    start = Coupled(contexts, Coupling.drawn(blocks, width, tower.word_width, plan.seed))
    return all_or_none(
        task, plan, partial(train, tower, image), start, lambda *judged: likelihood(tower, image, *judged), progress
    )
