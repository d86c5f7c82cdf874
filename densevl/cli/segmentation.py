"""`densevl segment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import exports, labels_of, looked_up, of_head, run_images, settings
from densevl.cli.shared import one_line_errors, stderr
from densevl.errors import DensevlError, OptionError

if TYPE_CHECKING:
    from densevl.results import SegmentationResult


@one_line_errors
@options.loads
def segment(
    images: options.Images,
    labels: options.Labels = "",
    like: options.Like = None,
    head: options.Head = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    compat: options.Compat = False,
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    descriptors: options.Descriptors = None,
    text_transform: options.TextTransform = None,
    template_weights: options.TemplateWeights = "equal",
    parents: options.Parents = "none",
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
    upsampler: options.Upsampler = None,
    instance_threshold: options.InstanceThreshold = None,
    prefilter: options.Prefilter = None,
    prefilter_model: options.PrefilterModel = None,
    bank: options.Bank = None,
    bank_share: options.BankShare = options.BANK_SHARE,
    neighbours: options.Neighbours = options.NEIGHBOURS,
    out: options.OutFolder = None,
    forms: options.As = None,
    stuff: options.Stuff = "",
    geotiff: options.Geotiff = False,
    polygons: options.Polygons = False,
    bands: options.Bands = None,
    value_range: options.Range = None,
    sheet: options.Sheet = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    bits: options.Bits = None,
    max_pixels: options.MaxPixels = None,
    ray: options.Ray = None,
    workers: options.Workers = 1,
    shard: options.Shard = options.SHARD,
) -> None:
    """Segment images by words or by examples (--head): write a label PNG, an overlay and a JSON file for each.

    Run the same command again to resume; finished images are skipped.
    """
    given = locals()
    if head is not None:
        return _by_example(given, head)
    labelled = labels_of(labels, like)
    chosen = settings(given) | {"proposals": proposals, "refine": refine, "upsampler": upsampler}
    own = {"instance_threshold": instance_threshold, "prefilter": prefilter, "prefilter_model": prefilter_model}
    chosen |= {name: value for name, value in own.items() if value is not None}
    chosen |= {"bank": bank or None, "bank_share": bank_share, "neighbours": neighbours}
    wanted = options.numbers(bands, int, "bands, such as --bands 4,3,2")
    ends = options.numbers(value_range, float, "a range, such as --range 0,3000")
    if ends is not None and len(ends) != 2:
        raise OptionError(f"--range {value_range}: give the values that become black and white, such as 0,3000")
    if not geotiff and is_huge(images):
        geotiff = True
        stderr().print("this image is huge: it is segmented block by block, to GeoTIFF (--geotiff)", style="dim")
    if not geotiff and (polygons or bands or value_range):
        raise OptionError("--polygons, --bands and --range need --geotiff; give it too")
    if geotiff and (forms or bits):
        raise OptionError("--as and --bits are for images read at once; block by block use --polygons and --range")

    found = looked_up(given)
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import SEGMENT, BlockSegmenting, Segmenting, Task, Work

    def loaded(task: Task) -> None:
        backbone = task.pipeline.backbone
        if model == options.MODEL and not quiet:
            stderr().print(f"model [bold]{escape(backbone.name)}[/]: {escape(backbone.about)}")

    work: Work = Segmenting(labelled, chosen)
    if geotiff:
        work = BlockSegmenting(labelled, chosen, wanted, ends, polygons)
    run_images(
        work,
        found,
        given,
        [*([gathered.Sheet(SEGMENT.picture)] if sheet else []), *exports(given, labelled.names)],
        _described,
        loaded=loaded,
    )


def _by_example(given: dict[str, Any], head: Path) -> None:
    """Segment with a head that `densevl fewshot fit --level pixel` saved."""
    allowed = (*options.WITH_HEAD, "refine", "forms", "stuff")
    options.alone("--head", options.KNOWS, given, segment, allowed)
    found = looked_up(given)
    from densevl.pipelines.fewshot.files import classes
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import SEGMENT, Segmenting

    run_images(
        Segmenting(None, of_head(given) | {"refine": given["refine"]}, head),
        found,
        given,
        [*([gathered.Sheet(SEGMENT.picture)] if given["sheet"] else []), *exports(given, classes(head))],
        _described,
    )


def is_huge(images: list[str]) -> bool:
    """Return whether the only image is too large to be read at once."""
    from densevl.images import header
    from densevl.images.limit import most_pixels

    if len(images) != 1:
        return False
    try:
        height, width = header(images[0], max_pixels=2**62).size
    except (DensevlError, OSError, ValueError):  # the error is reported when it is read
        return False
    return height * width > most_pixels()


def _described(name: str, result: SegmentationResult) -> str:
    shares = sorted(result.fractions().items(), key=lambda item: -item[1])
    found = ", ".join(f"{label} {share:.0%}" for label, share in shares if share >= 0.005)
    if absent := result.meta.get("absent"):
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        found += f"; not in it: {', '.join(absent[:5])}{more}"
    return f"{name}: {escape(found)}"
