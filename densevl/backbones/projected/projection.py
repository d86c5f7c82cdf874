"""The last visual projection of a CLIP: read it, and make a model with another one.

The new model shares all other weights with the old one, which is unchanged. With the identity as projection, features
are returned as they are before it.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from densevl.backbones.base import Backbone
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.precision import LoweredTower
from densevl.backbones.towers import NativeViT
from densevl.errors import ModelError


def projection_of(backbone: Backbone) -> torch.Tensor:
    """The matrix (D, E) that brings tokens and image features into the joint space, float32.

    Raises:
        ModelError: the model's tower has no such matrix.
    """
    return _native(backbone).model.visual.proj.detach().float().clone()


def with_projection(backbone: Backbone, matrix_DE: torch.Tensor) -> Backbone:
    """A model with another visual projection; its image embeddings are as wide as the matrix.

    Words stay in the old joint space, so they can be compared only if the matrix leads there too.

    Raises:
        ModelError: the model's tower has no projection, or the matrix does not fit it.
    """
    clip = _native(backbone)
    old = clip.model.visual
    if matrix_DE.ndim != 2 or len(matrix_DE) != len(old.proj) or not torch.isfinite(matrix_DE).all():
        raise ModelError(f"a projection of {tuple(matrix_DE.shape)} for features {len(old.proj)} wide: finite (D, E)")
    shared = {id(tensor): tensor for tensor in chain(clip.model.parameters(), clip.model.buffers())}
    copied = copy.deepcopy(clip.model, shared)
    copied.visual.proj = nn.Parameter(matrix_DE.to(old.proj).clone(), requires_grad=False)
    return clip.around(copied)


def _native(backbone: Backbone) -> OpenClipBackbone:
    tower = getattr(backbone, "tower", None)
    tower = tower.trained if isinstance(tower, LoweredTower) else tower
    if not isinstance(backbone, OpenClipBackbone) or not isinstance(tower, NativeViT):
        raise ModelError(
            f"model '{backbone.name}' has no visual projection of its own to train; this works for open_clip's native "
            "ViT, such as ViT-B-16/openai or mini"
        )
    return backbone
