"""`densevl anomaly fit` and `densevl anomaly score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli.shared import FAILED, PARTLY, fail, file_name, one_line_errors, stderr, stdout

anomaly_app = typer.Typer(no_args_is_help=True, help="Anomaly maps: fit on sound images, score others.")


@anomaly_app.command("fit")
@one_line_errors
def anomaly_fit(
    normal: Annotated[list[Path], typer.Argument(help="Sound images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Where to save: OUT.safetensors and OUT.json.")] = Path("detector"),
    model: Annotated[str, typer.Option(help="mini, ViT-B-16-plus-240/laion400m_e32, local-dir:PATH.")] = "auto",
    item: Annotated[str, typer.Option(help='What is looked at, "metal nut".')] = "object",
    scoring: Annotated[str, typer.Option(help="winclip, dense, streams, dino, patchcore, adaptclip.")] = "winclip",
    windows: Annotated[str | None, typer.Option(help="exact, shared or pooled.")] = None,
    whole: Annotated[bool, typer.Option(help="Let the score of the whole image lift its map; not for masks.")] = True,
    states: Annotated[Path | None, typer.Option(help="JSON of words for sound and damaged.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Short side that images are fed at; the model's own, if left out.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Cut larger images into tiles of this side, in pixels.")] = None,
    adapters: Annotated[Path | None, typer.Option(help="Trained adapters, for adaptclip.")] = None,
    proxy: Annotated[str | None, typer.Option(help="Remember features of mini-sam, dinov2_vits14, ...")] = None,
    fpr: Annotated[float, typer.Option(help="Share of sound images that may be called anomalous.")] = 0.01,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Remember sound images and set a threshold from them."""
    from densevl.images import list_images

    paths = list_images(normal)
    from densevl.pipelines.anomaly.detector import AnomalyDetector

    changes: dict[str, Any] = {"whole": whole} | ({"windows": windows} if windows else {})
    detector = AnomalyDetector(
        model,
        item,
        scoring=scoring,
        states=states,
        size=size,
        tile=tile,
        adapters=adapters,
        proxy=proxy,
        device=device,
        **changes,
    )
    with stderr().status(f"{len(paths)} images"):
        detector.fit(paths).calibrate(fpr)
    files = detector.save(out)
    limit = "" if detector.thresholds is None else f"threshold {detector.thresholds.image:.6g}; "
    stdout().print(f"{limit}wrote {escape(', '.join(map(str, files)))}")


@anomaly_app.command("score")
@one_line_errors
def anomaly_score(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    detector: Annotated[Path | None, typer.Option(help="A fitted detector; none scores by words alone.")] = None,
    model: Annotated[str | None, typer.Option(help="The detector's own, or auto, if left out.")] = None,
    item: Annotated[str, typer.Option(help='What is looked at, "metal nut"; a fitted detector knows.')] = "object",
    scoring: Annotated[str, typer.Option(help="winclip, dense or streams, without a fitted detector.")] = "winclip",
    adapters: Annotated[Path | None, typer.Option(help="Trained adapters, for adaptclip.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("densevl-out"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.png with all heat maps.")] = False,
) -> None:
    """Score images: a heat map, a JSON and the raw map for each, and scores.csv."""
    from densevl.images import list_images

    paths = list_images(images)
    from densevl.pipelines.anomaly.detector import AnomalyDetector
    from densevl.pipelines.anomaly.folder import score_folder
    from densevl.pipelines.folder import ERRORS

    options: dict[str, Any] = {"device": device, "adapters": adapters}
    if detector is not None:
        detect = AnomalyDetector.load(detector, model, **options)
    else:
        detect = AnomalyDetector(model or "auto", item, scoring=scoring, **options)
    progress = stderr().status("")
    with progress:
        report = score_folder(
            detect,
            paths,
            out,
            sheet=sheet,
            before=lambda job: progress.update(file_name(job.image)),
            failed=lambda job, error: fail(error),
        )
    table = Table("image", "score", "anomalous", "share", box=None, pad_edge=False)
    for row in report.ranked:
        verdict = "" if row.is_anomalous is None else "[red]yes[/]" if row.is_anomalous else "no"
        share = "" if row.anomalous_share is None else f"{row.anomalous_share:.1%}"
        table.add_row(file_name(row.job.image), f"{row.score:.4f}", verdict, share)
    if report.rows:
        stdout().print(table)
        stdout().print(f"results in {escape(str(out))}")
    if report.errors:
        if report.rows:
            stderr().print(f"{len(report.errors)} of {len(paths)} images failed, listed in {escape(str(out / ERRORS))}")
        raise typer.Exit(PARTLY if report.rows else FAILED)
