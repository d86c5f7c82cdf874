"""`densevl segment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import exports, run_images, settings
from densevl.cli.shared import one_line_errors, stderr

if TYPE_CHECKING:
    from densevl.results import SegmentationResult


@one_line_errors
def segment(
    images: options.Images,
    labels: options.Labels = "",
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    compat: options.Compat = False,
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    descriptors: options.Descriptors = None,
    presence: options.Presence = None,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    plan: options.Plan = None,
    blend: options.Blend = None,
    views: options.Views = None,
    proxy: options.Proxy = None,
    proxy_scope: options.ProxyScope = "image",
    sam: options.Sam = None,
    proposals: options.Proposals = None,
    refine: options.Refine = None,
    out: options.OutFolder = None,
    forms: options.As = None,
    stuff: options.Stuff = "",
    sheet: options.Sheet = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    bits: options.Bits = None,
    ray: options.Ray = None,
    workers: options.Workers = 1,
    shard: options.Shard = options.SHARD,
) -> None:
    """Segment images by words: a label PNG, an overlay and a JSON for each.

    The same call again goes on where it stopped, and does nothing where all is done.
    """
    given = locals()
    from densevl.vocabulary import LabelSet

    labelled, chosen = LabelSet.parse(labels), settings(given) | {"proposals": proposals, "refine": refine}

    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import SEGMENT, Segmenting, Task

    def loaded(task: Task) -> None:
        backbone = task.pipeline.backbone
        if model == options.MODEL and not quiet:
            stderr().print(f"model [bold]{escape(backbone.name)}[/]: {escape(backbone.about)}")

    run_images(
        Segmenting(labelled, chosen),
        given,
        [*([gathered.Sheet(SEGMENT.picture)] if sheet else []), *exports(given, labelled.names)],
        _described,
        loaded=loaded,
    )


def _described(name: str, result: SegmentationResult) -> str:
    shares = sorted(result.fractions().items(), key=lambda item: -item[1])
    found = ", ".join(f"{label} {share:.0%}" for label, share in shares if share >= 0.005)
    if absent := result.meta["absent"]:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        found += f"; not in it: {', '.join(absent[:5])}{more}"
    return f"{name}: {escape(found)}"
