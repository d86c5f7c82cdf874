"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.drawing import draw_overlay
from densevl.evaluation.benchmarks.class_lists import BACKGROUND
from densevl.evaluation.report.charts import bars, heat, reliability

_WIDTH = 320
"""Pixels that a picture of the page has at least."""
_HEAT_CLASSES = 64
_EXPLAINED = {
    "mIoU": "mean intersection over union",
    "aAcc": "share of scored pixels that are right",
    "mAcc": "mean over classes of the share found",
    "mDice": "mean Dice coefficient",
    "fwIoU": "IoU weighted by how frequent a class is",
    "boundary mIoU": "mean IoU of outlines",
    "ECE": "expected calibration error",
    "MCE": "largest calibration error of a bin",
    "unassigned": "scored pixels that got no class",
    "cS": "S-measure, 0 where the class is wrong, as all that follow",
    "cFw": "weighted F-measure",
    "cMAE": "mean absolute error, 1 where the class is wrong",
    "right class": "images whose class was found",
    "AP": "mean average precision, IoU .50 to .95",
    "AP50": "average precision at IoU .50",
    "AP75": "average precision at IoU .75",
    "R50": "share of objects met by a detection of their class",
    "PQ": "panoptic quality: SQ times RQ in each class",
    "SQ": "mean IoU of matched segments",
    "RQ": "F1 score of segments",
}
STYLE = """
:root { --ink: #212529; --soft: #6c757d; --line: #e3e6ea; --mark: #2183f0; --paper: #fff }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px;
  margin: 0 auto; padding: 24px }
h1 { font-size: 26px; margin: 0 0 2px } h2 { font-size: 18px; margin: 34px 0 8px }
p { margin: 4px 0 10px; max-width: 76ch } .soft { color: var(--soft) }
table { border-collapse: collapse; margin: 8px 0 } th { text-align: left; font-weight: 600 }
td, th { padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; margin: 0 0 20px }
.trio img { width: 100%; height: auto; border: 1px solid var(--line) } figure { margin: 0 }
figcaption { font-size: 13px; color: var(--soft) } .wide { overflow-x: auto } code { font-size: 13px }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
"""


@dataclass(frozen=True, eq=False)
class Example:
    """Attributes: key of an image; score 0..1; image uint8 (H, W, 3); truth, found int16 (H, W)."""

    key: str
    score: float
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int16]
    found: npt.NDArray[np.int16]


def page(
    facts: dict[str, Any],
    matrix: npt.NDArray[np.int64] | None,
    names: Sequence[str],
    worst: Sequence[Example],
    best: Sequence[Example],
) -> str:
    """The page of `report.results`.

    Args:
        facts: of `results`; matrix: int64 (C + 1, C + 1), truth down, None for tasks over regions; names: C + 1, the
        last for nothing;
        worst, best: images to show.
    """
    parts = [
        _headline(facts),
        _section(
            "Classes",
            bars([(row["class"], row[facts["bars"]]) for row in facts["classes"]]),
            f"{facts['bars']} in per cent.",
        ),
        "" if matrix is None else _confusion(facts, matrix, names),
        _calibration(facts),
        _pictures("Worst images", worst, names[:-1]),
        _pictures("Best images", best, names[:-1]),
        _section("Time", _rows(_times(facts["run"])), ""),
        _section("Protocol", _rows(facts["protocol"]), ""),
        _section("Used", _rows(facts["used"]), ""),
        _section("Experiment", _rows({**facts["experiment"], "fingerprint": facts["fingerprint"]}), ""),
        _section("Versions", _rows(facts["versions"]), ""),
    ]
    title = escape(facts["title"])
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>\n' + "\n".join(filter(None, parts))
    ) + "\n</html>\n"


