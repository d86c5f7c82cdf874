"""Models behind one contract: pixels to dense features, words to embeddings in the same space."""

from densevl.backbones.base import Backbone
from densevl.backbones.load import available, load_backbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.recipes.features import DenseFeatures

__all__ = ["Backbone", "DenseFeatures", "InferenceProtocol", "available", "load_backbone"]
