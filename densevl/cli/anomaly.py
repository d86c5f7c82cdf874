"""`densevl anomaly fit` and `densevl anomaly score`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import looked_up, run_images, say_left_out
from densevl.cli.shared import one_line_errors, stderr, stdout

if TYPE_CHECKING:
    from densevl.anomaly.result import AnomalyResult

SCORING = "winclip"

anomaly_app = typer.Typer(no_args_is_help=True, help="Compute anomaly maps: fit on normal images, score others.")


@anomaly_app.command("fit")
@one_line_errors
@options.loads
def anomaly_fit(
    normal: Annotated[
        list[str], typer.Argument(help="Images of normal objects, or folders of them.", show_default=False)
    ],
    item: options.Item = "object",
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    scoring: options.Scoring = SCORING,
    recipe: options.Recipe = None,
    windows: Annotated[
        str | None,
        options.option(
            "Choose how windows of the image are encoded: exact, shared or pooled, each faster and less exact than "
            "the one before.",
            panel=options.METHOD,
            values=("exact", "shared", "pooled"),
            only=True,
        ),
    ] = None,
    whole: Annotated[
        bool,
        options.option(
            "Let the score of the whole image raise its map. Turn this off if masks matter.", panel=options.METHOD
        ),
    ] = True,
    states: Annotated[
        Path | None,
        options.option("Read words for normal and for damaged objects from a JSON file.", panel=options.WORDS),
    ] = None,
    size: Annotated[
        int | None,
        options.option(
            "Resize the short side of images to this many pixels; the model's own size if left out.",
            panel=options.LOOKING,
        ),
    ] = None,
    tile: options.Tile = None,
    adapters: options.Adapters = None,
    proxy: Annotated[
        str | None,
        options.option(
            "Store features of this model instead: mini-sam, dinov2_vits14, ...",
            panel=options.METHOD,
            values=options.PROXIES,
        ),
    ] = None,
    fpr: Annotated[
        float,
        options.option("Set the share of normal images that may be called anomalous, 0 to 1.", panel=options.METHOD),
    ] = 0.01,
    out: Annotated[
        Path, options.option("Save the detector as OUT.safetensors and OUT.json.", panel=options.FILES)
    ] = Path("detector"),
    bits: options.Bits = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Fit a detector on normal images and choose its threshold."""
    from densevl.files import guard
    from densevl.fitted import files
    from densevl.images import find_images, header
    from densevl.images.addresses import is_address

    found = find_images(normal)
    for path in found.paths:
        if not is_address(path) and not os.path.isfile(path):
            header(path)  # raises
    paths = found.paths
    say_left_out(found)
    guard(files(out), inputs=paths, overwrite=overwrite)
    from densevl.pipelines.anomaly.detector import AnomalyDetector

    changes: dict[str, Any] = {"whole": whole} | ({"windows": windows} if windows else {})
    changes |= {"recipe": recipe} if recipe else {}
    detector = AnomalyDetector(
        model,
        scoring,
        item=item,
        options=changes,
        states=states,
        size=size,
        tile=tile,
        adapters=adapters,
        proxy=proxy,
        weights=weights,
        device=device,
        precision=precision,
    )
    with stderr().status(f"{len(paths)} images"):
        detector.fit(paths).calibrate(fpr)
    written = detector.save(out, overwrite=True)
    limit = "" if detector.thresholds is None else f"threshold {detector.thresholds.image:.6g}; "
    stdout().print(f"{limit}wrote {escape(', '.join(map(str, written)))}")


@anomaly_app.command("score")
@one_line_errors
@options.loads
def anomaly_score(
    images: options.Images,
    detector: Annotated[
        Path | None,
        options.option(
            "Use a detector that `anomaly fit` saved. Without one, words alone decide.", panel=options.METHOD
        ),
    ] = None,
    item: options.Item = "object",
    model: Annotated[
        str | None,
        options.option(
            "Choose the model to run; `densevl models` lists them. If left out, the detector's own, or 'auto'.",
            panel=options.MODELLING,
            values=options.MODELS,
        ),
    ] = None,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    scoring: options.Scoring = SCORING,
    recipe: options.Recipe = None,
    adapters: options.Adapters = None,
    out: options.OutFolder = None,
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
    """Score images: write a heat map, a JSON file and the raw map for each, and scores.csv."""
    given = locals()
    found = looked_up(given)
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import ANOMALY, Scoring

    chosen: dict[str, Any] = {"weights": weights, "device": device, "precision": precision, "adapters": adapters}
    chosen["model"] = model or (None if detector else options.MODEL)
    if detector is None:
        chosen |= {"item": item, "scoring": scoring, "options": {"recipe": recipe} if recipe else {}}
    together: list[gathered.Gathered] = [gathered.Scores()]
    run_images(
        Scoring(chosen, detector),
        found,
        given,
        together + ([gathered.Sheet(ANOMALY.picture, columns=4)] if sheet else []),
        _described,
    )


def _described(name: str, result: AnomalyResult) -> str:
    verdict = {None: "", True: ", [red]anomalous[/]", False: ", sound"}[result.is_anomalous]
    share = f", {result.mask.mean():.1%} of it" if result.mask is not None else ""
    return f"{name}: {result.score:.4f}{verdict}{share}"
