"""Draw label maps: the palette, the coloured photo with names and legend, and sheets of several pictures."""

from densevl.drawing.captions import Captions
from densevl.drawing.colours import palette
from densevl.drawing.overlays import draw_key, draw_overlay, draw_shares
from densevl.drawing.sheets import contact_sheet, encode_sheet
from densevl.drawing.signed import draw_signed, signed_bar

__all__ = [
    "palette",
    "draw_overlay",
    "draw_shares",
    "draw_key",
    "draw_signed",
    "signed_bar",
    "contact_sheet",
    "encode_sheet",
    "Captions",
]
