"""`densevl video`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import labels_of, looked_up, run_images, settings
from densevl.cli.shared import one_line_errors, print_json, stderr, stdout, warn
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.pipelines.video.result import VideoResult

OVER_TIME = "Over time"


@one_line_errors
@options.loads
def video(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Video files, folders of them with all below, patterns such as 'clips/*.mp4', or the number of a "
            "camera, 0 for the first.",
            show_default=False,
        ),
    ],
    labels: options.Labels = "",
    like: options.Like = None,
    smooth: Annotated[
        float,
        options.option(
            "Set the weight of earlier frames in the scores, 0 to below 1. Labels flicker less, but lag behind fast "
            "motion. Start with 0.5.",
            panel=OVER_TIME,
        ),
    ] = 0.0,
    every: Annotated[
        int,
        options.option(
            "Run the model on every N-th frame only; frames between keep the labels. Faster.", panel=OVER_TIME, min=1
        ),
    ] = 1,
    seconds: Annotated[
        float | None,
        options.option("For a camera: stop after this many seconds. Ctrl-C also stops it.", panel=OVER_TIME, min=0.1),
    ] = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    descriptors: options.Descriptors = None,
    text_transform: options.TextTransform = None,
    template_weights: options.TemplateWeights = "equal",
    parents: options.Parents = "none",
    presence: options.Presence = None,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    plan: options.Plan = None,
    blend: options.Blend = None,
    proxy: options.Proxy = None,
    proposals: options.Proposals = None,
    refine: options.Refine = None,
    upsampler: options.Upsampler = None,
    out: options.OutFolder = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
) -> None:
    """Segment videos by words: write an overlay video, a label map for each frame, and label shares over time.

    Run the same command again to finish what is missing.
    """
    given = locals()
    labelled = labels_of(labels, like)
    chosen = settings(given) | {"proposals": proposals, "refine": refine, "upsampler": upsampler}
    camera = int(videos[0]) if len(videos) == 1 and videos[0].isdecimal() and not os.path.exists(videos[0]) else None
    if seconds is not None and camera is None:
        raise OptionError("--seconds is for cameras, such as `densevl video 0`; videos are processed to their end")

    from densevl.pipelines.video.reading import find_videos

    found = looked_up(given, find_videos(videos)) if camera is None else None
    from densevl.pipelines.folder.tasks import VideoSegmenting

    work = VideoSegmenting(labelled, chosen, smooth, every)
    if found is not None:
        shared = {"ray": None, "workers": 1, "shard": options.SHARD}
        run_images(work, found, given | shared, [], _described)
        return
    result = _of_camera(work, camera or 0, seconds, out or f"{options.OUT}/camera", overwrite=overwrite)
    if not quiet:
        for warning in result.warnings:
            warn(warning)
    if as_json:
        print_json({"camera": camera, "fractions": result.shares, "warnings": list(result.warnings)})
    elif not quiet:
        stdout().print(f"{_described(f'camera {camera}', result)}\nresults in {escape(out or f'{options.OUT}/camera')}")


def _of_camera(work: Any, camera: int, seconds: float | None, out: str, *, overwrite: bool) -> VideoResult:
    from pathlib import Path

    from densevl.files import guard
    from densevl.pipelines.folder.tasks import VIDEO

    path = Path(out, f"camera-{camera}{VIDEO.main}")
    guard([path.with_name(f"camera-{camera}{ending}") for ending in VIDEO.endings], overwrite=overwrite)
    with stderr().status("loading the model"):
        segment = work.task().pipeline
    result = segment(camera, work.labels, seconds=seconds)
    with stderr().status("segmenting; Ctrl-C stops"):
        result.save(path, overwrite=True)
    return result


def _described(name: str, result: VideoResult) -> str:
    shares = sorted(result.fractions().items(), key=lambda item: -item[1])
    return f"{name}: {escape(', '.join(f'{label} {share:.0%}' for label, share in shares if share >= 0.005))}"
