"""`densevl search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl import __version__
from densevl.cli import options
from densevl.cli.images import Screen, example_of, finder, print_json, say_left_out
from densevl.cli.shared import FAILED, PARTLY, fail, one_line_errors, stderr, stdout
from densevl.errors import DensevlError
from densevl.files import json_text

if TYPE_CHECKING:
    from densevl.pipelines.regions.classifier import RegionClassifier


@one_line_errors
@options.loads
def search(
    folder: Annotated[Path, typer.Argument(help="A folder of photos.", show_default=False)],
    words: Annotated[
        str,
        options.option('Find this: "dog", or "dog|puppy" for either.', "--for", panel=options.ASKED),
    ] = "",
    like: Annotated[
        str,
        options.option(
            "Find more like this example instead of words: IMAGE, or IMAGE:x0,y0,x1,y1 for a part of it.",
            panel=options.ASKED,
        ),
    ] = "",
    against: Annotated[
        str,
        options.option('Rank down results that look like these words: "cat,wolf".', panel=options.ASKED),
    ] = "",
    top: Annotated[int, options.option("List this many results.", panel=options.ASKED, min=1)] = 10,
    each: Annotated[
        int, options.option("List at most this many results of one photo.", panel=options.ASKED, min=1)
    ] = 1,
    least: Annotated[
        float | None,
        options.option("Drop results with a lower score; with --for this is 0 if left out.", panel=options.ASKED),
    ] = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    proposals: options.Proposals = options.PROPOSALS,
    pieces: options.Pieces = False,
    operator: options.Operator = None,
    index: Annotated[
        Path | None,
        options.option(
            "Set the index file, .npz; if left out, one in --out that is named after the folder.", panel=options.FILES
        ),
    ] = None,
    out: options.Out = options.OUT,
    sheet: options.Sheet = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    bits: options.Bits = None,
    max_pixels: options.MaxPixels = None,
) -> None:
    """Find objects in a folder of photos: which photos show them, and where. Photos are indexed once."""
    if bool(words) == bool(like):
        raise DensevlError('say what to find: give either --for "a dog" or --like IMAGE')
    if like and against:
        raise DensevlError("--against works with words only: use --for")
    if not folder.is_dir():
        raise DensevlError(f"{folder} is not a folder of photos")

    from densevl.backbones import load_backbone
    from densevl.files import atomic_write_all, guard
    from densevl.images import encode_png, find_images
    from densevl.pipelines.folder.each import BAD
    from densevl.pipelines.regions.classifier import RegionClassifier
    from densevl.pipelines.regions.scores import default_operators
    from densevl.pipelines.regions.search import RegionSearch
    from densevl.pipelines.regions.sheet import hit_sheet

    find = finder(proposals, pieces, device)
    with stderr().status("loading the model"):
        backbone = load_backbone(model, weights, device=device, precision=precision)
        usual = default_operators(backbone)  # an index holds one vector per region
        chosen = operator or ("cls_mask" if "cls_mask" in usual else "pool")
        classifier = RegionClassifier(backbone, chosen, recipe=recipe, proposals=find)
    name = f"{folder.resolve().name or 'photos'}-{proposals}{'-pieces' * pieces}-index.npz"
    kept, picture = index or Path(out) / name, Path(out) / "search.png"
    beyond = None if folder.resolve() == Path(out).resolve() else out
    photos = find_images(folder, skip=beyond)
    guard([kept], inputs=photos.paths, overwrite=True)  # an index records who wrote it
    if sheet:
        guard([picture, picture.with_suffix(".json")], inputs=photos.paths, overwrite=overwrite)
    found = RegionSearch(classifier, kept, overwrite=overwrite)
    try:
        built = found.build(folder, forget=True, skip=beyond, strict=strict, watch=Screen(quiet=quiet))
    except BAD as error:  # the first bad photo, with --strict
        fail(error)
        raise typer.Exit(PARTLY if found.index.photos else FAILED) from error
    if not quiet:
        say_left_out(photos)
        counts = f"{len(built.added)} new, {len(built.kept)} known, {len(built.removed)} gone"
        stderr().print(f"{len(found.index.photos)} photos ({counts}), {len(found.index)} regions", style="dim")
    query: Any = _example(classifier, like) if like else words
    others = [word.strip() for word in against.split(",") if word.strip()] or None
    warned = found.warnings(query, others)
    for warning in () if quiet or as_json else warned:
        stderr().print(f"[yellow]warning:[/] {escape(warning)}")
    hits = found.find(query, top, each=each, **({} if like else {"against": others}))
    floor = least if least is not None else -1.0 if like else 0.0  # by words, 0 means as similar as the words to avoid
    hits = [hit for hit in hits if hit.score >= floor]
    rows = [{"image": hit.path, "score": hit.score, "box": list(hit.box)} for hit in hits]
    for row in rows if as_json else ():
        print_json(row)
    if not as_json:
        if not hits:
            stdout().print("nothing found")
        for hit in hits:
            box = ",".join(f"{side:.0f}" for side in hit.box)
            stdout().print(f"{hit.score:6.3f}  {escape(hit.path)}:{box}")
    if sheet and hits:
        facts = {"densevl": __version__, "query": like or words, "found": rows, "warnings": list(warned)}
        drawn = encode_png(hit_sheet(hits, words or "like the example"))
        atomic_write_all({picture: drawn, picture.with_suffix(".json"): json_text(facts, indent=1).encode()})
        if not as_json:
            stdout().print(f"sheet in {escape(str(picture))}")
    if built.failed:
        raise typer.Exit(PARTLY if found.index.photos else FAILED)


def _example(classifier: RegionClassifier, text: str) -> Any:
    """Embed an image, or the part of it in the box after a colon."""
    from densevl.images import read_image

    example = example_of(text)
    rgb = read_image(example.image)
    return classifier.embed(rgb, boxes=[example.box or [0, 0, rgb.shape[1], rgb.shape[0]]])
