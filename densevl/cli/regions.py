"""`densevl regions`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout
from densevl.errors import DensevlError, OutputError

if TYPE_CHECKING:
    from densevl.regions.result import RegionResult


@one_line_errors
def regions(
    images: options.Images,
    labels: options.Labels = "",
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    background: options.Background = options.BACKGROUND,
    proposals: options.Proposals = options.PROPOSALS,
    sam_checkpoint: Annotated[
        Path | None,
        options.option("A checkpoint file of SAM; --proposals is then sam.", panel=options.METHOD),
    ] = None,
    tile: options.Tile = None,
    pieces: options.Pieces = False,
    operator: options.Operator = None,
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
            "Keep only regions that are a label, each thing once, the best first.", "--objects", panel=options.ASKED
        ),
    ] = False,
    out: options.Out = options.OUT,
    sheet: options.Sheet = False,
    export: Annotated[
        list[str] | None,
        options.option(
            "Also write the whole set as coco, panoptic or labelme. The option may be given several times.",
            panel=options.FILES,
            values=("coco", "panoptic", "labelme"),
        ),
    ] = None,
    stuff: Annotated[
        str,
        options.option(
            'Labels that are no things to be counted, "sky,road", for --export panoptic.', panel=options.FILES
        ),
    ] = "",
) -> None:
    """Find regions and name them: a JSON of masks, boxes, names and scores, and an overlay, for each image.

    With --point or --box, regions are masks that the SAM of --proposals makes there; with proposals that are no SAM,
    boxes stay rectangles. Without labels, regions are named from a list of common nouns, and those alike are joined.
    """
    from densevl.images import list_images
    from densevl.vocabulary import LabelSet

    label_set = LabelSet.parse(labels) if labels else None
    if label_set is None and export:
        raise DensevlError("--export needs the classes that its files list: give --labels")
    points = [_numbers(text, 2, "point", "x,y") for text in point or []]
    boxes = [_numbers(text, 4, "box", "x0,y0,x1,y1") for text in box or []]
    paths = list_images(images)

    from densevl.pipelines.folder import ERRORS, Job, plan_jobs, segment_folder
    from densevl.pipelines.regions.classifier import RegionClassifier
    from densevl.pipelines.regions.prompting import prompted
    from densevl.proposals import NAMES, load_proposer
    from densevl.proposals.pieces import PieceProposer
    from densevl.regions.exports import open_export

    words = [word.strip() for word in stuff.split(",") if word.strip()]
    exports = [
        open_export(kind, Path(out), label_set.names, stuff=words) for kind in dict.fromkeys(export or []) if label_set
    ]
    jobs = [replace(job, target=job.target.with_suffix(".json")) for job in plan_jobs(paths, Path(out))]
    clash = next((job for job in jobs if job.target.name in {one.file for one in exports}), None)
    if clash is not None:
        raise OutputError(f"{clash.target} is both the result of {clash.image} and the export; rename the image")
    finder: Any = proposals
    if sam_checkpoint is not None:
        finder = load_proposer("sam", checkpoint=sam_checkpoint, device=device, tile=tile)
    elif proposals not in NAMES or tile or ((points or boxes or pieces) and proposals != "clusters"):
        finder = load_proposer(proposals, device=device, tile=tile)  # fails, if it does, before a model loads
    if pieces and isinstance(finder, str):
        raise DensevlError("--pieces goes with all proposals but clusters, which are in one piece as they are")
    finder = PieceProposer(finder) if pieces else finder
    prompter = None if isinstance(finder, str) else finder
    with stderr().status("loading the model"):
        classifier = RegionClassifier(
            model,
            operator,
            recipe=recipe,
            weights=weights,
            proposals=finder,
            background=background,
            device=device,
            precision=precision,
        )
    progress = stderr().status("")

    def name(image: Path, given: LabelSet | None) -> RegionResult:
        found: dict[str, Any] = {}
        if points or boxes:
            found["regions"] = prompted(image, points=points, boxes=boxes, proposer=prompter)
        if given is None:  # clicks are answered one by one, so nothing is joined
            return classifier.discover(image, overlap=1.0 if found else 0.5, **found)
        result = classifier(image, given, **found)
        return result.instances() if objects and not found else result

    def after(job: Job, result: RegionResult) -> None:
        for one in exports:
            one.add(job.image, result)
        if points or boxes:
            for prompt, found, score in zip([*points, *boxes], result.names, result.scores, strict=True):
                place = ",".join(f"{number:g}" for number in prompt)
                stdout().print(f"{file_name(job.image)} {place}: {escape(found)} [dim]{score:.2f}[/]")
            return
        counts = Counter(name for name, label in zip(result.names, result.labels, strict=True) if label >= 0)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        stdout().print(f"{file_name(job.image)}: {escape(found or 'nothing')}")

    with progress:
        report = segment_folder(
            name,  # type: ignore[arg-type]
            jobs,
            label_set,  # type: ignore[arg-type]
            sheet=sheet,
            before=lambda job: progress.update(file_name(job.image)),
            after=after,
            failed=lambda job, error: fail(error),
        )
    if report.done:
        written = [str(path) for one in exports for path in one.close()]
        stdout().print(f"results in {escape(', '.join([str(out), *written]))}")
    if report.errors:
        if report.done:
            stderr().print(
                f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(Path(out) / ERRORS))}"
            )
        raise typer.Exit(PARTLY if report.done else FAILED)


def _numbers(text: str, count: int, what: str, form: str) -> list[float]:
    parts = re.split(r"[,\s]+", text.strip())
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise DensevlError(f"--{what} {text!r} is not {form}: {count} numbers in pixels with commas between")
    return numbers
