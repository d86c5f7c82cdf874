"""An image tower and a text tower that were not trained together, joined by two small projectors."""

from densevl.backbones.projected.model import Projected

__all__ = ["Projected"]
