"""Draw lines of text in a font of this machine that has their letters."""

from __future__ import annotations

import bisect
import math
import os
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageDraw, ImageFont

from densevl.drawing.colours import Colour

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font has little beyond ASCII. Other names use the first of these fonts that has all their letters, or
# else another system font.
PREFERRED = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)
SCRIPTS = {
    **{"Greek": "Ω", "Cyrillic": "Ж", "Armenian": "Ա", "Georgian": "ა", "Hebrew": "א", "Arabic": "ع", "Ethiopic": "አ"},
    **{
        "Devanagari": "अ",
        "Bengali": "অ",
        "Gurmukhi": "ਅ",
        "Gujarati": "અ",
        "Tamil": "அ",
        "Telugu": "అ",
        "Kannada": "ಅ",
    },
    **{"Malayalam": "അ", "Sinhala": "අ", "Thai": "ก", "Lao": "ກ", "Burmese": "က", "Khmer": "ក", "Chinese": "东"},
    **{"traditional Chinese": "東", "Japanese": "の", "Korean": "한"},
}
"""One letter of each script, for finding fonts."""
MOST_FONTS = 300
STYLED = ("bold", "italic", "oblique", "mono", "condensed", "narrow", "light", "thin", "black", "lastresort")
UNKNOWN = "?"
"""Replaces letters that no font has."""


class Line(NamedTuple):
    """One line of text with a font that can draw it. Attributes: whole: whether the font has all its letters."""

    text: str
    font: Font
    whole: bool = True

    @property
    def length(self) -> float:
        """Length in pixels."""
        return self.font.getlength(self.text)

    def draw(self, draw: ImageDraw.ImageDraw, left: float, middle: float, ink: Colour) -> None:
        """Draw the text to the right of a point."""
        anchor = "lm" if isinstance(self.font, ImageFont.FreeTypeFont) else None
        draw.text((left, middle if anchor else middle - 6), self.text, fill=ink, font=self.font, anchor=anchor)


def text_size(height: int, width: int) -> int:
    """Return a text height in pixels that is readable below a picture of this size, whatever its aspect ratio."""
    return round(min(max(13, math.sqrt(height * width) / 36), max(13, width / 16), 72))


def line(text: str, size: int, width: float = math.inf) -> Line:
    """Choose a font for a text, replace letters that no font has by "?", and cut it to `width` pixels.

    A text in which no letter can be drawn becomes empty.
    """
    text = "".join(c if c.isprintable() or unicodedata.category(c) == "Cf" else " " for c in text[:500])
    text = " ".join(text.split())  # removes lone surrogates, which fonts refuse
    font, whole = _font(size), True
    for name in _fonts_for(text):
        font = _font(size, name)
        if all(_has(font, c) for c in text):
            break
    else:
        font, whole = _font(size), False
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        text = "".join(c if _has(font, c) else UNKNOWN for c in text)
        if not any(c.isalnum() for c in text):
            text = ""
    if font.getlength(text) <= width:
        return Line(text, font, whole)
    lengths = range(1, len(text) + 1)
    fitting = bisect.bisect_right(lengths, width, key=lambda length: font.getlength(f"{text[:length]}..."))
    return Line(f"{text[:fitting].rstrip()}...", font, whole)


def undrawn_scripts() -> list[str]:
    """Return the scripts for which this machine has no font."""
    probes = [_font(16, name) for name in ("", *PREFERRED, *_others())]
    return [script for script, letter in SCRIPTS.items() if not any(_has(font, letter) for font in probes)]


def _fonts_for(text: str) -> tuple[str, ...]:
    """Return names or paths of fonts to try, best first. System fonts are only searched if needed."""
    usual = ("", *PREFERRED)
    known = all(any(_has(_font(16, name), c) for name in usual) for c in text)
    return usual if known else (*usual, *_others())


@lru_cache(maxsize=1)
def _others() -> tuple[str, ...]:
    """Return system fonts that have a script which the preferred fonts lack."""
    found: list[str] = []
    left = dict(SCRIPTS)
    for path in _system_fonts():
        try:
            font = ImageFont.truetype(path, 16)
        except (OSError, ImportError):
            continue
        if own := [script for script, letter in left.items() if _has_now(font, letter)]:
            found.append(path)
            left = {script: letter for script, letter in left.items() if script not in own}
    return tuple(found)


def _system_fonts() -> list[str]:
    """Return the font files of this machine, plain styles first, always in the same order."""
    home, data = Path.home(), os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(folder, "fonts") for folder in data.split(os.pathsep)] + [home / ".local/share/fonts"]
    if sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    elif sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", "C:/Windows"), "fonts")]
    files = {str(file) for folder in folders for kind in ("*.tt[fc]", "*.otf") for file in folder.rglob(kind)}
    ranked = sorted(files, key=lambda path: (sum(word in path.lower() for word in STYLED), path))
    return ranked[:MOST_FONTS]


@lru_cache(maxsize=256)
def _font(size: int, name: str = "") -> Font:
    """Load a font by file name from the system's folders, or Pillow's own if there is none or no name is given."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
    except OSError:
        return ImageFont.load_default(size=size)
    except ImportError:  # a Pillow built without FreeType has one small bitmap font
        return ImageFont.load_default()


def _has_now(font: Font, character: str) -> bool:
    """Return whether a font draws a character as something other than its box for missing ones."""
    if character.isascii() or unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return True
    if not isinstance(font, ImageFont.FreeTypeFont):
        return False
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


_has = lru_cache(maxsize=8192)(_has_now)
