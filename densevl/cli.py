"""The `densevl` command: thin, no logic. Torch is imported only by commands that run a model.

Exit codes: 0 all done; 1 doctor found something bad; 2 one clear line said why not; 3 some images failed, some did not.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from densevl import __version__
from densevl.errors import DensevlError

if TYPE_CHECKING:
    from densevl.results import SegmentationResult

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Open-vocabulary dense prediction."
)
recipes_app = typer.Typer(invoke_without_command=True, help="Methods: list them, or explain one.")
app.add_typer(recipes_app, name="recipes")
FAILED, PARTLY = 2, 3
PIPED_WIDTH = 140
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _fail(error: DensevlError) -> None:
    _err().print(f"[red]error:[/] {escape(' '.join(str(error).split()))}")


def _name(path: Path) -> str:
    """A file name that stays on one line, ready for rich."""
    return escape(" ".join(path.name.split()))


def _one_line_errors(command: _Command) -> _Command:
    """Turn a DensevlError into one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DensevlError as error:
            _fail(error)
            raise typer.Exit(FAILED) from error

    return wrapped  # type: ignore[return-value]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"densevl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Open-vocabulary dense prediction: name labels, get masks, without training."""
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@app.command()
@_one_line_errors
def segment(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    labels: Annotated[str, typer.Option(help='"cat,dog", "car|truck,road", or a .txt or .json file.')] = "",
    model: Annotated[str, typer.Option(help="auto, photo, ViT-B-16/openai, local-dir:PATH.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint, when --model is an architecture or config.")] = None,
    recipe: Annotated[str | None, typer.Option(help="See `densevl recipes`; the model's default if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("densevl-out"),
    background: Annotated[
        str, typer.Option(help='auto, none, unknown, 1-max, voc, a probability, or words "sky,wall".')
    ] = "auto",
    templates: Annotated[str | None, typer.Option(help='openai, dense, drawing, ..., or a sentence with "{}".')] = None,
    descriptors: Annotated[Path | None, typer.Option(help="JSON of label to texts on its looks.")] = None,
    presence: Annotated[float | None, typer.Option(help="Drop labels that reach this probability nowhere.")] = None,
    short_side: Annotated[int | None, typer.Option(min=1, help="Resize the short side to this many pixels.")] = None,
    crop: Annotated[int | None, typer.Option(min=0, help="Window side in pixels; 0 for the whole image.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Step between windows in pixels.")] = None,
    blend: Annotated[str | None, typer.Option(help="Average overlapping windows at pixel or patch.")] = None,
    proxy: Annotated[str | None, typer.Option(help="Model a recipe borrows from: mini-sam, a name, a file.")] = None,
    sam: Annotated[str | None, typer.Option(help="SAM encoder for the recipe trident: mini-sam, or a file.")] = None,
    regions: Annotated[str | None, typer.Option(help="Who proposes segments: mini-sam, for drawings.")] = None,
    views: Annotated[str | None, typer.Option(help="Look several times: flip, flip+scale, itaclip.")] = None,
    refine: Annotated[str | None, typer.Option(help="pamr, lposs+, vote, or several: pamr,vote. Slower.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.png with all overlays.")] = False,
) -> None:
    """Segment images by words: a label PNG, an overlay and a JSON for each."""
    from densevl.images import list_images
    from densevl.recipes import get
    from densevl.vocabulary import Descriptors, LabelSet, TextOptions

    label_set = LabelSet.parse(labels)
    text = TextOptions(descriptors=Descriptors.parse(descriptors)) if descriptors else None
    chosen = get(recipe) if recipe else None
    paths = list_images(images)
    given = {"short_side": short_side, "stride": stride, "blend": blend}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if crop is not None:
        changes["crop"] = crop or None

    from densevl.pipelines.folder import ERRORS, Job, plan_jobs, segment_folder
    from densevl.pipelines.segmenter import Segmenter

    jobs = plan_jobs(paths, out)
    with _err().status("loading the model"):  # shown on a terminal only
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
            sam=sam,
            regions=regions,
            views=views,
            refine=refine,
            device=device,
        )
    backbone = segmenter.backbone
    warned: set[str] = set()
    if model == "auto":
        advice = f". Better: {backbone.upgrade}" if backbone.upgrade else ""
        _err().print(f"model [bold]{escape(backbone.name)}[/]: {escape(backbone.summary + advice)}")
    progress = _err().status("")

    def after(job: Job, result: SegmentationResult) -> None:
        for warning in set(result.warnings) - warned:
            _err().print(f"[yellow]warning:[/] {escape(warning)}")
            warned.add(warning)
        shares = sorted(result.fractions().items(), key=lambda item: -item[1])
        found = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        absent = result.meta["absent"]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            found += f"; not in it: {', '.join(absent[:5])}{more}"
        _out().print(f"{_name(job.image)}: {escape(found)}  [dim]({result.meta['seconds']:.1f} s)[/]")

    with progress:
        report = segment_folder(
            segmenter,
            jobs,
            label_set,
            sheet=sheet,
            before=lambda job: progress.update(f"{_name(job.image)} (new words take longer the first time)"),
            after=after,
            failed=lambda job, error: _fail(error),
        )
    if report.done:
        _out().print(f"results in {escape(str(out))}")
    if report.errors:
        if report.done:
            _err().print(f"{len(report.errors)} of {len(jobs)} images failed, listed in {escape(str(out / ERRORS))}")
        raise typer.Exit(PARTLY if report.done else FAILED)


@app.command()
@_one_line_errors
def models() -> None:
    """List the models, best first, and which are on this machine."""
    from densevl.backbones import available
    from densevl.backbones.proxies import known_proxies

    table = Table("model", "on this machine", "what it is", box=None, pad_edge=False)
    for info in available():
        table.add_row(info.name, "[green]yes[/]" if info.ready else "no", escape(info.about))
    _out().print(table)
    _out().print(
        "Any other open_clip ViT works by name (ARCH/TAG), from a folder (local-dir:PATH) or from a file (--weights)."
    )
    _out().print(f"Recipes that borrow take --proxy: {', '.join(known_proxies())}, a ViT of timm, or a file.")


@recipes_app.callback()
@_one_line_errors
def recipes(context: typer.Context) -> None:
    """List the recipes: what each changes, its published mIoU on VOC20, and what it needs."""
    if context.invoked_subcommand:
        return
    from densevl.pipelines.recipe_cards import short, short_needs, short_venue
    from densevl.recipes import get, names

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "venue", "VOC20", "what it changes", "needs"):
        table.add_column(column, no_wrap=column in ("recipe", "venue"))
    for name in names():
        recipe = get(name)
        source = recipe.source
        voc = source.miou.get("voc20") if source else None
        row = (short_venue(recipe), f"{voc:g}" if voc else "-", short(recipe), short_needs(recipe))
        table.add_row(name, *map(escape, row))
    console = _out()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)  # one line a recipe, for grep
    console.print(table)
    console.print(
        "qq, kk, vv: queries, keys, values look at themselves; bare: without skip connection and MLP. VOC20: published "
        "mIoU.\nAll of one: densevl recipes show NAME"
    )


