"""`densevl fewshot fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout

HEADS = ("gda", "exemplars", "nearest", "tip", "tipx", "ape", "linear", "adapter", "prolip")

fewshot_app = typer.Typer(no_args_is_help=True, help="Classes by example: fit on a few images of each.")


@fewshot_app.command("fit")
@one_line_errors
@options.loads
def fewshot_fit(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder that holds one folder of images for each class, named after it."),
    ],
    out: Annotated[
        Path, options.option("Where what was learned is saved: OUT.safetensors and OUT.json.", panel=options.FILES)
    ] = Path("head"),
    head: Annotated[
        str,
        options.option(
            "How examples and words are put together; gda suits most cases.",
            panel=options.METHOD,
            values=HEADS,
            only=True,
        ),
    ] = "gda",
    calibrate: Annotated[
        float | None,
        options.option(
            "Calibrate confidence, and name the plausible classes: sets that miss the true class in this share of "
            "images, such as 0.1.",
            panel=options.METHOD,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        options.option(
            "A folder like the first, of other images, to calibrate on; --head exemplars can do without.",
            panel=options.METHOD,
        ),
    ] = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    templates: options.Templates = None,
    bits: options.Bits = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Learn classes from a few example images of each; `densevl classify --head OUT` then names others."""
    from densevl.errors import OptionError
    from densevl.files import guard
    from densevl.fitted import files

    if held_out is not None and calibrate is None:
        raise OptionError("--held-out is what --calibrate is fitted to; give --calibrate too, such as 0.1")
    from densevl.pipelines.fewshot.classifier import FewShot
    from densevl.pipelines.fewshot.features import by_folder

    examples = by_folder(folder)
    others = None if held_out is None else by_folder(held_out)
    paths = [path for some in (examples, others or {}) for own in some.values() for path in own]
    guard(files(out), inputs=paths, overwrite=overwrite)
    with stderr().status("loading the model"):
        name = FewShot(model, head, weights=weights, device=device, precision=precision, templates=templates)
    with stderr().status(f"{sum(map(len, examples.values()))} images of {len(examples)} classes"):
        name.fit(examples)
        if calibrate is not None:
            name.calibrate(others, alpha=calibrate)
    written = name.save(out)
    stdout().print(f"{len(examples)} classes; wrote {escape(', '.join(map(str, written)))}")
