"""`measure`: time one method on one size of photo, from pixels to a label map, in seconds and as ratios."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones import Backbone
from densevl.benchmarking.clock import costs, peak_mib
from densevl.benchmarking.limits import bare_pass, products, trained_size
from densevl.errors import ModelError, OptionError, ProtocolError
from densevl.inference import WindowGrid, decode, window_scores
from densevl.inference.sliding import windows_a_pass
from densevl.pipelines.feeding import settle

SCALE = 40.0


@dataclass(frozen=True)
class Case:
    """The settings of one measurement.

    Attributes:
        recipe: its name; None is the model's default. plan: the layout of windows, see `feeding.PLANS`.
        precision: of the image tower. height, width: of the photo after its resize, in pixels. labels: their number.
    """

    recipe: str | None = None
    plan: str = "tiles"
    precision: str = "float32"
    height: int = 336
    width: int = 448
    labels: int = 21


def parse_sizes(spec: str) -> list[tuple[int, int]]:
    """Parse "336x448,560x1008" into heights and widths.

    Raises:
        ProtocolError: the text has another form.
    """
    found = []
    for part in spec.split(","):
        height, by, width = part.strip().lower().partition("x")
        if not (by and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise ProtocolError(f"size '{part}' is not HEIGHTxWIDTH in pixels, such as 336x448")
        found.append((int(height), int(width)))
    return found


def parse_counts(spec: str) -> list[int]:
    """Parse "1,21,171" into numbers of labels.

    Raises:
        OptionError: the text has another form.
    """
    parts = [part.strip() for part in spec.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"labels '{spec}' are not numbers of labels with commas between, such as 1,21,171")
    return [int(part) for part in parts]


def measure(backbone: Backbone, case: Case, rounds: int = 5) -> dict[str, Any]:
    """Time a case; texts and pixels are random, because time does not depend on their content.

    Returns:
        The case, and
        seconds: of one photo, from normalised pixels to labels and confidence.
        faults: memory pages that the system filled in that time (minor faults); None where it does not report them.
        windows, tokens: the numbers that the tower saw.
        of_bare: seconds over (windows of the papers' half-overlapping protocol) x (one bare pass of the library's own
        tower): 1 is the least that the papers' way can take.
        bare_of_products: time of the matrix products of a pass over that of the pass: the share that no code can save.
        extra_mib: peak memory of the first call beyond what was held before.

    Raises:
        ModelError, RecipeError, ProtocolError: the case does not fit the model.
    """
    model = backbone.at_precision(case.precision)
    side = trained_size(backbone)[0]
    windowed = replace(model.protocol, crop=side, stride=None)
    protocol = settle(case.plan, windowed, model.resolve(case.recipe))
    lay = (case.height, case.width, protocol.crop)
    windows = WindowGrid.place(*lay, protocol.stride, model.patch_size, protocol.blend)
    papers = WindowGrid.place(case.height, case.width, side, side // 2, model.patch_size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, case.height, case.width, generator=generator).to(model.device)
    text = F.normalize(torch.randn(case.labels, model.embed_dim, generator=generator), dim=-1).to(model.device)
    classes = torch.arange(case.labels, device=model.device)

    def ours() -> None:
        scores, grid = window_scores(model, pixels, text, windows, recipe=case.recipe)
        decode(scores, grid.plan(case.height, case.width), classes, scale=SCALE)

    batch = min(len(papers), windows_a_pass(model, papers))
    calls = {"ours": ours, "bare": bare_pass(backbone, batch)}
    with suppress(ModelError):  # a convolutional tower has none
        calls["products"] = products(backbone, batch)
    calls["bare"]()
    extra = peak_mib(ours, model.device)
    taken = costs(calls, rounds, model.device)
    bare = taken["bare"].seconds / batch
    return {
        **asdict(case),
        "precision": model.precision,
        "recipe": (model.resolve(case.recipe) or model).name,
        "windows": len(windows),
        "tokens": len(windows) * windows.rows.tokens * windows.cols.tokens,
        "seconds": taken["ours"].seconds,
        "faults": taken["ours"].faults,
        "of_bare": taken["ours"].seconds / (len(papers) * bare),
        "bare_seconds": bare,
        "bare_of_products": taken["products"].seconds / taken["bare"].seconds if "products" in taken else None,
        "extra_mib": extra,
    }
