"""Named regions for third-party detectors: names for their results, and words in place of their classes.

A name's dependencies are imported on first access; a missing package raises one line with its install command.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
