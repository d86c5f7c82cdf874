"""Shared by the commands over many images: the screen, and running a work to its exit code."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import FAILED, PARTLY, fail, file_name, print_json, stderr, stdout, warn
from densevl.errors import ImageError, LabelError
from densevl.pipelines.folder.summary import Summary
from densevl.pipelines.folder.watch import PACKED, Job, Watch

if TYPE_CHECKING:
    from densevl.images import Found
    from densevl.pipelines.folder.gathered import Gathered
    from densevl.pipelines.folder.tasks import Kind, Task, Work
    from densevl.vocabulary import Example, LabelSet

Describe = Callable[[str, Any], str]
"""The name of an image and its result as text."""
ROW = ("category_name", "score", "bbox", "area")
"""Keys of a region in a line of JSON."""
SETTINGS = (
    *("model", "weights", "device", "precision", "compat", "background", "templates", "presence", "views"),
    *("proxy", "proxy_scope", "sam"),
)
TEXT = {
    "descriptors": "descriptors",
    "text_transform": "transform",
    "template_weights": "template_weights",
    "parents": "parents",
}
"""Options, and the fields of `TextOptions` that they set."""
_NUMBERS = re.compile(r"(?=.*\d)[-+\d.,;\s()\[\]]+")
RUNNING = ("out", "as_json", "quiet", "overwrite", "strict", "ray", "workers", "shard")
WINDOWS = ("short_side", "crop", "stride", "plan", "blend")


MOST_ROWS = 20  # in a table
RECENT = 30  # images whose pace gives the time left


class Pace:
    """The rate of images and the time left, estimated from the latest images.

    The first image does not count, because the model warms up and words are encoded in it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at = clock, deque[float](maxlen=RECENT + 1)

    def tick(self) -> None:
        """Count one more image."""
        self._at.append(self._clock())

    def text(self, left: int) -> str:
        """Return images per second and the time for `left` more; "" if unknown."""
        taken = self._at[-1] - self._at[0] if len(self._at) > 1 else 0.0
        if not taken:
            return ""
        rate = (len(self._at) - 1) / taken
        pace = f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s/image"
        return f"{pace}  {timedelta(seconds=round(left / rate))} left"


class Screen(Watch):
    """Shows a run over images in the terminal: progress and bad images on stderr, results on stdout."""

    def __init__(
        self,
        describe: Describe | None = None,
        kind: Kind | None = None,
        out: str = "",
        images: Sequence[str] = (),
        *,
        as_json: bool = False,
        quiet: bool = False,
    ) -> None:
        """Create a screen.

        Args:
            describe: returns the line about an image. kind, out: what is written, and where. images: all of them; they
                are shown by their paths below their common folder.
            as_json: print lines of JSON on stdout, and nothing else. quiet: print only errors.
        """
        self.kind, self.out = kind, out
        self.wants_content = as_json or (stderr().is_terminal and not quiet and len(images) > 1)
        self.summary = Summary()
        self.finished = self.fresh = self.broken = 0
        self.names = _below_common(images)
        self._pace = Pace()
        self._describe, self._json, self._quiet = describe, as_json, quiet
        self._warned: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=stderr(),
            transient=True,
            disable=quiet or not stderr().is_terminal,
            refresh_per_second=4,
        )

    def begin(self, total: int, finished: int) -> None:
        """See `Watch`."""
        self.finished, self._total = finished, total
        self._progress.start()
        self._bar = self._progress.add_task("images", total=total, completed=finished, told="")
        if finished and not self._quiet:
            done = f"{finished} of {total} images {'is' if finished == 1 else 'are'}" if total > 1 else "the image is"
            stderr().print(f"{done} done already", style="dim")

    def found(self, job: Job, content: dict[str, Any]) -> None:
        """See `Watch`."""
        self.summary.add(job.image, content)
        if self._json:
            self._print(job, content)

    def done(self, job: Job, result: Any, content: dict[str, Any]) -> None:
        """See `Watch`."""
        self.finished, self.fresh = self.finished + 1, self.fresh + 1
        if self.wants_content:
            self.summary.add(job.image, content, getattr(result, "meta", {}).get("seconds"))
        self._step()
        if self._json:
            self._print(job, content)
        elif result is not None and self._describe is not None and not self._quiet:
            for warning in getattr(result, "warnings", ()):
                if warning not in self._warned:  # each once per run
                    warn(warning)
                    self._warned.add(warning)
            stdout().print(self._describe(self.names.get(job.image) or file_name(job.image), result))

    def part(self, job: Job, share: float) -> None:
        """See `Watch`."""
        self._progress.update(self._bar, completed=self.finished + self.broken + share)

    def failed(self, job: Job, error: str) -> None:
        """See `Watch`."""
        self.broken += 1
        self.summary.fail(job.image, error)
        self._step()
        fail(error)
        if self._json:
            print_json({"image": job.image, "error": error})

    def _step(self) -> None:
        self._pace.tick()
        through = self.finished + self.broken
        failed = f"{self.broken} failed  " if self.broken else ""
        self._progress.update(self._bar, completed=through, told=failed + self._pace.text(self._total - through))

    def _print(self, job: Job, content: dict[str, Any]) -> None:
        endings, tells = (self.kind.endings, self.kind.tells) if self.kind else ((), ())
        outputs = [content["shard"]] if "shard" in content else [f"{self.out}/{job.name}{end}" for end in endings]
        facts = {key: content[key] for key in tells if key in content}
        if "regions" in facts:  # masks stay in the file
            facts["regions"] = [{key: row[key] for key in ROW if key in row} for row in facts["regions"]]
        print_json({"image": job.image, "outputs": outputs, **facts, "warnings": content.get("warnings", [])})

    def end(self) -> None:
        """See `Watch`."""
        self._progress.stop()


