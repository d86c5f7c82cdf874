"""`densevl bank`: a bank of regions of many photos, which helps to label regions of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from densevl.cli import options
from densevl.cli.images import Screen, finder, print_json, say_left_out
from densevl.cli.shared import FAILED, PARTLY, fail, one_line_errors, stderr, stdout

bank_app = typer.Typer(
    no_args_is_help=True, help="Build banks: regions of many photos that help to label regions of others."
)
Folder = Annotated[Path, typer.Argument(help="The folder of the bank.", show_default=False)]


@bank_app.command()
@one_line_errors
@options.loads
def build(
    images: options.Images,
    out: Annotated[
        Path,
        options.option(
            "Write the bank to this folder; give the same folder again to add new photos.", panel=options.FILES
        ),
    ] = Path("densevl-bank"),
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    proposals: options.Proposals = options.PROPOSALS,
    pieces: options.Pieces = False,
    keys: Annotated[
        str,
        options.option(
            "Choose the vision model that compares regions: a name such as efficientnet-lite0, radio_b or "
            "dinov2_vitb14_reg, or a weights file.",
            panel=options.METHOD,
            values=options.PROXIES,
        ),
    ] = "efficientnet-lite0",
    forget: Annotated[
        bool, options.option("Drop photos of the bank that are not among those given.", "--forget", panel=options.FILES)
    ] = False,
    quiet: options.Quiet = False,
    overwrite: options.Overwrite = False,
    strict: options.Strict = False,
    bits: options.Bits = None,
) -> None:
    """Build a bank from the regions of unlabelled photos. A stopped build can be resumed."""
    from densevl.backbones import load_backbone
    from densevl.images import find_images
    from densevl.pipelines.folder.each import BAD
    from densevl.pipelines.regions.banking import BankBuilder
    from densevl.pipelines.regions.classifier import RegionClassifier

    find = finder(proposals, pieces, device)
    found = find_images(images, skip=out)
    with stderr().status("loading the models"):
        backbone = load_backbone(model, weights, device=device, precision=precision)
        values = RegionClassifier(backbone, "pool", recipe=recipe, proposals=find)
        builder = BankBuilder(out, values, keys, overwrite=overwrite)
    try:
        built = builder.build(images, forget=forget, skip=out, strict=strict, watch=Screen(quiet=quiet))
    except BAD as error:  # the first bad photo, with --strict
        fail(error)
        raise typer.Exit(PARTLY if builder.bank is not None else FAILED) from error
    if not quiet:
        say_left_out(found)
    if builder.bank is not None and not quiet:
        counts = f"{len(built.added)} new, {len(built.kept)} known, {len(built.removed)} gone"
        held = f"{len(builder.bank.photos)} photos ({counts}), {len(builder.bank)} regions"
        stdout().print(f"{held} in {escape(str(out))}")
    if built.failed:
        raise typer.Exit(PARTLY if builder.bank is not None else FAILED)


@bank_app.command()
@one_line_errors
def show(bank: Folder, as_json: options.Json = False) -> None:
    """Show what a bank contains and how it was made."""
    from densevl.regions.bank import Bank

    held = Bank.load(bank)
    values = held.facts["values"]
    facts = {
        "photos": len(held.photos),
        "regions": len(held),
        "model": values["model"],
        "recipe": values["recipe"],
        "proposals": values["proposals"],
        "keys": held.facts["proxy"],
    }
    if as_json:
        print_json({"bank": str(bank), **facts})
        return
    for name, value in facts.items():
        stdout().print(f"{name}: {escape(str(value))}")
