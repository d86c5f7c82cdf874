"""Models behind one interface: pixels to dense features, words to embeddings in the same space.

Names load on first use: torch is not imported here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
