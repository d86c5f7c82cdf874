"""Label propagation against the linear system written out with dense matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densevl.errors import ImageError, RecipeError
from densevl.inference import WindowGrid, decode
from densevl.kernels import dense_scores
from densevl.refine import PatchGraph, PixelPropagation, propagate_patches
from densevl.refine.color import rgb_to_lab

ALPHA = 0.95


def normalised(weights: np.ndarray) -> np.ndarray:
    np.fill_diagonal(weights, 0)
    total = weights.sum(1)
    total[total == 0] = 1
    return weights / np.sqrt(np.outer(total, total))


def solved(graph: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.linalg.solve(np.eye(len(graph)) - ALPHA * graph, scores)


def ten_steps(graph: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Textbook conjugate gradients, one column after another."""
    system, out = np.eye(len(graph)) - ALPHA * graph, np.zeros_like(scores)
    for column, b in enumerate(scores.T):
        x, r, p = np.zeros_like(b), b.copy(), b.copy()
        for _ in range(10):
            if np.linalg.norm(r) <= 1e-6 * np.linalg.norm(b):
                break
            step = r @ r / (p @ system @ p)
            x, old, r = x + step * p, r, r - step * (system @ p)
            p = r + r @ r / (old @ old) * p
        out[:, column] = x
    return out


