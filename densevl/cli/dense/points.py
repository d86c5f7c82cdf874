"""`densevl points`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from densevl.cli import options
from densevl.cli.dense.features import step, windows
from densevl.cli.shared import one_line_errors, print_json, stderr, stdout, warn


@one_line_errors
@options.loads
def points(
    cloud: Annotated[
        Path, typer.Argument(help="A cloud or mesh in .ply, or an .npy array (N, 3).", show_default=False)
    ],
    views: Annotated[
        Path,
        options.option(
            "Read the posed photos from a transforms.json, as nerfstudio and instant-ngp write it, or from its folder.",
            panel=options.ASKED,
        ),
    ] = Path("transforms.json"),
    labels: options.Labels = "",
    convention: Annotated[
        str,
        options.option(
            "Set the axes of the cameras: opengl (y up, looking along -z), as in nerfstudio, or opencv (y down, "
            "looking along z).",
            panel=options.ASKED,
            values=options.CONVENTIONS,
        ),
    ] = options.CONVENTIONS[0],
    depth_scale: Annotated[
        float | None,
        options.option(
            "Multiply depth by this to get the unit of the cloud. If left out: the value in the file, else 0.001 for "
            "integers and 1 for others.",
            panel=options.ASKED,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        options.option(
            "Treat a point as visible if its depth is off by at most this share, 0 to 1.", panel=options.ASKED
        ),
    ] = options.TOLERANCE,
    background: options.Background = "none",
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    plan: options.Plan = None,
    stride: Annotated[
        str,
        options.option(
            "Set the spacing of features in pixels of the photo, or 'patch' for one per patch.", panel=options.LOOKING
        ),
    ] = options.CELL,
    out: options.Out = options.OUT,
    features: Annotated[
        bool, options.option("Also write the features of the points, .npy.", "--features", panel=options.FILES)
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Label the points of a cloud from posed photos: write a PLY with a label for each point, and a JSON file."""
    from densevl.files import guard
    from densevl.pipelines.features.extractor import FeatureExtractor
    from densevl.pipelines.points.cameras import read_views
    from densevl.pipelines.points.clouds import read_cloud
    from densevl.pipelines.points.labeller import PointLabeller, require_same
    from densevl.vocabulary import Background, LabelSet

    asked, policy = LabelSet.parse(labels), Background.parse(background)
    where = read_cloud(cloud)
    posed = read_views(views, convention=convention, depth_scale=depth_scale)
    target = Path(out, f"{cloud.stem}.ply")
    files = [target, target.with_suffix(".json"), *([target.with_suffix(".npy")] if features else [])]
    guard(files, inputs=[cloud, views, *(view.image for view in posed)], overwrite=overwrite)
    with stderr().status("loading the model"):
        extractor = FeatureExtractor(
            model,
            recipe,
            stride=step(stride),
            weights=weights,
            protocol=windows(short_side=short_side, crop=crop, plan=plan),
            device=device,
            precision=precision,
        )
        label = PointLabeller(extractor, tolerance=tolerance)
    if not overwrite:
        require_same(target.with_suffix(".json"), label.facts(where, posed, asked, policy))
    with Progress(console=stderr(), transient=True, disable=quiet or not stderr().is_terminal) as progress:
        bar = progress.add_task("views", total=len(posed))
        found = label(
            where, posed, asked, background=policy, watch=lambda done, _: progress.update(bar, completed=done)
        )
    found.meta["cloud"] = str(cloud)
    written = found.save(target, features=features, overwrite=True)
    for warning in () if quiet or as_json else found.warnings:
        warn(warning)
    if as_json:
        print_json({"cloud": str(cloud), "outputs": [str(path) for path in written], **found.facts()})
        return
    if not quiet:
        shares = sorted(found.counts().items(), key=lambda item: -item[1])
        summary = ", ".join(f"{name} {count / len(where):.0%}" for name, count in shares if count)
        stdout().print(f"{len(where):,} points, {int((found.seen > 0).sum()):,} seen: {escape(summary)}")
        stdout().print(f"results in {escape(str(target))}")
