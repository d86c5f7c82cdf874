"""Solving (I - alpha S) Z = Y for a graph S that is symmetric with eigenvalues within -1..1.

There are two ways. Chebyshev iteration runs a number of steps fixed by alpha and the tolerance, so Z is a linear
function of Y: any part of the columns may be solved separately, and features may be spread once for every vocabulary.
Conjugate gradients cut after a few steps, as LPOSS runs them, are not linear in Y; they are kept to reproduce it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Graph = Callable[[torch.Tensor], torch.Tensor]


def chebyshev_steps(alpha: float, tolerance: float) -> int:
    """Steps after which the error is under `tolerance` times the first one, in the 2-norm."""
    root = math.sqrt((1 + alpha) / (1 - alpha))
    return max(1, math.ceil(math.log(2 / tolerance) / math.log((root + 1) / (root - 1))))


def chebyshev(graph: Graph, y: torch.Tensor, alpha: float, tolerance: float) -> torch.Tensor:
    """Solve by Chebyshev iteration over the spectrum 1 - alpha .. 1 + alpha.

    Args:
        graph: Z to S Z, for any number of columns. y: the input of S, of any shape.
        alpha: between 0 and 1, both excluded. tolerance: see `chebyshev_steps`.
    """
    direction, solution, residual = y.clone(), y.clone(), y
    rho = alpha
    for step in range(1, chebyshev_steps(alpha, tolerance)):
        # the residual after adding `direction`: r - (I - alpha S) p
        residual = torch.sub(residual, direction).add_(graph(direction), alpha=alpha)
        following = 1 / (2 / alpha - rho) if step > 1 else alpha / (2 - alpha * alpha)
        momentum = following * (rho if step > 1 else alpha)
        direction.mul_(momentum).add_(residual, alpha=2 * following / alpha)
        solution += direction
        rho = following
    return solution


def conjugate_gradients(
    graph: Graph, y: torch.Tensor, alpha: float, *, iterations: int, tolerance: float, dims: tuple[int, ...]
) -> torch.Tensor:
    """Solve every column by its own conjugate gradients from zero, all columns at once.

    Args:
        graph, y, alpha: as for `chebyshev`.
        iterations: largest number of steps.
        tolerance: a column stops when its residual is at most this fraction of its right-hand side.
        dims: the dimensions of y that make one column.
    """
    solution, residual = torch.zeros_like(y), y.clone()
    direction = residual.clone()
    squares = (residual * residual).sum(dims, keepdim=True)
    goal = tolerance**2 * squares
    for _ in range(iterations):
        active = squares > goal
        if not active.any():
            break
        product = torch.sub(direction, graph(direction), alpha=alpha)
        # a finished column stays as it is; its quotient would be 0 / 0
        curvature = (direction * product).sum(dims, keepdim=True)
        step = torch.where(active, squares / torch.where(active, curvature, 1), 0)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, product, value=-1)
        following = torch.where(active, (residual * residual).sum(dims, keepdim=True), squares)
        ratio = torch.where(active, following / torch.where(active, squares, 1), 0)
        direction.mul_(ratio).add_(residual)
        squares = following
    return solution
