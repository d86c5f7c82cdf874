"""Weights files: one reader for all of them, as data, and the strict comparison of tensors with a network.

This room lies below every room that loads a network (proposals, regions, backbones, fitted heads), so that a damaged
file is the same one line for all of them. The files that densevl ships lie here too. Names load when first used: torch
is not imported here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
