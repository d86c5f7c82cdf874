"""`densevl tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, print_json, stderr, stdout, warn
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.tuning import Tuning

USES = ("segment", "regions", "classify")
SETTINGS = ("recipe", "operator", "background", "templates", "plan", "precision", "guided", "presence")
TUNED = f"{options.OUT}/tuned"
LEAST_WIDTH, PIPED_WIDTH = 76, 300
SHOWN = 5  # rejected finalists shown in the table


@one_line_errors
@options.loads
def tune(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="A folder with images/, labels/ and a list of classes; with images/ and instances.json; of one folder "
            "of images for each class; or of any images, with --labels.",
        ),
    ],
    labels: Annotated[
        str | None,
        options.option(
            "For unlabelled pictures: name what to look for. Settings are then guessed from what most methods agree "
            "on.",
            panel=options.WORDS,
        ),
    ] = None,
    use: Annotated[
        str | None,
        options.option(
            "Choose the command to tune, if the folder fits several: segment, regions or classify.",
            panel=options.ASKED,
            values=USES,
            only=True,
        ),
    ] = None,
    only: Annotated[
        str | None,
        options.option(
            "Tune only these settings, separated by commas: recipe, background, templates, plan and precision "
            "(segment), operator (regions), guided and presence (classify); all if left out.",
            panel=options.ASKED,
            values=SETTINGS,
            between=",",
            only=True,
        ),
    ] = None,
    tries: Annotated[
        list[str] | None,
        options.option(
            "Try this value, SETTING=VALUE, instead of the usual ones of the setting. May be given several times.",
            "--try",
            panel=options.ASKED,
        ),
    ] = None,
    limit: Annotated[int, options.option("Use at most this many pictures.", panel=options.ASKED, min=3)] = 40,
    budget: Annotated[
        float | None,
        options.option("Stop measuring after this many minutes; no limit if left out.", panel=options.ASKED),
    ] = None,
    seed: Annotated[int, options.option("Set the random seed.", panel=options.ASKED, min=0)] = 0,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    proxy: options.Proxy = None,
    proposals: options.Proposals = None,
    bits: options.Bits = None,
    out: Annotated[
        str,
        options.option(
            "Write tuned.toml (for `densevl --config`), tuned.json and the state for resuming to this folder.",
            panel=options.FILES,
        ),
    ] = TUNED,
    fresh: Annotated[
        bool, options.option("Discard what an earlier run measured.", "--fresh", panel=options.FILES)
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose recipe, words, background, windows and precision for your own pictures, and report how sure the choice is.

    Candidates are cross-validated on a handful of labelled pictures; the default is kept unless the best is clearly
    better. Run the same command again to resume.
    """
    asked = _tries(tries or [])
    from densevl.tuning import tune as choose

    console, doing, config = stderr(), [""], Path(out, "tuned.toml")
    with console.status("loading the model") as status:

        def say(text: str) -> None:
            doing[0] = text
            status.update(escape(text))

        def show(done: int, total: int) -> None:
            status.update(escape(f"{doing[0]}: {done:,} of {total:,} looks"))

        found = choose(
            folder,
            model,
            labels=labels,
            use=use,
            weights=weights,
            device=device,
            proxy=proxy,
            proposals=proposals,
            only=options.listed(only),
            tries=asked,
            limit=limit,
            budget=None if budget is None else 60 * budget,
            seed=seed,
            out=out,
            fresh=fresh,
            overwrite=overwrite,
            say=None if quiet else say,
            show=None if quiet else show,
        )
    if as_json:
        print_json({**found.facts(), "config": str(config)})
        return
    for warning in found.warnings if not quiet else ():
        warn(warning)
    if not quiet:
        _print(found, config)


def _tries(given: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, mark, value = (part.strip() for part in text.partition("="))
        if not (mark and name and value):
            raise OptionError(f"--try {text!r}: give SETTING=VALUE, such as recipe=sclip")
        found.setdefault(name, []).append(value)
    return found


def _print(found: Tuning, config: Path) -> None:
    from densevl.tuning.result import cells

    console, table = stdout(), Table("choice", box=None)
    for name in (found.measure, "difference", "95 % interval", "s/picture"):
        table.add_column(name, no_wrap=True)
    # Numbers stay whole; in a pipe each choice is one line, for grep.
    console.width = max(console.width, LEAST_WIDTH if console.is_terminal else PIPED_WIDTH)
    for row in found.rows:
        table.add_row(*map(escape, cells(row)))
    if found.finalists:
        table.add_section()
    for row in found.finalists[:SHOWN]:
        table.add_row(*map(escape, cells(row)), style="dim")
    console.print(table)
    advised = found.chosen.against(found.default) if found.chosen != found.default else "the default"
    console.print(escape(found.looked_at))
    console.print(escape(f"{found.verdict}."))
    console.print(escape(f"advised: {advised}; densevl --config {config} {found.use} ..."))
