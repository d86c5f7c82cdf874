"""`densevl segment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout

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
    regions: options.Regions = None,
    refine: options.Refine = None,
    out: options.Out = options.OUT,
    sheet: options.Sheet = False,
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

    jobs = plan_jobs(paths, Path(out))
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
            proposals=regions,
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
            stderr().print(
                f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(Path(out) / ERRORS))}"
            )
        raise typer.Exit(PARTLY if report.done else FAILED)
