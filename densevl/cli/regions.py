"""`densevl regions`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout
from densevl.errors import DensevlError, OutputError

if TYPE_CHECKING:
    from densevl.regions.result import RegionResult


@one_line_errors
def regions(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    labels: Annotated[
        str, typer.Option(help='"cat,dog", "car|truck,road", or a .txt or .json file; else named from a word list.')
    ] = "",
    model: Annotated[str, typer.Option(help="auto, mini, ViT-B-16/openai, local-dir:PATH.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, when --model is an architecture or config.")] = None,
    proposals: Annotated[str, typer.Option(help="What finds regions: mini-sam, sam, superpixels, grid.")] = "mini-sam",
    sam_checkpoint: Annotated[Path | None, typer.Option(help="A file of SAM; then --proposals is sam.")] = None,
    tile: Annotated[int | None, typer.Option(min=1, help="Propose in tiles of this side, for large images.")] = None,
    pieces: Annotated[bool, typer.Option(help="Cut proposed masks into their connected parts.")] = False,
    point: Annotated[list[str] | None, typer.Option(help="x,y in pixels: name what is there. Repeatable.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1: name what is in it. Repeatable.")] = None,
    operator: Annotated[str | None, typer.Option(help="pool, cls_mask, crop, ..., or a sum: pool+cls_mask.")] = None,
    background: Annotated[str, typer.Option(help='auto, none, a probability, or words "sky,wall".')] = "auto",
    objects: Annotated[bool, typer.Option(help="Keep regions that are a label, without repeats, best first.")] = False,
    export: Annotated[list[str] | None, typer.Option(help="Also coco, panoptic or labelme. Repeatable.")] = None,
    stuff: Annotated[str, typer.Option(help='Labels that are no objects, "sky,road", for --export panoptic.')] = "",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("densevl-out"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.png with all overlays.")] = False,
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
        open_export(kind, out, label_set.names, stuff=words) for kind in dict.fromkeys(export or []) if label_set
    ]
    jobs = [replace(job, target=job.target.with_suffix(".json")) for job in plan_jobs(paths, out)]
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
        classifier = RegionClassifier(model, finder, operator, weights=weights, background=background, device=device)
    progress = stderr().status("")

    def name(image: Path, given: LabelSet | None) -> RegionResult:
        found: dict[str, Any] = {}
        if points or boxes:
            found["proposals"] = prompted(image, points=points, boxes=boxes, proposer=prompter)
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
            stderr().print(f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(out / ERRORS))}")
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
