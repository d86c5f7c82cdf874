"""The photo model: ImageNet objects named by any word, from weights that live on a package index. Not CLIP."""

from densevl.backbones.photo.model import Photo

__all__ = ["Photo"]
