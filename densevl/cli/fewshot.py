"""`densevl fewshot`: `fit` and `memory`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import one_line_errors, require_name, stderr, stdout, warn

HEADS = ("gda", "exemplars", "nearest", "tip", "tipx", "ape", "linear", "adapter", "prolip", "prompt")
LEVELS = ("image", "region", "pixel")
HOWS = ("top", "spread", "retrieve")
BETA = 0.5
"""The default beta of a memory."""
HALF = ".checkpoint.safetensors"
"""Appended to the name of --out: a checkpoint of head "prompt", from which a killed run resumes."""

fewshot_app = typer.Typer(
    no_args_is_help=True, help="Learn classes from a few examples, or build a memory of captioned images."
)


@fewshot_app.command("fit")
@one_line_errors
@options.loads
def fewshot_fit(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder with one folder of images for each class, named after it; an empty one is a class by its "
            "words alone. For regions: with images/ and instances.json (COCO). For pixels: with images/, labels/ and a "
            "list of classes. With --unlabelled: any images."
        ),
    ],
    out: Annotated[Path, options.option("Save the head as OUT.safetensors and OUT.json.", panel=options.FILES)] = Path(
        "head"
    ),
    head: Annotated[
        str,
        options.option(
            "Choose how examples and words are combined; gda suits most cases.",
            panel=options.METHOD,
            values=HEADS,
            only=True,
        ),
    ] = "gda",
    level: Annotated[
        str,
        options.option(
            "Choose what to learn: image (for `densevl classify --head`), region (for `regions --head`) or pixel "
            "(for `segment --head`).",
            panel=options.METHOD,
            values=LEVELS,
            only=True,
        ),
    ] = "image",
    labels: options.Labels = "",
    unlabelled: Annotated[
        str | None,
        options.option(
            "Learn from unlabelled images: pick examples by --labels with top (the most confident of each class), "
            "spread (labels propagated from image to image) or retrieve (the nearest to each class).",
            panel=options.METHOD,
            values=HOWS,
            only=True,
        ),
    ] = None,
    count: Annotated[
        int | None,
        options.option("With --unlabelled: use at most this many examples of a class; 16 if left out.", min=1),
    ] = None,
    captions: Annotated[
        Path | None,
        options.option(
            "For --head tipx: read a caption of each image from a JSON file, {image: caption}.",
            panel=options.METHOD,
            there=True,
        ),
    ] = None,
    own: Annotated[
        list[str] | None,
        options.option(
            "Set an option of the head, KEY=VALUE, such as alpha=0.5. May be given several times.",
            "--set",
            panel=options.METHOD,
        ),
    ] = None,
    calibrate: Annotated[
        float | None,
        options.option(
            "Calibrate confidence, and report sets of plausible classes that miss the true class in this share of "
            "images, such as 0.1.",
            panel=options.METHOD,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        options.option(
            "Calibrate on the other images in this folder, in the same layout; --head exemplars does not need it.",
            panel=options.METHOD,
        ),
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
    operator: options.Operator = None,
    proposals: options.Proposals = None,
    bits: options.Bits = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Learn classes from a few examples; then use `densevl classify`, `regions` or `segment --head OUT`."""
    given = locals()
    require_name(out)
    _require_sense(given)
    from densevl.cli.images import finder, settings
    from densevl.evaluation.config import merged, parse_change
    from densevl.files import guard
    from densevl.fitted import files
    from densevl.images import find_images
    from densevl.tuning.examples import open_examples

    changes: dict[str, Any] = {}
    for change in own or ():
        changes = merged(changes, parse_change(change))
    examples: Any
    named: Any
    if unlabelled is not None:
        examples, named = [*find_images([str(folder)]).paths], None
    else:
        examples, named = open_examples(folder, level)
    others = None if held_out is None else open_examples(held_out, "image")[0]
    guard(files(out), inputs=[*_paths(examples), *_paths(others or {})], overwrite=overwrite)
    _require_free(files(out), overwrite)
    from densevl.backbones.reach import listed
    from densevl.pipelines.fewshot.classifier import FewShot
    from densevl.tuning.examples import taught

    chosen = settings({**dict.fromkeys(("short_side", "crop", "stride", "plan", "blend")), **given})
    if level == "region":
        chosen |= {"operator": operator, "proposals": finder(proposals, False, device) if unlabelled else None}
    with stderr().status("loading the model"):
        name = FewShot(head=head, level=level, options=changes, **chosen)
    images, half = f"{len(_paths(examples))} images", out.with_name(f"{out.name}{HALF}")
    with stderr().status(images) as status:
        if unlabelled is not None:
            name.fit_unlabelled(examples, labels, how=unlabelled, count=count or 16, captions=captions)
        else:
            shown = examples if level == "image" else taught(name, examples)
            how = {"checkpoint": half if head == "prompt" else None, "captions": captions}
            name.fit(shown, labels or named, progress=lambda n, of: status.update(f"{images}, step {n} of {of}"), **how)
        if calibrate is not None:
            name.calibrate(others, alpha=calibrate)
    written = name.save(out, overwrite=True)
    half.unlink(missing_ok=True)
    notes = [", ".join(f"{count} {label}" for label, count in name.counts.items())] if unlabelled else []
    if by_words := [label for label in name.fitted().names if not name.counts[label]]:
        notes.append(f"by words alone: {listed(by_words)}")
    classes = f"{len(name.fitted())} classes" + (f" ({'; '.join(notes)})" if notes else "")
    stdout().print(escape(f"{classes}; wrote {', '.join(map(str, written))}"))


