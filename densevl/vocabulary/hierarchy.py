"""Classes whose strings are narrower words, {"animal": ["cat", "dog"]}: the class weights its strings (CHiLS).

Novack et al. multiply the probability of a child among all children by that of its parent among all parents, and answer
with the parent of the best product. Products are sums of logarithms, so the per-pixel decoder does not change: it gets
other rows, or a number to add to each query's scores. Here the name of a class is the parent and its strings are the
children; a string without a class (background words, negatives) is its own parent.
Shape letters: T query strings, C classes, D joint-space width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.vocabulary.background import NOTHING


def pixel_rows(vectors_TD: torch.Tensor, parents_CD: torch.Tensor, classes_T: torch.Tensor) -> torch.Tensor:
    """Rows (T, D) whose cosines rank strings as p(child | pixel) * p(parent | pixel) does.

    Both softmax sums are the same for all strings of a pixel, so the product has the order of t_child + t_parent; the
    mean of the two keeps the scale. The rows are not unit vectors, because the cosines are added, not the vectors.
    """
    own_T = (classes_T == NOTHING)[:, None]
    return torch.where(own_T, vectors_TD, (vectors_TD + parents_CD[classes_T.clamp(min=0)]) / 2)


def image_log_prior(
    image_D: torch.Tensor, vectors_TD: torch.Tensor, parents_CD: torch.Tensor, classes_T: torch.Tensor, scale: float
) -> torch.Tensor:
    """log p(parent | image) of each string, (T,) float32: softmax of scale * cosine over classes and classless strings.

    Args:
        image_D: feature of the whole image, any length.
        vectors_TD, parents_CD: unit rows of strings and of class names; classes_T: as `TextEmbeddings.classes`.
        scale: multiplies cosines, CLIP's own logit scale.
    """
    own_T = classes_T == NOTHING
    supers = torch.cat([parents_CD, vectors_TD[own_T]])
    log_p = torch.log_softmax(scale * (supers @ F.normalize(image_D.float(), dim=-1)), dim=0)
    index = torch.where(own_T, len(parents_CD) + own_T.cumsum(0) - 1, classes_T)
    return log_p[index]