def _below_common(images: Sequence[str]) -> dict[str, str]:
    """Return images by their paths below their common folder, without addresses."""
    from densevl.images.addresses import is_address

    files = [path for path in images if not is_address(path)]
    try:
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
        return {path: escape(" ".join(os.path.relpath(path, shared).split())) for path in files}
    except ValueError:  # none, or on several drives
        return {}


def looked_up(given: Mapping[str, Any], images: Sequence[str] | None = None) -> Found:
    """Find the images of a command. Errors in them, --out or the model's name are reported without loading torch.

    Args:
        images: replaces the images given.

    Raises:
        ImageError: If there are none.
        ModelError: If no model has this name.
        OutputError: If the folder of results is impossible.
    """
    from densevl.backbones.at_hand import require_possible
    from densevl.images import find_images, header
    from densevl.images.addresses import is_address
    from densevl.pipelines.folder.storing import open_store

    out = given["out"]
    if out and not str(out).endswith(PACKED):
        open_store(out)
    found = find_images(given["images"] if images is None else images, skip=out or options.OUT)
    only = found.paths[0] if len(found.paths) == 1 else None
    if only is not None and not is_address(only) and not os.path.isfile(only):
        try:
            header(only)  # raises
        except ImageError as error:
            if given["as_json"]:
                _say_bad(only, error, Summary())
            raise
    if given.get("model") and not given["weights"]:
        require_possible(given["model"])
    return found


def _say_bad(image: str, error: Exception, summary: Summary) -> None:
    """Print the lines of JSON for a single image that is bad."""
    print_json({"image": image, "error": str(error)})
    summary.fail(image, str(error))
    print_json({"summary": summary.facts(1, 0, 0.0, [])})


