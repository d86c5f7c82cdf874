"""`densevl explain`: IMAGE (short for `patches`), `heads`, `words` and `pairs`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import OneLineGroup, file_name, one_line_errors, print_json, stderr, stdout, warn
from densevl.errors import ImageError, LabelError, OptionError, OutputError

if TYPE_CHECKING:
    from densevl.pipelines.explanation.explainer import Explainer
    from densevl.pipelines.explanation.results import Explanation

FIRST = "patches"
"""The command that `densevl explain IMAGE` is short for."""


class _Explain(OneLineGroup):
    """A group of commands whose first need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [FIRST, *args]
        return super().parse_args(ctx, args)


explain_app = typer.Typer(
    cls=_Explain,
    no_args_is_help=True,
    help="Explain a score: IMAGE --label LABEL shows what each patch adds to it.",
)
Image = Annotated[str, typer.Argument(help="One image.", show_default=False)]
Label = Annotated[
    str,
    options.option('Explain the score of this word; "cat|kitten" takes the better one.', panel=options.ASKED),
]
Against = Annotated[
    str | None,
    options.option("Subtract the mean score of these words, separated by commas.", panel=options.ASKED),
]
Head = Annotated[int, options.option("Choose the head, counted from 1.", panel=options.ASKED, min=1)]


@explain_app.command()
@one_line_errors
@options.loads
def patches(
    image: Image,
    label: Label = "",
    against: Against = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    templates: options.Templates = None,
    out: options.Out = options.OUT,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    bits: options.Bits = None,
) -> None:
    """Show what each patch adds to the score of a label, as a picture and a JSON file. Parts add up to the score."""
    given = locals()
    _one(label)
    found = _run(given, FIRST, label, lambda explain, rgb: explain(rgb, label, against=against))
    if found is not None:
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in found.parts.items())
        stdout().print(f"{file_name(image)}: {escape(found.label)} {found.score:.3f} = {parts}")


@explain_app.command()
@one_line_errors
@options.loads
def heads(
    image: Image,
    label: Label = "",
    against: Against = None,
    blocks: Annotated[
        str,
        options.option("Choose the blocks: -4 for the last four, or their numbers from 1: 9,12.", panel=options.ASKED),
    ] = options.BLOCKS,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    templates: options.Templates = None,
    out: options.Out = options.OUT,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    bits: options.Bits = None,
) -> None:
    """Show what each head adds to the score of a label: a sheet of maps, one row per block, and a JSON of shares."""
    given = locals()
    _one(label)
    numbers: Any = options.numbers(blocks, int, "--blocks -4 or --blocks 9,12")
    chosen = numbers[0] if len(numbers) == 1 else numbers
    found = _run(given, "heads", label, lambda explain, rgb: explain.heads(rgb, label, against=against, blocks=chosen))
    if found is not None:
        largest = ", ".join(f"{block}.{head} {score:+.3f}" for (block, head), score in found.top(5))
        stdout().print(f"{file_name(image)}: {escape(found.label)} {found.score:.3f}; block.head {largest}")


@explain_app.command()
@one_line_errors
@options.loads
def words(
    images: options.Images,
    block: Annotated[
        int | None,
        options.option("Choose the block, counted from 1; the last if left out.", panel=options.ASKED, min=1),
    ] = None,
    head: Head = 1,
    vocabulary: Annotated[
        str | None,
        options.option(
            "Choose from these words, written like --labels elsewhere; densevl's list of nouns if left out.",
            "--words",
            panel=options.ASKED,
        ),
    ] = None,
    most: Annotated[int, options.option("Print this many words.", "--top", panel=options.ASKED, min=1)] = 10,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    templates: options.Templates = None,
    as_json: options.Json = False,
    bits: options.Bits = None,
) -> None:
    """Print what a head responds to: words along which it varies most over some images (TextSpan). Writes no files."""
    from densevl.backbones.at_hand import require_possible
    from densevl.images import find_images
    from densevl.vocabulary import LabelSet

    asked = None if vocabulary is None else LabelSet.parse(vocabulary)
    photos = find_images(images).paths
    require_possible(model)
    with stderr().status("loading the model"):
        explain = _explainer({"model": model, "weights": weights, "device": device, "templates": templates})
        chosen = explain.depth if block is None else block
        found = explain.head_texts(photos, asked, block=chosen, head=head, m=most)
    for text, share in found:
        if as_json:
            print_json({"block": chosen, "head": head, "word": text, "share": share})
        else:
            stdout().print(f"{share:6.1%}  {escape(text)}")