def _headline(facts: dict[str, Any]) -> str:
    used, paper = facts["used"], facts["paper"][facts["headline"]]
    line = f"model {used['model']}, recipe {used['recipe'] or 'none'}, {facts['amount']}"
    head = f'<h1>{escape(facts["title"])}</h1><p class="soft">{escape(line)} of {len(facts["images"])} images</p>'
    rows = []
    for name, value in facts["measures"].items():
        if name == "absent":
            continue
        published = facts["paper"].get(name)
        delta = facts["delta"].get(name)
        cells = "".join(f'<td class="n">{cell}</td>' for cell in (_percent(value), _percent(published), _signed(delta)))
        rows.append(f'<tr><td>{name}</td>{cells}<td class="soft">{_EXPLAINED.get(name, "")}</td></tr>')
    heading = (
        '<tr><th>per cent</th><th class="n">ours</th><th class="n">paper</th><th class="n">delta</th><th></th></tr>'
    )
    notes = []
    if absent := int(facts["measures"].get("absent") or 0):
        notes.append(f"{absent} classes neither occur nor were found; they are in no mean.")
    if paper is None:
        notes.append("No published figure belongs to this model and protocol.")
    return f'{head}<table>{heading}{"".join(rows)}</table><p class="soft">{escape(" ".join(notes))}</p>'


def _confusion(facts: dict[str, Any], matrix: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    body = ""
    if len(names) <= _HEAT_CLASSES:
        body = f'<div class="wide">{heat(matrix, names)}</div>'
    rows = "".join(
        f'<tr><td>{escape(row["truth"])}</td><td>{escape(row["found"])}</td><td class="n">{row["pixels"]:,}</td></tr>'
        for row in facts["confused"][:10]
    )
    if rows:
        body += f'<table><tr><th>truth</th><th>found</th><th class="n">pixels</th></tr>{rows}</table>'
    return _section("Confusion", body, "Each row is a class of the truth and says what its pixels were taken for.")


def _calibration(facts: dict[str, Any]) -> str:
    if not facts.get("calibration"):
        return ""
    text = "Right labels by confidence. On the diagonal the confidence can be believed; large dots are many pixels."
    return _section("Calibration", reliability(facts["calibration"]), text)


def _pictures(title: str, shown: Sequence[Example], names: Sequence[str]) -> str:
    if not shown:
        return ""
    rows = []
    for example in shown:
        maps = (
            np.where(labels >= len(names), -1, labels).astype(np.int16) for labels in (example.truth, example.found)
        )
        pictures = [example.image, *(draw(example.image, labels, names) for labels in maps)]
        captions = [f"{example.key}: {_percent(example.score)}", "truth", "found"]
        figures = (
            f'<figure><img src="{_data(picture)}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
            for picture, caption in zip(pictures, captions, strict=True)
        )
        rows.append(f'<div class="trio">{"".join(figures)}</div>')
    return _section(title, "".join(rows), "Photo, truth, and what was found; ranked by the image's own score.")


def draw(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.int16], names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """An overlay with its legend, small images enlarged first so that the legend can be read."""
    times = max(1, -(-_WIDTH // image.shape[1]))
    if names[0] == BACKGROUND:  # left plain, so that the rest stands out
        labels, names = np.maximum(labels - 1, -1).astype(np.int16), names[1:]
    big = image.repeat(times, axis=0).repeat(times, axis=1)
    return draw_overlay(big, labels.repeat(times, axis=0).repeat(times, axis=1), names)


def _data(picture: npt.NDArray[np.uint8]) -> str:
    times = max(1, -(-_WIDTH // picture.shape[1]))
    buffer = io.BytesIO()
    Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _times(run: dict[str, Any]) -> dict[str, Any]:
    each = f"{1000 * run['seconds'] / run['images']:.1f} ms" if run["images"] else "none done in this run"
    parts = {f"of it: {name}": f"{seconds:.2f} s" for name, seconds in run["parts"].items()}
    return {
        "finished": run["finished"],
        "images": run["images"],
        "done by earlier runs": run["resumed"],
        "seconds": f"{run['seconds']:.2f} s, {each} an image",
        **parts,
    }


def _section(title: str, body: str, text: str) -> str:
    intro = f'<p class="soft">{text}</p>' if text else ""
    return f"<h2>{title}</h2>{intro}{body}" if body else ""


def _rows(facts: dict[str, Any]) -> str:
    kept = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    cells = (
        f"<tr><th>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>" for name, value in kept.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