@fewshot_app.command("memory")
@one_line_errors
@options.loads
def fewshot_memory(
    folder: Annotated[
        Path,
        typer.Argument(help="Images with captions: a text file of the same name beside each, or a captions.json."),
    ],
    out: Annotated[Path, options.option("Write the memory to this safetensors file.", panel=options.FILES)] = Path(
        "memory.safetensors"
    ),
    beta: Annotated[
        float | None,
        options.option(
            "Set how far words move towards their images; 0 changes nothing; 0.5 if left out.",
            panel=options.METHOD,
        ),
    ] = None,
    neighbours: Annotated[
        int, options.option("Look up this many captions for each word.", panel=options.METHOD, min=1)
    ] = 10,
    examples: Annotated[
        Path | None,
        options.option("Choose beta on a folder with one folder of images for each class.", panel=options.METHOD),
    ] = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    bits: options.Bits = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Build a memory of captioned images, for use with --text-transform of the other commands."""
    from densevl.errors import OptionError
    from densevl.files import guard
    from densevl.pipelines.fewshot.features import by_folder
    from densevl.pipelines.fewshot.memories import build_memory, fit_beta, pairs_of

    require_name(out)
    if examples is not None and beta is not None:
        raise OptionError("--beta sets what --examples would choose: leave one of them out")
    if beta is not None and beta > 1:
        warn(f"--beta {beta:g}: the look of images outweighs the word itself; 0 to 1 is usual")
    pairs = pairs_of(folder)
    shown = None if examples is None else by_folder(examples)
    guard([out], inputs=[image for image, _ in pairs], overwrite=overwrite)
    _require_free([out], overwrite)
    from densevl.backbones import load_backbone

    with stderr().status("loading the model"):
        backbone = load_backbone(model, weights=weights, device=device, precision=precision)
    with stderr().status(f"{len(pairs)} images"):
        memory = build_memory(pairs, backbone, beta=BETA if beta is None else beta, neighbours=neighbours)
        if shown is not None:
            memory = fit_beta(memory, backbone, shown)
    memory.save(out)
    stdout().print(f"{len(memory)} pairs, beta {memory.beta:g}; wrote {escape(str(out))}")


def _require_sense(given: dict[str, Any]) -> None:
    """Refuse options that do not fit together, before anything is read."""
    from densevl.errors import OptionError

    if given["held_out"] is not None and given["calibrate"] is None:
        raise OptionError("--held-out is used only by --calibrate; give --calibrate too, such as 0.1")
    if given["unlabelled"] is None and given["count"] is not None:
        raise OptionError("--count limits the examples of --unlabelled: give --unlabelled too")
    if given["unlabelled"] is not None and not given["labels"]:
        raise OptionError("--unlabelled finds examples of the labels: give --labels too")
    for flag in ("operator", "proposals"):
        if given[flag] is not None and given["level"] != "region":
            raise OptionError(f"--{flag} is for regions: give --level region too, or leave it out")
    if given["proposals"] is not None and given["unlabelled"] is None:
        raise OptionError("--proposals finds regions in images without labels (--unlabelled): leave it out")


def _require_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace the result of an earlier call.

    Raises:
        OutputError: If there is one.
    """
    from densevl.errors import OutputError
    from densevl.files import shown

    there = next((path for path in paths if path.exists()), None)
    if there is not None and not overwrite:
        raise OutputError(
            f"{shown(there)} holds what an earlier call learned; name another --out, or replace it with --overwrite"
        )


def _paths(examples: Any) -> list[Any]:
    """Return the files of images by class, of pictures, or of a list."""
    if isinstance(examples, dict):
        return [path for paths in examples.values() for path in paths]
    return list(getattr(examples, "paths", examples))
