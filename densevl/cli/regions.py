"""`densevl regions`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout

if TYPE_CHECKING:
    from densevl.regions.result import RegionResult


@one_line_errors
def regions(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    labels: Annotated[str, typer.Option(help='"cat,dog", "car|truck,road", or a .txt or .json file.')] = "",
    model: Annotated[str, typer.Option(help="auto, mini, ViT-B-16/openai, local-dir:PATH.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, when --model is an architecture or config.")] = None,
    proposals: Annotated[str, typer.Option(help="What finds regions: mini-sam, sam, superpixels, grid.")] = "mini-sam",
    sam_checkpoint: Annotated[Path | None, typer.Option(help="A file of SAM; then --proposals is sam.")] = None,
    operator: Annotated[str | None, typer.Option(help="pool, cls_mask, crop, ..., or a sum: pool+cls_mask.")] = None,
    background: Annotated[str, typer.Option(help='auto, none, a probability, or words "sky,wall".')] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("densevl-out"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.png with all overlays.")] = False,
) -> None:
    """Find regions and name them: a JSON of masks, boxes, names and scores, and an overlay, for each image."""
    from densevl.images import list_images
    from densevl.vocabulary import LabelSet

    label_set = LabelSet.parse(labels)
    paths = list_images(images)

    from densevl.pipelines.folder import ERRORS, Job, plan_jobs, segment_folder
    from densevl.pipelines.regions import RegionClassifier
    from densevl.proposals import NAMES, load_proposer

    jobs = [replace(job, target=job.target.with_suffix(".json")) for job in plan_jobs(paths, out)]
    finder: Any = proposals
    if sam_checkpoint is not None:
        finder = load_proposer("sam", checkpoint=sam_checkpoint, device=device or "cpu")
    elif proposals not in NAMES:
        load_proposer(proposals)  # says which there are, before any model is loaded
    with stderr().status("loading the model"):
        classifier = RegionClassifier(model, finder, operator, weights=weights, background=background, device=device)
    progress = stderr().status("")

    def after(job: Job, result: RegionResult) -> None:
        counts = Counter(name for name, label in zip(result.names, result.labels, strict=True) if label >= 0)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        stdout().print(f"{file_name(job.image)}: {escape(found or 'nothing')}")

    with progress:
        report = segment_folder(
            classifier,
            jobs,
            label_set,
            sheet=sheet,
            before=lambda job: progress.update(file_name(job.image)),
            after=after,
            failed=lambda job, error: fail(error),
        )
    if report.done:
        stdout().print(f"results in {escape(str(out))}")
    if report.errors:
        if report.done:
            stderr().print(f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(out / ERRORS))}")
        raise typer.Exit(PARTLY if report.done else FAILED)
