"""Models behind one contract: pixels to dense features, words to embeddings in the same space."""

from densevl.backbones.base import Backbone, DenseFeatures, Protocol
from densevl.backbones.load import available, load_backbone

__all__ = ["Backbone", "DenseFeatures", "Protocol", "available", "load_backbone"]
