"""`densevl export`: write a model as a file, and words for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout

OUT = "The file to write; the file extension is added if it is missing."


class _ModelFirst(typer.core.TyperGroup):
    """Makes `densevl export FILE` short for `densevl export model FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args[:1] and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["model", *args])


export_app = typer.Typer(
    cls=_ModelFirst,
    no_args_is_help=True,
    help="Write a model with its recipe as a file that runs without torch. `export FILE` is `export model FILE`.",
)


def exportable(model: str, weights: Path | None, recipe: str | None, *, compat: bool = False) -> tuple[Any, Any]:
    """Load a model on the CPU, and resolve the recipe."""
    from densevl.backbones import load_backbone
    from densevl.recipes import get

    chosen = get(recipe) if recipe else None  # a mistyped name fails before the model loads
    backbone = load_backbone(model, weights, device="cpu")
    return backbone, backbone.resolve(chosen, compat=compat)


@export_app.command("model")
@one_line_errors
@options.loads
def model_file(
    out: Annotated[str, typer.Argument(help=OUT, show_default=False)],
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    recipe: options.Recipe = None,
    compat: options.Compat = False,
    kind: Annotated[
        str,
        options.option(
            "Choose the format: onnx, torch (torch.export's .pt2) or openvino.",
            "--format",
            values=("onnx", "torch", "openvino"),
        ),
    ] = "onnx",
    labels: options.Labels = "",
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    check: Annotated[
        bool,
        options.option(
            "Compare the file with the model at several sizes and vocabularies, and print the differences.", "--check"
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a model with its recipe as a file: pixels and words to scores.

    With --labels, also writes a file of words; see `densevl export words`.
    """
    from densevl.errors import OptionError, RecipeError
    from densevl.exporting import checking, files, graph, words
    from densevl.files import guard, require_folder
    from densevl.vocabulary import Background, LabelSet
    from densevl.vocabulary import templates as sentences

    path = files.path_of(out, kind)
    files.require(kind)
    if not labels and (templates or background != options.BACKGROUND):
        raise OptionError("--templates and --background are about words; give --labels too")
    asked = LabelSet.parse(labels) if labels else None
    policy = None if background == options.BACKGROUND else Background.parse(background)
    sentences.templates(templates or "name")  # a mistyped name fails before the model loads
    wanted = [path.with_suffix(ending) for ending in files.FORMATS[kind]]
    guard([*wanted, *([words.words_path(path)] if asked else [])], overwrite=overwrite, out="another FILE")
    require_folder(path)
    with stderr().status("loading the model"):
        backbone, chosen = exportable(model, weights, recipe, compat=compat)
    with stderr().status("capturing the graph"):
        program = graph.capture(backbone, chosen)
    with stderr().status(f"writing {kind}"):
        written = files.save(program, kind, path, graph.facts(backbone, chosen))
        if asked is not None:
            written.append(
                words.save_words(words.words_path(path), backbone, asked, background=policy, templates=templates)
            )
    with stderr().status("comparing the file with the model"):
        rows = list(checking.compare(backbone, chosen, files.runner(path, kind), quick=not check))
    if check:
        table = Table("batch", "height", "width", "words", "largest difference", box=None)
        for row in rows:
            table.add_row(str(row.batch), str(row.height), str(row.width), str(row.words), f"{row.difference:.1e}")
        stdout().print(table)
    if bad := [row for row in rows if not row.passes]:
        for file in written:
            file.unlink()
        raise RecipeError(
            f"the file differs from the model, so it was removed: at {bad[0].height}x{bad[0].width} its scores are off "
            f"by {bad[0].difference:.1e}, but only {checking.BAR:g} is allowed; take another format or recipe"
        )
    stdout().print(escape(f"wrote {', '.join(map(str, written))}"))


@export_app.command("words")
@one_line_errors
@options.loads
def words_file(
    out: Annotated[str, typer.Argument(help="The .npz file to write.", show_default=False)],
    labels: options.Labels = "",
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write words for an exported model: names, unit rows, and the class of each row."""
    from densevl.backbones import load_backbone
    from densevl.exporting import words
    from densevl.files import guard, require_folder
    from densevl.vocabulary import Background, LabelSet

    asked = LabelSet.parse(labels)
    policy = None if background == options.BACKGROUND else Background.parse(background)
    path = Path(out if out.lower().endswith(".npz") else f"{out}.npz")
    guard([path], overwrite=overwrite, out="another FILE")
    require_folder(path)
    with stderr().status("loading the model"):
        backbone = load_backbone(model, weights, device="cpu")
    for warning in backbone.doubts([*asked.words, *asked.negatives]):
        stderr().print(f"[yellow]warning:[/] {escape(warning)}")
    written = words.save_words(path, backbone, asked, background=policy, templates=templates)
    stdout().print(escape(f"wrote {written}"))