def run_images(
    work: Work,
    found: Found,
    given: Mapping[str, Any],
    together: Sequence[Gathered],
    describe: Describe,
    *,
    loaded: Callable[[Task], None] = lambda task: None,
) -> None:
    """Run a work on images, and exit with the code for its outcome.

    Args:
        found: the images, from `looked_up`.
        given: the options that all such commands share: out (None chooses a folder, see `default_folder`), as_json,
            quiet, overwrite, strict, ray (None runs here), workers and shard.
        together: files about all images. describe: returns the line about one. loaded: called with the loaded model.
    """
    out, as_json, quiet, overwrite, strict, ray, workers, shard = (given[name] for name in RUNNING)
    from densevl.pipelines.folder.cluster import Cluster
    from densevl.pipelines.folder.each import BAD
    from densevl.pipelines.folder.loop import as_begun, default_folder, to_files

    work = work if overwrite else as_begun(work, out)
    cluster = None if ray is None else Cluster(work, ray, workers, shard)
    with stderr().status("loading the model"):  # shown on a terminal only
        task = work.task(None if ray is None else "cpu")  # with a cluster, this machine only needs the facts
    loaded(task)
    out = out or default_folder(options.OUT, task, overwrite=overwrite)
    screen = Screen(describe, task.kind, out, found.paths, as_json=as_json, quiet=quiet)
    started = time.monotonic()
    try:
        report = to_files(
            task, found, out, together=together, overwrite=overwrite, strict=strict, watch=screen, cluster=cluster
        )
    except BAD as error:  # the only image, or the first bad one with --strict
        if not screen.broken:
            fail(error)
        if as_json and not screen.broken:
            _say_bad(found.paths[0], error, screen.summary)
        elif as_json:
            print_json({"summary": screen.summary.facts(len(found.paths), screen.fresh, 0.0, [])})
        raise typer.Exit(PARTLY if screen.finished else FAILED) from error
    except KeyboardInterrupt as stop:
        if as_json:
            facts = screen.summary.facts(len(found.paths), screen.fresh, time.monotonic() - started, [])
            print_json({"summary": facts | {"interrupted": True}})
        stop.add_note("the same command goes on from here")
        raise
    if not quiet:
        say_left_out(found)
    if as_json:
        print_json({"summary": screen.summary.facts(len(found.paths), report.fresh, report.seconds, report.places)})
    elif screen.wants_content:
        stderr().print(summary_table(screen.summary, report.fresh, report.seconds, screen.names))
    if report.done and not quiet and not as_json:
        places = ", ".join(report.places[:5]) + ", ..." * (len(report.places) > 5)
        stdout().print(f"results in {escape(places)}")
    if report.errors:
        what = "videos" if task.kind.use == "video" else "images"
        failed = f"{len(report.errors)} of {len(found.paths)} {what} failed, listed in {report.listed}"
        stderr().print(escape(failed))
        raise typer.Exit(PARTLY if report.done else FAILED)


def summary_table(summary: Summary, computed: int, seconds: float, names: Mapping[str, str]) -> Group:
    """Format the summary of a run for a terminal.

    Args:
        computed: number of images computed in this call. seconds: its duration. names: short names of images.
    """
    shown = {"share": "share of pixels", "regions": "regions", "images": ""}[summary.measure or "images"]
    table = Table("class", *([shown] if shown else []), "images", box=None, pad_edge=False)
    rows = summary.rows()
    for name, images, amount in rows[:MOST_ROWS]:
        cell = {"share": f"{amount:.1%}", "regions": str(amount)}.get(summary.measure)
        table.add_row(escape(" ".join(name.split())), *([cell] if cell else []), str(images))
    parts: list[Any] = [table] if rows else []
    if more := rows[MOST_ROWS:]:
        parts.append(f"[dim]and {len(more)} more[/]")
    for cause, (count, first) in summary.failures()[:MOST_ROWS]:
        parts.append(f"[red]{count} failed:[/] {escape(cause)} [dim](first: {names.get(first, escape(first))})[/]")
    each = f", {seconds / computed:.2f} s each" if computed else ""
    parts.append(f"{summary.images} images done, {computed} of them now, in {_spoken(seconds)}{each}")
    if summary.slowest is not None and computed > 1:
        image, taken = summary.slowest
        parts.append(f"slowest: {names.get(image, escape(image))}, {taken:.2f} s")
    return Group(*parts)


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a command's options to settings of `Segmenter` that other classes share.

    Raises:
        RecipeError: If there is no such recipe.
        OptionError, WeightsError: If text options, or their files, are unusable.
    """
    from densevl.recipes import get
    from densevl.vocabulary import TextOptions

    found = {name: given[name] for name in SETTINGS if name in given}
    found["recipe"] = get(given["recipe"]) if given["recipe"] else None
    found["text"] = TextOptions.parse(text_options(given))
    protocol = {name: given[name] for name in WINDOWS if given[name] is not None}
    if "crop" in protocol:
        protocol["crop"] = protocol["crop"] or None
    return found | {"protocol": protocol}


def of_head(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options of a command with --head to arguments of `FewShot.load`. The head stores the others."""
    own = {name: given[name] for name in ("weights", "device", "precision")}
    return {"model": None if given["model"] == options.MODEL else given["model"], **own}


