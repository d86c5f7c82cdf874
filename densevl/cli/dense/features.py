"""`densevl features`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import looked_up, run_images
from densevl.cli.shared import one_line_errors
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.pipelines.features.result import DenseMap


@one_line_errors
@options.loads
def features(
    images: options.Images,
    stride: Annotated[
        str,
        options.option(
            "Set the spacing of the grid in pixels of the photo, or 'patch' for one cell per patch.",
            panel=options.ASKED,
        ),
    ] = options.CELL,
    size: Annotated[
        str | None,
        options.option("Set the number of cells instead: 64, or 48x64 for rows and columns.", panel=options.ASKED),
    ] = None,
    layer: Annotated[
        int | None,
        options.option(
            "Write the tokens after this block of the tower, 1 the first and -1 the last, instead of features that "
            "can be compared with words.",
            panel=options.ASKED,
        ),
    ] = None,
    scales: Annotated[
        str,
        options.option("Average the features over these relative sizes of the photo: 1,0.5.", panel=options.ASKED),
    ] = options.SCALES,
    form: Annotated[
        str,
        options.option(
            "Choose the file format: npy, safetensors, or zarr (zipped); a JSON file beside each says where the "
            "cells are.",
            "--format",
            panel=options.FILES,
            values=options.MAPS,
            only=True,
        ),
    ] = options.MAPS[0],
    dtype: Annotated[
        str,
        options.option(
            "Choose the number format of the files.", panel=options.FILES, values=options.MAP_DTYPES, only=True
        ),
    ] = options.MAP_DTYPES[0],
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    compat: options.Compat = False,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    plan: options.Plan = None,
    blend: options.Blend = None,
    proxy: options.Proxy = None,
    proxy_scope: options.ProxyScope = "image",
    sam: options.Sam = None,
    proposals: options.Proposals = None,
    out: options.OutFolder = None,
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
    """Write dense features of images: an array of (rows, columns, width) and a JSON file for each.

    Run the same command again to resume; finished images are skipped.
    """
    given = locals()
    chosen: dict[str, Any] = {
        name: given[name] for name in ("model", "weights", "device", "precision", "compat", "layer", "dtype")
    }
    chosen |= {name: given[name] for name in ("recipe", "proxy", "proxy_scope", "sam", "proposals")}
    chosen |= {
        "stride": step(stride),
        "protocol": windows(short_side=short_side, crop=crop, plan=plan, blend=blend),
        "scales": options.numbers(scales, float, "--scales 1,0.5"),
    }
    if size is not None:
        sides = size.lower().split("x")
        if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
            raise OptionError(f"--size {size}: give a number of cells, or rows x columns such as 48x64")
        chosen["size"] = tuple(int(side) for side in sides * (3 - len(sides)))[:2]

    found = looked_up(given)
    from densevl.pipelines.folder.tasks import Extracting

    run_images(Extracting(chosen, form), found, given, [], _described)


def step(stride: str) -> int | str:
    """Parse a number of pixels, or return the text."""
    return int(stride) if stride.strip().isdecimal() else stride


def windows(**given: Any) -> dict[str, Any]:
    """Return the given changes to the protocol. None means not given, and --crop 0 the whole photo."""
    found = {name: value for name, value in given.items() if value is not None}
    return {**found, "crop": found["crop"] or None} if "crop" in found else found


def _described(name: str, found: DenseMap) -> str:
    h, w, width = found.features.shape
    return f"{name}: {h} x {w} cells of {width} numbers, {escape(str(found.features.dtype))}"
