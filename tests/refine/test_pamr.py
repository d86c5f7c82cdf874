"""PAMR against its formula written out, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densevl.refine import Pamr


def written_out(image: np.ndarray, scores: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """(3, H, W) and (C, H, W) float64 to (C, H, W), by plain loops."""
    _, height, width = image.shape
    around = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def at(volume, y, x):
        return volume[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    for _ in range(iterations):
        refined = np.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                sample = np.stack([at(image, y + dy, x + dx) for dy, dx in around])
                spread = 1e-8 + 0.1 * sample.std(axis=0, ddof=1)
                moves = [(dy, dx) for dy, dx in around if (dy, dx) != (0, 0)]
                logits = [-(abs(at(image, y, x) - at(image, y + dy, x + dx)) / spread).mean() for dy, dx in moves]
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                refined[:, y, x] = sum(
                    w * at(scores, y + dy, x + dx) for w, (dy, dx) in zip(weights, moves, strict=True)
                )
        scores = refined
    return scores


@pytest.mark.parametrize("dilations", [(1,), (2, 5)])
@pytest.mark.parametrize("size", [(7, 9), (1, 6), (1, 1)])
def test_equals_the_formula(dilations, size) -> None:
    image, scores = torch.rand(3, *size), torch.randn(2, *size)
    got = Pamr(image[None], iterations=2, dilations=dilations)(scores[None])[0]
    want = written_out(image.double().numpy(), scores.double().numpy(), 2, dilations)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_flat_photo_gives_a_plain_mean_not_nan() -> None:
    got = Pamr(torch.full((1, 3, 8, 8), 0.3))(torch.randn(1, 2, 8, 8))
    assert torch.isfinite(got).all()


def test_the_scale_of_the_photo_does_not_matter() -> None:
    image, scores = torch.rand(2, 3, 20, 30), torch.randn(2, 4, 20, 30)
    torch.testing.assert_close(Pamr(image)(scores), Pamr(image * 255 - 7)(scores), atol=1e-4, rtol=0)
