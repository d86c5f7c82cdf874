"""densevl: open-vocabulary dense prediction. Name some labels and get the segmentation of a photo, without training.

    import densevl
    segment = densevl.Segmenter("auto")
    result = segment("street.jpg", ["road", "car | truck", "sky"])
    result.save("street.png")

The public names are listed in `__init__.pyi`, for editors and for this module alike. Each is loaded on first use, so
importing densevl imports neither torch nor any model.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