def patch_graph(features: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    weights = np.zeros((len(unit), len(unit)))
    for i, cosines in enumerate(unit @ unit.T):
        for j in np.argsort(-cosines)[:k]:
            weights[i, j] = max(0, cosines[j]) ** 3 * math.exp(-0.01 * np.linalg.norm(places[i] - places[j]))
    return normalised(weights + weights.T)


def pixel_graph(image: np.ndarray, radius: int, temperature: float) -> np.ndarray:
    lab = rgb_to_lab(torch.from_numpy(image)[None])[0].numpy() / np.array([100, 128, 128])[:, None, None]
    _, height, width = image.shape
    weights = np.zeros((height * width, height * width))
    for y in range(height):
        for x in range(width):
            for v in range(max(0, y - radius), min(height, y + radius + 1)):
                for u in range(max(0, x - radius), min(width, x + radius + 1)):
                    gap = np.linalg.norm(lab[:, y, x] - lab[:, v, u])
                    weights[y * width + x, v * width + u] = math.exp(-gap / temperature)
    return normalised(weights)


@pytest.fixture(scope="module")
def patches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features in three groups, places of overlapping windows, scores."""
    generator = torch.Generator().manual_seed(3)
    groups = torch.randn(3, 16, generator=generator)[torch.randint(3, (60,), generator=generator)]
    features = groups + 0.7 * torch.randn(60, 16, generator=generator)
    return features, torch.randint(0, 20, (60, 2), generator=generator) * 16.0, torch.randn(60, 5, generator=generator)


@pytest.mark.parametrize("k", [1, 7, 60, 400])
def test_patches_equal_the_solved_system(patches, k) -> None:
    features, places, scores = patches
    want = solved(patch_graph(features.double().numpy(), places.double().numpy(), k), scores.double().numpy())
    got = PatchGraph(features, places, neighbours=k).propagate(scores, tolerance=1e-6)
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max())
    rough = PatchGraph(features, places, neighbours=k).propagate(scores)
    assert np.linalg.norm(rough - want) <= 1.01e-3 * np.linalg.norm(want)


def test_compat_equals_ten_textbook_steps(patches) -> None:
    features, places, scores = patches
    want = ten_steps(patch_graph(features.double().numpy(), places.double().numpy(), 400), scores.double().numpy())
    got = propagate_patches(scores, features, places, compat=True)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("size", [(6, 9), (1, 7), (9, 2), (1, 1)])
@pytest.mark.parametrize("radius", [2, 6])
@pytest.mark.parametrize("strip", [1, 4, 64])
def test_pixels_equal_the_solved_system(size, radius, strip, monkeypatch) -> None:
    monkeypatch.setattr("densevl.refine.propagation.STRIP_ROWS", strip)
    generator = torch.Generator().manual_seed(0)
    image, scores = torch.rand(2, 3, *size, generator=generator), torch.randn(2, 3, *size, generator=generator)
    exact = PixelPropagation(image, radius=radius, temperature=0.3, tolerance=1e-6)(scores)
    steps = PixelPropagation(image, radius=radius, temperature=0.3, compat=True)(scores)
    for index in range(2):
        graph = pixel_graph(image[index].double().numpy(), radius, 0.3)
        columns = scores[index].flatten(1).T.double().numpy()
        want = solved(graph, columns)
        np.testing.assert_allclose(exact[index].flatten(1).T, want, atol=3e-5 * np.abs(want).max())
        want = ten_steps(graph, columns)
        np.testing.assert_allclose(steps[index].flatten(1).T, want, atol=1e-4 * np.abs(want).max())


def test_the_default_is_linear_so_classes_may_be_solved_apart(patches) -> None:
    features, places, scores = patches
    graph, mix = PatchGraph(features, places), torch.randn(5, 2)
    torch.testing.assert_close(graph.propagate(scores) @ mix, graph.propagate(scores @ mix), atol=1e-4, rtol=1e-4)
    image, volume = torch.rand(1, 3, 12, 10), torch.randn(1, 20, 12, 10)
    refine = PixelPropagation(image)
    apart = torch.cat([refine(part) for part in volume.split(7, dim=1)], dim=1)
    torch.testing.assert_close(refine(volume), apart, atol=1e-4, rtol=1e-4)
    for compat in (False, True):  # nor does an image depend on its batch
        both = PixelPropagation(image.repeat(2, 1, 1, 1) * torch.tensor([1, 0.3]).view(2, 1, 1, 1), compat=compat)
        alone = PixelPropagation(image, compat=compat)
        torch.testing.assert_close(both(volume.repeat(2, 1, 1, 1))[:1], alone(volume), atol=1e-4, rtol=1e-4)


def test_scores_fill_an_object_and_stop_at_its_edge() -> None:
    image = torch.zeros(1, 3, 16, 24)
    image[..., 10:] = 0.8
    scores = torch.zeros(1, 2, 16, 24)
    scores[0, 0, 8, 4] = scores[0, 1, 8, 18] = 1
    labels = PixelPropagation(image)(scores).argmax(dim=1)[0]
    assert (labels[:, :10] == 0).all()
    assert (labels[:, 10:] == 1).all()


def test_it_refines_inside_decode() -> None:
    image, scores = torch.rand(1, 3, 24, 32), torch.randn(1, 3, 4, 20)
    plan = WindowGrid.place(24, 32, None, 1, 8).plan(24, 32)
    refine = PixelPropagation(image)
    got = decode(scores, plan, torch.arange(20), scale=10.0, refine=refine)
    assert torch.equal(got.labels.long(), refine(dense_scores(scores, plan)).argmax(dim=1))


def test_flat_photos_and_lone_patches_stay_finite() -> None:
    scores = torch.randn(1, 2, 8, 8)
    for compat in (False, True):
        assert PixelPropagation(torch.full((1, 3, 8, 8), 0.4), compat=compat)(scores).isfinite().all()
        lone = PatchGraph(torch.eye(3), torch.zeros(3, 2))  # no patch is like another
        columns = scores[0, :, 0, :3].T
        torch.testing.assert_close(lone.propagate(columns, tolerance=1e-7, steps=10 if compat else None), columns)
        zero = torch.zeros(1, 1, 8, 8)
        assert torch.equal(PixelPropagation(torch.rand(1, 3, 8, 8), compat=compat)(zero), zero)


def test_known_colours() -> None:
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.02, 0.02, 0.02]]).T.view(1, 3, 1, 5)
    lab = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86], [1.40, 0, 0]]
    torch.testing.assert_close(rgb_to_lab(rgb)[0, :, 0].T, torch.tensor(lab), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: PixelPropagation(torch.rand(1, 3, 4, 4) * 255), ImageError, r"within 0\.\.1"),
        (lambda: PixelPropagation(torch.rand(3, 4, 4)), ImageError, r"\(B, 3, H, W\)"),
        (lambda: PixelPropagation(torch.rand(1, 3, 4, 4), radius=0), RecipeError, "radius"),
        (lambda: PixelPropagation(torch.rand(1, 3, 4, 4), alpha=1.0), RecipeError, "alpha"),
        (lambda: PatchGraph(torch.rand(4, 3), torch.rand(5, 2)), RecipeError, "same patches"),
        (lambda: PatchGraph(torch.rand(4, 3), torch.rand(4, 2), neighbours=0), RecipeError, "at least 1"),
        (lambda: propagate_patches(torch.rand(3, 2), torch.rand(4, 3), torch.rand(4, 2)), RecipeError, "N = 4"),
    ],
)
def test_what_does_not_fit_is_refused(call, kind, words) -> None:
    with pytest.raises(kind, match=words):
        call()
