"""`densevl models`: list, describe, download, check and convert models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, print_json, stderr, stdout, warn

models_app = typer.Typer(
    invoke_without_command=True,
    help="List models, show what one knows, download one from the hub, check or convert one.",
)
GUESSED = 1
WAYS = {"name": "the names of what it was trained on", "table": "listed by hand", "kind": "kinds of which it knows"}
FAMILIES = 8  # reasons printed, those with most words
SPELLED = 20  # words of a group printed

Name = Annotated[str, typer.Argument(help="A model's name, folder or weights file.", show_default=False)]
Weights = Annotated[
    Path | None, options.option("A weights file, when NAME is an architecture, a tag or a config file.")
]
Json = Annotated[bool, options.option("Print one line of JSON for each model instead of text.", "--json")]


@models_app.callback()
@one_line_errors
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models, best first, and which are on this machine."""
    if context.invoked_subcommand is None:
        _print_usual(as_json)


def _print_usual(as_json: bool) -> None:
    from densevl.backbones import available

    if as_json:
        for info in available():
            print_json(asdict(info))
        return
    table = Table("model", "on this machine", "what it is", box=None, pad_edge=False)
    for info in available():
        table.add_row(info.name, "[green]yes[/]" if info.ready else "no", escape(info.about))
    stdout().print(table)
    stdout().print(
        "Any other CLIP works by name (ARCH/TAG, see densevl models list --all; hf-hub:ORG/REPO), from a folder "
        "(local-dir:PATH) or from a file (--weights)."
    )
    stdout().print(f"Recipes that borrow take --proxy: {', '.join(options.PROXIES)}, a ViT of timm, or a file.")


@models_app.command("list")
@one_line_errors
def list_models(
    pattern: Annotated[str, typer.Argument(help="Names to list, with wildcards: 'ViT-L-*'.")] = "",
    every: Annotated[bool, options.option("List all published weights of open_clip's table.", "--all")] = False,
    as_json: Json = False,
) -> None:
    """List models with activation, size, whether on this machine, and where on the hub; the usual ones if left out."""
    from densevl.backbones.managing import listed

    if not (pattern or every):
        return _print_usual(as_json)
    rows = listed(pattern if "*" in pattern else f"*{pattern}*")
    if as_json:
        for row in rows:
            print_json(asdict(row))
        return
    table = Table("model", "activation", "pixels", "here", "hub", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.name, row.activation, str(row.size), "[green]yes[/]" if row.ready else "no", escape(row.hub))
    console = stdout()
    if not console.is_terminal:
        console.width = 300  # one line per model, for grep
    console.print(table)


@models_app.command("show")
@one_line_errors
def show_model(
    name: Annotated[str, typer.Argument(help="ARCH/TAG, photo, mini, or another name of densevl models.")],
    as_json: Json = False,
) -> None:
    """Describe a model and, if there is a table, which words it knows, partly knows and does not know."""
    from densevl.backbones.at_hand import available, require_possible

    if name not in {info.name for info in available()}:
        require_possible(name)
    from densevl.backbones.managing import show

    with stderr().status("looking"):
        facts = show(name)
    if as_json:
        return print_json(facts)
    console = stdout()
    listed_apart = ("knows", "half_knows", "does_not_know", "reads_as")
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in facts.items():
        if key not in listed_apart and value not in ("", None):
            table.add_row(key.replace("_", " "), escape(_words(value)))
    console.print(table)
    for way, words in facts.get("knows", {}).items():
        console.print(f"\nKnows {len(words):,} words, {WAYS[way]}: {escape(_some(words))}")
    for key in listed_apart[1:3]:
        groups = facts.get(key, [])
        for group in groups[:FAMILIES]:
            console.print(escape(f"\n{key.replace('_', ' ').capitalize()} {_some(group['words'])}: {group['why']}."))
        if rest := [word for group in groups[FAMILIES:] for word in group["words"]]:
            verb = key.replace("_", " ").capitalize()
            console.print(escape(f"\n{verb} {len(rest):,} others, for reasons that --json gives: {_some(rest)}"))
    if kinds := facts.get("reads_as"):
        some = [f"{kind} ({len(words):,})" for kind, words in kinds.items()]
        count = sum(map(len, kinds.values()))
        console.print(escape(f"\nReads {count:,} more words as what they are a kind of: {_some(some)}"))