def labels_of(labels: str, like: Sequence[str] | None) -> LabelSet:
    """Combine the labels of --labels with those of --like, where each is a new class or another example of one.

    Raises:
        LabelError: If labels are unusable, or an example has no name.
        ImageError, ProposalError: If an example is unusable.
    """
    from densevl.vocabulary import LabelSet

    asked = LabelSet.parse(labels) if labels or not like else None
    if not like:
        return asked or LabelSet.parse(labels)
    classes: dict[str, list[Any]] = {}
    for name, words in zip(asked.names, asked.synonyms, strict=True) if asked else ():
        classes[name] = list(words)
    for text in like:
        name, equals, place = text.partition("=")
        if not (name.strip() and equals and place.strip()):
            raise LabelError(f"--like {text!r}: give NAME=IMAGE, or NAME=IMAGE:x0,y0,x1,y1")
        classes.setdefault(name.strip(), []).append(example_of(place.strip()))
    found = LabelSet.parse(classes)
    return replace(found, negatives=asked.negatives, warnings=asked.warnings) if asked else found


def example_of(place: str) -> Example:
    """Parse an image, optionally with a box after a colon.

    Raises:
        LabelError: If the box is not four numbers.
    """
    from densevl.vocabulary import Example

    image, colon, numbers = place.rpartition(":")
    image = image.strip()
    if not colon or Path(place).exists() or not (_NUMBERS.fullmatch(numbers) or Path(image).is_file()):
        return Example(Path(place))
    try:
        box = [float(side) for side in re.split(r"[,;\s]+", numbers.strip(" ()[]"))]
    except ValueError:
        box = []
    if len(box) != 4:
        raise LabelError(f"--like {place!r}: a box must be x0,y0,x1,y1, four numbers in pixels")
    return Example(Path(image), box=box)


def text_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a command's options to keywords of `TextOptions`."""
    return {name: str(given[option]) for option, name in TEXT.items() if given.get(option) is not None}


def finder(proposals: str | None, pieces: bool, device: str | None) -> Any:
    """Create the region proposer of --proposals and --pieces, reporting errors before any model is loaded.

    Raises:
        ModelError, MissingExtraError: If there is no such proposer, or it cannot be loaded.
    """
    from densevl.proposals import NAMES, load_proposer
    from densevl.proposals.pieces import PieceProposer

    found: Any = proposals or options.PROPOSALS
    if found not in NAMES or pieces:
        found = load_proposer(found, device=device)
    return PieceProposer(found) if pieces else found


def exports(given: Mapping[str, Any], names: Sequence[str]) -> list[Gathered]:
    """Create the exports of --as, --stuff and --overwrite.

    Raises:
        OptionError: If there is no such format.
        DensevlError: If a name of --stuff is not a label.
    """
    if given["forms"] is None:
        return []
    from densevl.pipelines.folder.gathered import Export
    from densevl.regions.exports.kinds import parse_kinds

    stuff = [word.strip() for word in given["stuff"].split(",") if word.strip()]
    return [Export(kind, tuple(names), stuff, given["overwrite"]) for kind in parse_kinds(given["forms"])]


def say_left_out(found: Found) -> None:
    """Report the files in the folders that are not images."""
    if found.told:
        stderr().print(escape(f"left out of the folders: {found.told}"), style="dim")