@explain_app.command()
@one_line_errors
@options.loads
def pairs(
    image: Image,
    caption: Annotated[str, typer.Argument(help='A sentence about the image: "a red cat".', show_default=False)],
    box: Annotated[
        str | None,
        options.option("Also show how each word relates to this box, x0,y0,x1,y1 in pixels.", panel=options.ASKED),
    ] = None,
    text_block: Annotated[
        int,
        options.option(
            "Tell words apart at the input of this block of the text tower: 1 the first, -1 the last.",
            panel=options.METHOD,
        ),
    ] = options.TEXT_BLOCK,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    out: options.Out = options.OUT,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    bits: options.Bits = None,
) -> None:
    """Show what each pair of a caption's word and a patch adds to the score: write a sheet of maps and a JSON file."""
    given = {"templates": None, **locals()}
    if not caption.strip():
        raise LabelError('the caption is empty; describe the image, as in "a red cat"')
    corners = None if box is None else options.numbers(box, float, "--box x0,y0,x1,y1")

    def explained(explain: Explainer, rgb: Any) -> Any:
        inside = None if corners is None else require_box(corners, rgb)
        return replace(explain.pairs(rgb, caption, text_block=text_block), box=inside)

    from densevl.pipelines.explanation.results import require_box

    found = _run(given, "pairs", caption, explained)
    if found is not None:
        scores = [(word, float(score)) for word, score in zip(found.tokens, found.scores, strict=True)]
        stdout().print(f"{file_name(image)}: {found.score:.3f}; {_listed(scores)}")
        if corners is not None:
            inside = found.region(corners)
            stdout().print(f"in the box: {_listed(list(zip(found.tokens, map(float, inside), strict=True)))}")


def _listed(scores: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{escape(word)} {score:+.3f}" for word, score in scores)


def _one(label: str) -> None:
    """Refuse no label, or several, before anything is loaded."""
    from densevl.vocabulary import LabelSet

    if not label:
        raise OptionError("name the label whose score to explain: --label cat")
    if len(LabelSet.parse(label)) != 1:
        raise LabelError(f"--label {label!r} names several labels; give one, and others with --against")


def _explainer(given: dict[str, Any]) -> Explainer:
    from densevl.pipelines.explanation.explainer import Explainer

    return Explainer(given["model"], **{name: given[name] for name in ("weights", "device", "templates")})


ASKED = (
    *("label", "caption", "against", "blocks", "box", "text_block"),
    *("model", "weights", "templates", "bits"),
)
"""Options that change the explanation."""


def _run(given: dict[str, Any], what: str, text: str, explained: Callable[[Explainer, Any], Explanation]) -> Any:
    """Explain one image and write the result, named after the image and the text. Return None if nothing is printed.

    Raises:
        OutputError: If files of another explanation exist. Other errors as for the explanation.
    """
    from densevl.backbones.at_hand import require_possible
    from densevl.files import guard, shown, unique_stems
    from densevl.images import read_image

    image = given["image"]
    if Path(image).is_dir():
        raise ImageError(f"{shown(image)} is a folder; explain one image, and name its file")
    asked = {"image": str(Path(image).absolute())}
    asked |= {name: str(given[name]) for name in ASKED if given.get(name) is not None}
    rgb = read_image(image)
    require_possible(given["model"])
    words = re.sub(r"[\\/\s]+", "_", text.strip())
    name = unique_stems([f"{unique_stems([image])[0]}_{words}.png"])[0]
    target = Path(given["out"], f"{name}_{what}.png")
    guard([target, target.with_suffix(".json")], inputs=[image], overwrite=given["overwrite"])
    if not given["overwrite"]:
        _require_same(target, asked)
    with stderr().status("loading the model"):
        explain = _explainer(given)
    with stderr().status("explaining"):
        found = explained(explain, rgb)
    found.meta.update(image=image, asked=asked)
    written = found.save(target, overwrite=True)
    for warning in () if given["quiet"] or given["as_json"] else found.warnings:
        warn(warning)
    if given["as_json"]:
        print_json({"image": image, "outputs": [str(path) for path in written], **found.brief()})
    if given["as_json"] or given["quiet"]:
        return None
    stdout().print(f"picture in {escape(str(target))}")
    return found


def _require_same(target: Path, asked: dict[str, str]) -> None:
    """Refuse to replace the files of another explanation."""
    from densevl.files import shown
    from densevl.fitted import differing

    beside = target.with_suffix(".json")
    if not beside.exists():
        return
    try:
        before = dict(json.loads(beside.read_bytes())["meta"]["asked"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        before = {}
    if before != asked:
        changes = differing(before, asked) if before else "its settings are unknown"
        raise OutputError(
            f"{shown(beside)} holds another explanation ({changes}); name another --out, or replace it with --overwrite"
        )