@models_app.command("get")
@one_line_errors
def get_model(
    name: Annotated[str, typer.Argument(help="ARCH/TAG, or hf-hub:ORG/REPO[@REVISION][/FILE].")],
    to: Annotated[
        str | None,
        options.option(
            "Also copy the model to this folder; use it offline as local-dir:FOLDER.",
            metavar="FOLDER",
            callback=options.model_folder,
        ),
    ] = None,
    dry_run: Annotated[
        bool, options.option("List the files and their sizes without downloading.", "--dry-run")
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Download a model and all it needs from the hub into the hub cache. A stopped download is resumed."""
    from densevl.backbones.managing import get, planned

    if dry_run:
        files = planned(name)
        for file in files:
            stdout().print(escape(f"{file.size:>14,} {'here' if file.here else 'to get'} {file.file}"))
        missing = sum(file.size for file in files if not file.here)
        return stdout().print(f"{missing:>14,} bytes to download ({missing / 1e9:.2f} GB)")
    path = get(name, None if to is None else Path(to), overwrite=overwrite)
    if to is not None:
        return stdout().print(escape(f"{name} is in {to}: use it as local-dir:{to}"))
    stdout().print(escape(f"{name} is here: {path}"))
    if path.is_dir():
        stdout().print(escape(f"it stays the same by the name hf-hub:{_repository(path)}@{path.name}"))


def _repository(path: Path) -> str:
    """Return the repository of a folder in the hub cache: models--ORG--REPO/snapshots/COMMIT."""
    return path.parents[1].name.removeprefix("models--").replace("--", "/", 1)


@models_app.command("check")
@one_line_errors
@options.loads
def check_model(
    name: Name,
    weights: Weights = None,
    precision: options.Precision = options.PRECISION,
    as_json: Json = False,
) -> None:
    """Load a model, run it once, and report its properties and where each comes from.

    Exits with 0 if it works, 1 if it works with a guess, which a warning names, and 2 if it is refused.
    """
    backbone = _loaded(name, weights, precision=precision)
    from densevl.backbones.managing import describe, try_out

    try_out(backbone)
    facts = describe(backbone)
    if as_json:
        print_json({**facts, "warnings": list(backbone.guesses)})
    else:
        table = Table("what", "value", "taken from", box=None, pad_edge=False)
        for key, value in facts.items():
            has_source = isinstance(value, list) and key in (*backbone.reading, "words", "precision")
            shown, source = value if has_source else (value, "")
            table.add_row(key.replace("_", " "), escape(_words(shown)), escape(str(source)))
        stdout().print(table)
    for warning in backbone.guesses:
        warn(warning)
    if backbone.guesses:
        raise typer.Exit(GUESSED)


@models_app.command("convert")
@one_line_errors
@options.loads
def convert_model(
    name: Name,
    out: Annotated[
        str,
        typer.Argument(
            help="The folder to write.", show_default=False, metavar="FOLDER", callback=options.model_folder
        ),
    ],
    weights: Weights = None,
    words: Annotated[
        Path | None,
        options.option("Use a file of text vectors, .npz or safetensors, instead of the model's text tower."),
    ] = None,
    truncate_dim: Annotated[
        int | None, options.option("Keep only this many leading dimensions of all vectors (Matryoshka).", min=1)
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a model as a folder with open_clip_config.json, safetensors and a record of its properties.

    Use the folder as local-dir:OUT, also on machines without a network.
    """
    from densevl.files import require_folder

    folder = Path(out)
    require_folder(folder / "weights")
    backbone = _loaded(name, weights, words=words, truncate_dim=truncate_dim)
    from densevl.backbones.managing import convert

    for warning in backbone.guesses:
        warn(warning)
    inputs = [path for path in (name, weights, words) if path]
    written = convert(backbone, folder, inputs=inputs, overwrite=overwrite)
    stdout().print(escape(f"wrote {', '.join(map(str, written))}"))


def _loaded(name: str, weights: Path | None, **more: Any) -> Any:
    from densevl.backbones.at_hand import require_possible

    if weights is None:
        require_possible(name)
    from densevl.backbones import load_backbone

    with stderr().status("loading the model"):
        return load_backbone(name, weights, device="cpu", **more)


def _some(words: Sequence[str]) -> str:
    """Join words by commas, only the first if there are many."""
    more = f" and {len(words) - SPELLED:,} more (--json)" if len(words) > SPELLED else ""
    return ", ".join(words[:SPELLED]) + more


def _words(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, list | tuple) else str(value)
