"""Template weights per image, region and pixel against autograd and a plain reading of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from densevl.vocabulary.template_weights import image_classifier, template_weights


def _prompts(templates: int, strings: int, width: int = 16) -> torch.Tensor:
    torch.manual_seed(3)
    return F.normalize(torch.randn(strings, width) + 0.5 * torch.randn(templates, strings, width), dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_weights_follow_the_gradient_of_the_logsumexp(temperature) -> None:
    prompts, image = _prompts(9, 5), F.normalize(torch.randn(16), dim=0)
    cosines = (prompts @ image).double()
    rho = torch.zeros(9, dtype=torch.double, requires_grad=True)
    scores = torch.softmax(rho, 0) @ cosines
    (gradient,) = torch.autograd.grad(torch.logsumexp(scores / temperature, 0) * temperature, rho)
    weights = template_weights(cosines[None], temperature=temperature)[0]
    step = torch.log(weights) - torch.log(weights).mean()
    alpha = (step @ gradient) / (gradient @ gradient)
    assert alpha > 0
    torch.testing.assert_close(step, alpha * (gradient - gradient.mean()), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("entropy", [0.5, 0.85, 0.99])
@pytest.mark.parametrize("spread", [1e-4, 1.0])
def test_the_step_is_as_long_as_the_entropy_says(entropy, spread) -> None:
    cosines = 0.2 + spread * torch.randn(6, 12, 4)
    weights = template_weights(cosines, entropy=entropy)
    found = -(weights * weights.log()).sum(1) / math.log(12)
    torch.testing.assert_close(found, torch.full((6,), entropy), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))


@pytest.mark.parametrize("prompts", [_prompts(1, 4), _prompts(1, 4).expand(5, 4, 16)], ids=["one", "all-equal"])
def test_templates_that_do_not_differ_weigh_the_same(prompts) -> None:
    weights = template_weights((prompts @ torch.randn(16))[None])
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(prompts)))


def test_a_template_the_image_likes_gains() -> None:
    prompts = _prompts(4, 3)
    image = prompts[2].mean(0)
    weights = template_weights((prompts @ F.normalize(image, dim=0))[None])[0]
    assert weights.argmax() == 2
    rows = image_classifier(prompts, image)
    torch.testing.assert_close(rows, F.normalize(torch.einsum("m,mtd->td", weights, prompts), dim=-1))
