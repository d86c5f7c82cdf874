"""Weights files: one reader for all of them, as data, and the strict comparison of tensors with a network.

This room lies below every room that loads a network (proposals, regions, backbones, fitted heads), so they all report a
damaged file alike. The files that densevl ships are here too. Names load on first use: torch is not imported here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
