"""`densevl regions`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import exports, labels_of, looked_up, of_head, run_images, settings
from densevl.cli.shared import one_line_errors
from densevl.errors import DensevlError

if TYPE_CHECKING:
    from densevl.regions.result import RegionResult


@one_line_errors
@options.loads
def regions(
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
    sam_checkpoint: Annotated[
        Path | None,
        options.option("Load this checkpoint file of SAM; sets --proposals to sam.", panel=options.METHOD),
    ] = None,
    tile: options.Tile = None,
    pieces: options.Pieces = False,
    operator: options.Operator = None,
    operator_weights: options.OperatorWeights = None,
    decoder: options.Decoder = None,
    clip_share: options.ClipShare = options.CLIP_SHARES[0],
    point: Annotated[
        list[str] | None,
        options.option("Name what is at this pixel, x,y. The option may be given several times.", panel=options.ASKED),
    ] = None,
    box: Annotated[
        list[str] | None,
        options.option(
            "Name what is in this box, x0,y0,x1,y1 in pixels. The option may be given several times.",
            panel=options.ASKED,
        ),
    ] = None,
    objects: Annotated[
        bool,
        options.option(
            "Keep only regions that match a label, each object once, the best first.", "--objects", panel=options.ASKED
        ),
    ] = False,
    merge: Annotated[
        float | None,
        options.option(
            "Without --labels: first join neighbouring regions of at least this similarity, -1 to 1, such as 0.8.",
            panel=options.ASKED,
            min=-1,
            max=1,
        ),
    ] = None,
    parts: Annotated[
        float | None,
        options.option(
            "With --objects: also drop regions of which more than this share, 0 to 1, is inside a larger one of the "
            "same label.",
            panel=options.ASKED,
            min=0.01,
            max=1,
        ),
    ] = None,
    out: options.OutFolder = None,
    sheet: options.Sheet = False,
    forms: options.As = None,
    stuff: options.Stuff = "",
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
    """Find and name regions: write a JSON file of masks, boxes, names and scores, and an overlay, for each image.

    With --point or --box, the SAM of --proposals makes the masks there; with other proposals, boxes stay rectangles.
    Without labels, regions are named from a list of common nouns, and similar ones are joined.
    """
    given = locals()
    if head is not None:
        return _by_example(given, head)
    chosen = settings(given) | {"operator": operator, "clip_share": clip_share}
    named = labels_of(labels, like) if labels or like else None
    if merge is not None and (named is not None or point or box):
        raise DensevlError(
            "--merge joins regions that are named from a list: leave --labels, --like, --point and --box out"
        )
    if parts is not None and not objects:
        raise DensevlError("--parts drops parts of objects: give --objects too")
    if named is None and forms:
        raise DensevlError("--as needs the classes that its files list: give --labels")
    if decoder is not None and (named is None or point or box):
        raise DensevlError("--decoder names its own masks by --labels: give --labels, and leave --point and --box out")
    taken = {"--proposals": proposals, "--sam-checkpoint": sam_checkpoint, "--tile": tile, "--pieces": pieces}
    if decoder is not None and (odd := next((name for name, value in taken.items() if value), None)):
        raise DensevlError(f"--decoder has its own regions, but {odd} finds or changes others: leave one of them out")
    if decoder is None and clip_share != options.CLIP_SHARES[0]:
        raise DensevlError("--clip-share is used only with --decoder: give --decoder too")
    if sam_checkpoint is not None and proposals not in (None, "sam"):
        raise DensevlError(f"--sam-checkpoint is for --proposals sam, not for {proposals}: leave one of them out")
    points = tuple(_numbers(text, 2, "point", "x,y") for text in point or [])
    boxes = tuple(_numbers(text, 4, "box", "x0,y0,x1,y1") for text in box or [])
    found = looked_up(given)
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import REGIONS, Naming
    from densevl.regions.operators.names import weights_of

    chosen["options"] = weights_of(operator, operator_weights)

    together: list[gathered.Gathered] = [gathered.Sheet(REGIONS.picture)] if sheet else []
    together += exports(given, named.names if named is not None else ())

    prompts = [",".join(f"{number:g}" for number in prompt) for prompt in (*points, *boxes)]

    def described(name: str, result: RegionResult) -> str:
        if prompts:
            named = zip(prompts, result.found, result.confidence, strict=True)
            return "\n".join(f"{name} {place}: {escape(label)} [dim]{score:.2f}[/]" for place, label, score in named)
        return _counted(name, result)

    run_images(
        Naming(
            *(named, chosen, proposals or options.PROPOSALS, sam_checkpoint, tile, pieces, points, boxes, objects),
            *(decoder, parts, merge),
        ),
        found,
        given,
        together,
        described,
    )


def _counted(name: str, result: RegionResult) -> str:
    counts = Counter(label for label, number in zip(result.found, result.labels, strict=True) if number >= 0)
    listed = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    return f"{name}: {escape(listed or 'nothing')}"


def _by_example(given: dict[str, Any], head: Path) -> None:
    """Name regions with a head that `densevl fewshot fit --level region` saved."""
    finding = ("proposals", "sam_checkpoint", "tile", "pieces")
    allowed = (*options.WITH_HEAD, *finding, "forms", "stuff")
    options.alone("--head", options.KNOWS, given, regions, allowed)
    found = looked_up(given)
    from densevl.pipelines.fewshot.files import classes
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import REGIONS, Naming

    how = {name: given[name] for name in finding[2:]}
    checkpoint = given["sam_checkpoint"]
    run_images(
        Naming(None, of_head(given), given["proposals"] or options.PROPOSALS, checkpoint, **how, fitted=head),
        found,
        given,
        [*([gathered.Sheet(REGIONS.picture)] if given["sheet"] else []), *exports(given, classes(head))],
        _counted,
    )


def _numbers(text: str, count: int, what: str, form: str) -> tuple[float, ...]:
    parts = re.split(r"[,\s]+", text.strip())
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise DensevlError(f"--{what} {text!r} is not {form}: {count} numbers in pixels separated by commas")
    return tuple(numbers)
