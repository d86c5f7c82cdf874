"""`densevl classify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import labels_of, looked_up, run_images, text_options
from densevl.cli.shared import one_line_errors, where
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.fewshot.result import Classification


@one_line_errors
@options.loads
def classify(
    images: options.Images,
    labels: options.Labels = "",
    like: options.Like = None,
    head: options.Head = None,
    model: Annotated[
        str | None,
        options.option(
            "Choose the CLIP to run; `densevl models` lists them. If left out, the one of --head, or 'auto'.",
            panel=options.MODELLING,
            values=options.MODELS,
        ),
    ] = None,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    templates: options.Templates = None,
    descriptors: options.Descriptors = None,
    text_transform: options.TextTransform = None,
    presence: options.Presence = None,
    guided: Annotated[
        int | None,
        options.option(
            "Rerank this many of the likeliest labels by crops of where the model sees them. Finds small objects.",
            panel=options.LOOKING,
            min=2,
        ),
    ] = None,
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
    """Classify whole images: write a JSON file with all probabilities and a picture with the likeliest label for each.

    Uses words alone (--labels), or a head learned from examples (--head).
    """
    given = locals()
    from densevl.vocabulary import TextOptions

    words = {"--templates": templates, "--descriptors": descriptors, "--text-transform": text_transform}
    clashing = [flag for flag, value in {"--labels": labels, "--like": like, **words}.items() if value]
    if head is not None and clashing:
        place = where(*(flag.removeprefix("--").replace("-", "_") for flag in clashing))
        raise OptionError(f"--head has its own classes and words; leave {', '.join(clashing)} out{place}")
    asked = labels_of(labels, like) if head is None else None
    chosen: dict[str, Any] = {"model": model, "weights": weights, "device": device, "precision": precision}
    chosen |= {name: own for name, own in {"guided": guided, "presence": presence}.items() if own is not None}
    if head is None:
        chosen |= {"model": model or options.MODEL, "templates": templates}
        chosen["text"] = TextOptions.parse(text_options(given))

    found = looked_up(given)
    from densevl.pipelines.folder import gathered
    from densevl.pipelines.folder.tasks import CLASSIFY, Classifying

    run_images(
        Classifying(asked, chosen, head),
        found,
        given,
        [gathered.Sheet(CLASSIFY.picture, columns=4)] if sheet else [],
        _described,
    )


def _described(name: str, result: Classification) -> str:
    found = ", ".join(f"{label} {p:.0%}" for label, p in result.top(3) if p >= 0.005)
    sure = "" if result.plausible is None else f"; plausible: {', '.join(result.plausible) or 'none'}"
    return f"{name}: {escape(found + sure)}"
