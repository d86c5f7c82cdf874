"""The photo model: ImageNet objects named by any word, with weights from a package index. It is not a CLIP."""

from densevl.backbones.photo.model import Photo

__all__ = ["Photo"]
