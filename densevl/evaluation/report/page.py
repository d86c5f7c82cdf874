"""HTML pages from the templates beside this file; everything except charts is escaped."""

from __future__ import annotations

import base64
import io
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from densevl import __version__
from densevl.evaluation.report import charts

_WIDTH = 320
"""Smallest size of a picture on a page, in pixels."""


def page(template: str, **facts: Any) -> bytes:
    """Render a page in UTF-8.

    Args:
        template: name in this folder, without its ending. facts: variables of the template.
    """
    return _templates().get_template(f"{template}.html.jinja").render(facts).encode(errors="backslashreplace")


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawn = {chart.__name__: _safe(chart) for chart in (charts.bars, charts.heat, charts.lines, charts.reliability)}
    found.globals["version"] = __version__
    found.globals["charts"] = SimpleNamespace(**drawn)
    found.filters.update(percent=_percent, signed=_signed, cell=_cell, picture=_picture)
    return found


def _safe(chart: Any) -> Any:
    """A chart whose SVG is not escaped again; its names are escaped already."""
    return wraps(chart)(lambda *args: Markup(chart(*args)))  # noqa: S704


def _picture(picture: npt.NDArray[np.uint8]) -> str:
    """A picture, uint8 RGB (H, W, 3), as a data URL; small ones are enlarged."""
    times = max(1, -(-_WIDTH // picture.shape[1]))
    buffer = io.BytesIO()
    Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _percent(value: Any) -> str:
    return "n/a" if value is None or value != value else f"{100 * value:.1f}" if isinstance(value, int | float) else "-"


def _signed(value: Any) -> str:
    return "-" if not isinstance(value, int | float) or value != value else f"{100 * value:+.1f}"


def _cell(value: str | int | float) -> str:
    return _percent(value) if isinstance(value, float) else str(value)
