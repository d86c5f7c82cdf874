"""Charts as inline SVG: bars, a matrix, a reliability diagram, lines. No scripts, no external files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

_MARK = "#2183f0"
_SOFT = "#6c757d"
_TICKS = 8  # most ticks at the points of an x axis
_TOP = 24  # room above a chart for the title of its y axis
_LINE = "#e3e6ea"
_COLOURS = ("#2183f0", "#e63946", "#2eb85c", "#ff7a1a", "#a050e6", "#8e5c3a", "#00b3ba", "#283f9e")


def bars(rows: Sequence[tuple[str, float | None]]) -> str:
    """Horizontal bars in the order given, values 0..1 shown in per cent; None has no bar."""
    left, width, step = 170, 620, 20
    parts = [_open(left + width + 60, step * len(rows) + 4)]
    for number, (name, value) in enumerate(rows):
        y = number * step + 2
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(shown)}</text>')
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{width}" height="14" fill="{_LINE}"/>')
        if value is None:
            parts.append(f'<text x="{left + 6}" y="{y + 13}" style="fill:{_SOFT}">n/a</text>')
        else:
            parts.append(f'<rect x="{left}" y="{y + 2}" width="{width * value:.1f}" height="14" fill="{_MARK}"/>')
            parts.append(f'<text x="{left + width + 8}" y="{y + 13}">{100 * value:.1f}</text>')
    return "".join(parts) + "</svg>"


def heat(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """A confusion matrix, each row as shares of its sum.

    Classes that occur have a row; these and the predicted ones have a column.
    """
    rows = [index for index in range(len(names)) if matrix[index].sum() > 0]
    columns = [index for index in range(len(names)) if matrix[index].sum() + matrix[:, index].sum() > 0]
    if not rows or not columns:
        return ""
    cell, left, top = 22, 140, 120
    parts = [_open(left + cell * len(columns) + 60, top + cell * len(rows) + 4)]
    for number, index in enumerate(columns):
        x = left + number * cell + 15
        parts.append(
            f'<text x="{x}" y="{top - 6}" transform="rotate(-55 {x} {top - 6})">{escape(names[index][:18])}</text>'
        )
    for line, row in enumerate(rows):
        y = top + line * cell
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(names[row][:20])}</text>')
        shares = matrix[row] / matrix[row].sum()
        for number, column in enumerate(columns):
            share = float(shares[column])
            if share < 0.0005:
                continue
            place = f'x="{left + number * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}"'
            colour = _MARK if row == column else "#e63946"
            title = escape(f"{names[row]} taken for {names[column]}: {100 * share:.1f} %")
            parts.append(f'<rect {place} fill="{colour}" fill-opacity="{share**0.5:.2f}"><title>{title}</title></rect>')
            if share >= 0.095:
                white = share > 0.5
                style = f'style="font-size:10px;fill:{"#fff" if white else "#212529"}"'
                parts.append(
                    f'<text x="{left + number * cell + cell / 2 - 0.5}" y="{y + 14}" text-anchor="middle" {style}>'
                    f"{100 * share:.0f}</text>"
                )
    return "".join(parts) + "</svg>"


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by confidence with the diagonal; the area of a dot shows the number of pixels."""
    side, margin = 300, 44
    most = max((entry["pixels"] for entry in bins), default=0) or 1
    parts = [_open(side + 2 * margin, side + margin + _TOP + 6), _axes(side, margin, "confidence", "accuracy")]
    parts.append(_segment(margin, side + _TOP, margin + side, _TOP, _SOFT, dash=True))
    for entry in bins:
        if entry["pixels"]:
            x, y = margin + side * entry["confidence"], _TOP + side * (1 - entry["accuracy"])
            radius = 3 + 11 * (entry["pixels"] / most) ** 0.5
            title = f"{entry['pixels']:,} pixels, confidence {entry['confidence']:.3f}, right {entry['accuracy']:.3f}"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_MARK}" fill-opacity="0.6">'
                f"<title>{title}</title></circle>"
            )
    return "".join(parts) + "</svg>"


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, named: Mapping[float, str] | None = None
) -> str:
    """Lines of (x, y) points, y 0..1 shown from 0 to 100, NaN left out; x from its smallest to its largest value.

    Args: named: texts that replace some x.
    """
    side, width, margin, legend = 260, 460, 44, 200
    series = {name: [(x, y) for x, y in points if y == y] for name, points in series.items()}
    xs = sorted({*(x for points in series.values() for x, _ in points), *(named or ())})
    if not xs:
        return ""
    low, high = xs[0], xs[-1]
    span = (high - low) or 1
    quarters = [low + span * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    shown = {(x - low) / span: (named or {}).get(x, f"{x:g}") for x in (xs if len(xs) <= _TICKS else quarters)}
    parts = [
        _open(width + margin + legend, side + margin + _TOP + 6),
        _axes(side, margin, across, up, width, shown),
    ]
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(margin + width * (x - low) / span, _TOP + side * (1 - y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y = 18 + 20 * number
        parts.append(f'<rect x="{margin + width + 16}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{margin + width + 34}" y="{y}">{escape(name)}</text>')
    return "".join(parts) + "</svg>"


def _axes(
    side: int, margin: int, across: str, up: str, width: int | None = None, ticks: Mapping[float, str] | None = None
) -> str:
    """Args: ticks: texts by their place on the x axis, 0..1; None numbers its quarters."""
    width = width or side
    bottom = side + _TOP
    parts = [_segment(margin, bottom, margin + width, bottom, _SOFT), _segment(margin, _TOP, margin, bottom, _SOFT)]
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    for share in quarters:
        y = bottom - side * share
        parts.append(_segment(margin - 4, y, margin, y, _SOFT))
        parts.append(f'<text x="{margin - 7}" y="{y + 4}" text-anchor="end">{100 * share:.0f}</text>')
    for share, text in (ticks or {share: f"{share:g}" for share in quarters}).items():
        x = margin + width * share
        parts.append(_segment(x, bottom, x, bottom + 4, _SOFT))
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<text x="{margin + width / 2}" y="{bottom + 34}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="{margin + 8}" y="{_TOP - 9}" style="fill:{_SOFT}">{escape(up)} in per cent</text>')
    return "".join(parts)


def _segment(x1: float, y1: float, x2: float, y2: float, colour: str, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dash else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{dashes}/>'


def _open(width: float, height: float) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">'
