"""Named regions for other people's detectors: their results named, and words in place of their classes.

What a name needs is imported when it is first asked for; a package that is missing is said in one line with its
install command.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
