"""`densevl segment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout

if TYPE_CHECKING:
    from densevl.results import SegmentationResult


@one_line_errors
def segment(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    labels: Annotated[str, typer.Option(help='"cat,dog", "car|truck,road", or a .txt or .json file.')] = "",
    model: Annotated[str, typer.Option(help="auto, photo, ViT-B-16/openai, local-dir:PATH.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, when --model is an architecture or config.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="See `densevl recipes`, or package.module:NAME; the model's default if left out.")
    ] = None,
    compat: Annotated[bool, typer.Option(help="Run the recipe as its authors published it, slips included.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("densevl-out"),
    background: Annotated[
        str, typer.Option(help='auto, none, unknown, 1-max, voc, a probability, or words "sky,wall".')
    ] = "auto",
    templates: Annotated[str | None, typer.Option(help='openai, dense, drawing, ..., or a sentence with "{}".')] = None,
    descriptors: Annotated[Path | None, typer.Option(help="JSON of label to texts on its looks.")] = None,
    presence: Annotated[float | None, typer.Option(help="Drop labels that reach this probability nowhere.")] = None,
    short_side: Annotated[int | None, typer.Option(min=1, help="Resize the short side to this many pixels.")] = None,
    crop: Annotated[int | None, typer.Option(min=0, help="Window side in pixels; 0 for the whole image.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Step between windows in pixels.")] = None,
    plan: Annotated[str | None, typer.Option(help="How windows lie: tiles, sliding (the papers'), whole.")] = None,
    precision: Annotated[str, typer.Option(help="float32, int8 (faster on a CPU), bfloat16.")] = "float32",
    blend: Annotated[str | None, typer.Option(help="Average overlapping windows at pixel or patch.")] = None,
    proxy: Annotated[str | None, typer.Option(help="Model a recipe borrows from: mini-sam, a name, a file.")] = None,
    proxy_scope: Annotated[
        str, typer.Option(help="The proxy looks at the image once, or at each window as the papers do: image, window.")
    ] = "image",
    sam: Annotated[str | None, typer.Option(help="SAM encoder for the recipe trident: mini-sam, or a file.")] = None,
    regions: Annotated[str | None, typer.Option(help="Who proposes segments: mini-sam, for drawings.")] = None,
    views: Annotated[str | None, typer.Option(help="Look several times: flip, flip+scale, itaclip.")] = None,
    refine: Annotated[str | None, typer.Option(help="pamr, lposs+, vote, or several: pamr,vote. Slower.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.png with all overlays.")] = False,
) -> None:
    """Segment images by words: a label PNG, an overlay and a JSON for each."""
    from densevl.images import list_images
    from densevl.recipes import get
    from densevl.vocabulary import Descriptors, LabelSet, TextOptions

    label_set = LabelSet.parse(labels)
    text = TextOptions(descriptors=Descriptors.parse(descriptors)) if descriptors else None
    chosen = get(recipe) if recipe else None
    paths = list_images(images)
    given = {"short_side": short_side, "stride": stride, "blend": blend, "plan": plan}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if crop is not None:
        changes["crop"] = crop or None

    from densevl.pipelines.folder import ERRORS, Job, plan_jobs, segment_folder
    from densevl.pipelines.segmentation.segmenter import Segmenter

    jobs = plan_jobs(paths, out)
    with stderr().status("loading the model"):  # shown on a terminal only
        segmenter = Segmenter(
            model,
            chosen,
            weights=weights,
            templates=templates,
            text=text,
            background=background,
            presence=presence,
            protocol=changes,
            proxy=proxy,
            proxy_scope=proxy_scope,
            sam=sam,
            regions=regions,
            views=views,
            refine=refine,
            device=device,
            precision=precision,
            compat=compat,
        )
    backbone = segmenter.backbone
    warned: set[str] = set()
    if model == "auto":
        advice = f". Better: {backbone.upgrade}" if backbone.upgrade else ""
        stderr().print(f"model [bold]{escape(backbone.name)}[/]: {escape(backbone.summary + advice)}")
    progress = stderr().status("")

    def after(job: Job, result: SegmentationResult) -> None:
        for warning in set(result.warnings) - warned:
            stderr().print(f"[yellow]warning:[/] {escape(warning)}")
            warned.add(warning)
        shares = sorted(result.fractions().items(), key=lambda item: -item[1])
        found = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        absent = result.meta["absent"]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            found += f"; not in it: {', '.join(absent[:5])}{more}"
        stdout().print(f"{file_name(job.image)}: {escape(found)}  [dim]({result.meta['seconds']:.1f} s)[/]")

    with progress:
        report = segment_folder(
            segmenter,
            jobs,
            label_set,
            sheet=sheet,
            before=lambda job: progress.update(f"{file_name(job.image)} (new words take longer the first time)"),
            after=after,
            failed=lambda job, error: fail(error),
        )
    if report.done:
        stdout().print(f"results in {escape(str(out))}")
    if report.errors:
        if report.done:
            stderr().print(f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(out / ERRORS))}")
        raise typer.Exit(PARTLY if report.done else FAILED)