@recipes_app.command()
@_one_line_errors
def show(name: str) -> None:
    """Explain one recipe in plain words."""
    from densevl.pipelines.recipe_cards import as_code, needs
    from densevl.recipes import get

    recipe = get(name)
    console = _out()
    console.print(f"[bold]{recipe.name}[/]: {escape(recipe.explain())}")
    if recipe.note:
        console.print(escape(recipe.note))
    if recipe.source:
        source = recipe.source
        console.print(f"{escape(source.paper)} ({source.venue}), {source.url}")
        if source.miou:
            figures = ", ".join(f"{key} {value:g}" for key, value in source.miou.items())
            console.print(f"published mIoU, ViT-B/16: {figures} ({escape(source.protocol)})")
    for need in needs(recipe):
        console.print(f"{'can use' if need.optional else 'needs'} {need.name}: {escape(need.how)}")
    console.print(escape(as_code(recipe)), style="dim")


@app.command()
@_one_line_errors
def doctor() -> None:
    """Check this installation: versions, models at hand, and known traps."""
    from densevl.diagnosis import diagnose

    table = Table("what", "", "found", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    rows = diagnose()
    for row in rows:
        table.add_row(row.what, marks[row.verdict], escape(row.found))
    _out().print(table)
    if any(row.verdict == "bad" for row in rows):
        raise typer.Exit(1)
