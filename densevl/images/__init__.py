"""Read images: any source becomes uint8 RGB (H, W, 3), or a one-line error. Also resizing and listing of folders.

Only numpy and Pillow are needed; torch is not imported.
"""

from densevl.images.decoding import kind_of
from densevl.images.depth import bit_depth
from densevl.images.limit import MAX_PIXELS, pixel_limit
from densevl.images.listing import EXTENSIONS, Found, find_images, list_images
from densevl.images.notes import ImageWarning
from densevl.images.pixels import UInt8Array, encode_png
from densevl.images.reading import Header, header, read_image, read_labels, read_values
from densevl.images.resizing import keep_ratio_size, resize

__all__ = [
    "read_image",
    "read_labels",
    "read_values",
    "header",
    "Header",
    "list_images",
    "find_images",
    "Found",
    "resize",
    "keep_ratio_size",
    "encode_png",
    "kind_of",
    "ImageWarning",
    "bit_depth",
    "pixel_limit",
    "UInt8Array",
    "MAX_PIXELS",
    "EXTENSIONS",
]
