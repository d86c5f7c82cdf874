"""Process many images to files: the loop that all commands share.

A folder of results belongs to one run. Its `densevl.json` records what made it and which image became what, so that the
same call resumes where an earlier one stopped: an image is done if all its files are there and it has not changed
since. Results of another model, other labels or another version are never mixed with those in the folder. A bad image
becomes a row of `errors.jsonl` at once, and the others are processed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from densevl import __version__
from densevl.backbones.precision import AUTO, PRECISIONS
from densevl.errors import DensevlError, ImageError, OptionError, OutputError
from densevl.files import RUN_FILE, Hold, shown
from densevl.fitted import differing
from densevl.images import Found, read_image
from densevl.images.addresses import is_address, key_of, local, stamp
from densevl.pipelines.folder import packing
from densevl.pipelines.folder.cluster import SHARD, Cluster
from densevl.pipelines.folder.each import work_through
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.gathered import Gathered, Scores
from densevl.pipelines.folder.naming import names_for, require_inside
from densevl.pipelines.folder.storing import Local, open_store
from densevl.pipelines.folder.tasks import KINDS, Task, Work
from densevl.pipelines.folder.watch import PACKED, Job, Report, Watch
from densevl.results import require_facts
from densevl.saved import Kind, parse_json

ERRORS = "errors.jsonl"
EARLIER = Kind("result", DensevlError, "remove it, and it is made again")


def as_begun(work: Work, out: str | os.PathLike[str] | None) -> Work:
    """Return the work with precision "auto" replaced by the precision its existing results were made with, if any.

    Args:
        out: where results are written, as for `to_files`.
    """
    options = getattr(work, "options", {})
    if out is None or options.get("precision") != AUTO:
        return work
    place, name = os.path.split(os.fspath(out)) if os.fspath(out).endswith(PACKED) else (out, RUN_FILE)
    with suppress(DensevlError, OSError, ValueError, KeyError, TypeError, RecursionError):
        begun = json.loads(open_store(place or ".").read(f"{os.path.splitext(name)[0]}.json"))["facts"]["precision"]
        if begun in PRECISIONS:
            return replace(work, options={**options, "precision": begun})  # type: ignore[type-var]
    return work


def default_folder(base: str | os.PathLike[str], task: Task, *, overwrite: bool = False) -> str:
    """Return the folder of a run without --out: `base`/segment, or the first free one of segment-2, segment-3, ...

    A folder that already holds this same run is also used.

    Args:
        overwrite: take the first one, whatever it holds.
    """
    facts = task.identity
    for number in count(1):
        place = Path(base, task.kind.use if number == 1 else f"{task.kind.use}-{number}")
        if overwrite or not place.exists():
            break
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if json.loads((place / RUN_FILE).read_bytes())["facts"] == facts:
                break
    return str(place)


class Folder:
    """A folder of results: what it holds, what made it, and what is still to be done.

    Attributes:
        store: the folder. kind: what is written for each image. facts: what made it. jobs: the jobs of this call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        task: Task,
        found: Found,
        *,
        together: Sequence[Gathered] = (),
        overwrite: bool = False,
        hold: Hold | None = None,
    ) -> None:
        """Name the results of all images, and refuse those that must not be written.

        Args:
            together: files about all images. overwrite: replace what is there. hold: keeps other runs out.

        Raises:
            OutputError: If another run is writing to the folder, it holds results of another run, it cannot be a
                folder, or a file that would be replaced is an input or was not written by densevl.
            ImageError: If the only image does not exist.
        """
        self.store, self.kind = open_store(path), task.kind
        self.facts = task.identity
        if len(found.paths) == 1 and not is_address(found.paths[0]) and not os.path.isfile(found.paths[0]):
            read_image(found.paths[0])  # raises the cause
        self._hold = hold if isinstance(self.store, Local) else None
        if self._hold is not None and os.path.isdir(self.store.place):
            self._hold.take()
        known, own, gone = self._record(overwrite)
        keys = [key_of(image) for image in found.paths]
        states = [stamp(image) for image in found.paths]
        names = names_for(found, keys, known)
        self.jobs = [Job(image, name) for image, name in zip(found.paths, names, strict=True)]
        new: list[Job] = []
        old: list[Job] = []
        stale: list[Job] = []
        for job, key, state in zip(self.jobs, keys, states, strict=True):
            (old if key in known else new).append(job)
            if overwrite or known.get(key, [None])[1:] != state:
                stale.append(job)
        files = [one.file for one in together if one.file]
        common = [RUN_FILE, ERRORS, *files, *(name for one in together for name in one.parts(new))]
        others = [name for name in common if name not in own]
        self.store.guard([*self._files(new), *others], inputs=found.paths, overwrite=overwrite)
        ours = [*self._files(old), *own]  # according to the run file
        self.store.guard(ours, inputs=found.paths, overwrite=True)
        self.store.remove([*gone, *self._files(stale)])
        self._sweep()
        self._images = known | {
            key: [job.name, *state] for key, job, state in zip(keys, self.jobs, states, strict=True)
        }
        self._own = sorted({*own, ERRORS, *files})
        self.errors, self._begun = ErrorList(self.store, ERRORS), False

    def is_done(self, job: Job) -> bool:
        """Return whether all files of an image exist. Each is complete or absent."""
        return self.store.has(job, self.kind)

    def save(self, job: Job, result: Any) -> None:
        """Write the files of one image.

        Raises:
            OutputError: If the files cannot be written.
        """
        self.begin()
        self.store.save(job, self.kind, result)

    def content(self, job: Job) -> dict[str, Any]:
        """Read the JSON of a result.

        Raises:
            DensevlError: If it is damaged.
        """
        with self.sense(job):
            content = dict(parse_json(self.store.read(f"{job.name}{self.kind.endings[0]}")))
            require_facts(content, self.kind.max_pixels)
            return content

    def sense(self, job: Job) -> AbstractContextManager[None]:
        """Convert errors in the content of a result; see `Kind.sense`."""
        return EARLIER.sense(self.store.where(f"{job.name}{self.kind.endings[0]}"), inner=True)

    def fail(self, job: Job, error: str) -> None:
        """Append a row to errors.jsonl at once."""
        self.begin()
        self.errors.add(job.image, error)

    def bad_before(self) -> set[str]:
        """Return the images that an earlier call could not read."""
        self.errors.begin()
        return set(self.errors.rows)

    def close(self, errors: dict[str, str]) -> None:
        """Keep only the rows of this call in errors.jsonl, in the order of its images."""
        self.errors.close([job.image for job in self.jobs], errors)
        self._sweep()

    def begin(self) -> None:
        """Write the run file before the first result. Nothing is created before that."""
        if self._begun:
            return
        if self._hold is not None:
            self._hold.take()
        head = {"densevl": __version__, "files": self._own, "facts": self.facts}
        images = ",\n".join(f"  {json.dumps(image)}: {json.dumps(entry)}" for image, entry in self._images.items())
        text = f'{json.dumps(head, indent=1)[:-2]},\n "images": {{\n{images}\n }}\n}}\n'
        self.store.renew(RUN_FILE, text.encode())
        self.errors.begin()
        self._begun = True

    def _record(self, overwrite: bool) -> tuple[dict[str, list[Any]], list[str], list[str]]:
        """Read the run file: images (name, size and modification time by path), common files, and what must be removed.

        Raises:
            OutputError: If it is damaged, or belongs to another run.
        """
        out = "name another --out, or start over with --overwrite"
        try:
            record = json.loads(self.store.read(RUN_FILE))
            facts, images, own = record["facts"], dict(record["images"]), list(record["files"])
            kind = KINDS.get(facts.get("use"), self.kind)
            require_inside([*own, *(name for name, _, _ in images.values())])
        except FileNotFoundError:
            return {}, [], []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if overwrite:
                return {}, [], []
            what = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is damaged"
            raise OutputError(f"{shown(self.store.where(RUN_FILE))} {what}; {out}") from error
        if facts == self.facts:
            return images, own, []
        if not overwrite:
            changes = differing(facts, self.facts)
            raise OutputError(f"{shown(self.store.place)} holds results of another run ({changes}); {out}")
        results = self._files([Job(image, str(entry[0])) for image, entry in images.items()], kind.endings)
        return {}, [], [*results, *own]

    def _files(self, jobs: Sequence[Job], endings: Sequence[str] = ()) -> list[str]:
        return [f"{job.name}{end}" for job in jobs for end in endings or self.kind.endings]

    def _sweep(self) -> None:
        self.store.sweep(["", *{job.name.rpartition("/")[0] for job in self.jobs}])


def _work_here(folder: Folder, task: Task, watch: Watch, *, strict: bool = False) -> dict[str, str]:
    """Do what is missing in a folder, and return the message of each bad image."""
    errors: dict[str, str] = {}
    alone = len(folder.jobs) == 1

    def save(job: Job, result: Any) -> None:
        if hasattr(result, "progress"):
            result.progress = partial(watch.part, job)
        folder.save(job, result)

    def saved(job: Job, result: Any) -> None:
        watch.done(job, result, folder.content(job) if watch.wants_content else {})

    def failed(job: Job, error: Exception) -> None:
        if not alone:  # a single bad image is a mistake that leaves no files
            folder.fail(job, str(error))
        watch.failed(job, str(error))
        if strict or alone:
            raise error
        errors[job.image] = str(error)

    bad_before = folder.bad_before()
    try:
        work_through(
            task.run, folder.jobs, folder.is_done, save, failed, saved, group=task.group, bad_before=bad_before
        )
    except KeyboardInterrupt as stop:
        done = sum(map(folder.is_done, folder.jobs))
        stop.add_note(f"{done:,} of {len(folder.jobs):,} are done")
        raise
    return errors


def _work_on(cluster: Cluster, folder: Folder, task: Task, watch: Watch, *, strict: bool = False) -> dict[str, str]:
    """Do the same on other machines. Bad images are known when their shard is done."""
    errors: dict[str, str] = {}
    missing = {job for job in folder.jobs if not folder.is_done(job)}
    if missing:
        folder.begin()
    for done, bad in cluster.run(folder.facts, folder.store, folder.jobs, missing, task.group, folder.bad_before()):
        for job in done:
            if job.image in bad:
                folder.fail(job, bad[job.image])
                watch.failed(job, bad[job.image])
                if strict:
                    raise ImageError(bad[job.image])
            elif job in missing:
                watch.done(job, None, folder.content(job) if watch.wants_content else {})
        errors |= bad
    return errors


def to_files(
    task: Task,
    found: Found,
    out: str | os.PathLike[str],
    *,
    together: Sequence[Gathered] = (),
    overwrite: bool = False,
    strict: bool = False,
    watch: Watch | None = None,
    cluster: Cluster | None = None,
) -> Report:
    """Run a task on every image and write the results. What is already done is kept.

    Args:
        task: see `densevl.pipelines.folder.tasks`. found: the images, from `densevl.images.find_images`.
        out: the folder, with the subfolders of the images; or a name that ends in .tar or .parquet, see `packing`.
        together: files about all images; see `densevl.pipelines.folder.gathered`.
        overwrite: start over, and replace files of others. strict: stop at the first bad image.
        watch: receives progress. cluster: does the work; None does it here.

    Returns:
        The report. Bad images are also listed in errors.jsonl.

    Raises:
        OutputError: See `Folder`; also if files cannot be written.
        ImageError: If the only image is bad, or with `strict` at the first one.
        LabelError, ModelError, MissingExtraError, ...: If the whole run is impossible, at once.
    """
    started, watch = time.perf_counter(), watch or Watch()
    if os.fspath(out).endswith(PACKED):
        if any(not isinstance(one, Scores) for one in together):
            raise OptionError(f"pictures and exports of all images need a folder, and {shown(out)} is not one")
        report = packing.to_packs(
            task,
            found,
            os.fspath(out),
            overwrite=overwrite,
            strict=strict,
            watch=watch,
            shard=cluster.shard if cluster is not None else SHARD,
            elsewhere=cluster.packs if cluster is not None else None,
        )
    else:
        with Hold(local(os.fspath(out))) as hold:
            folder = Folder(out, task, found, together=together, overwrite=overwrite, hold=hold)
            report = _to_folder(folder, task, together, strict, watch, cluster)
    report.seconds = time.perf_counter() - started
    return report


def _to_folder(
    folder: Folder, task: Task, together: Sequence[Gathered], strict: bool, watch: Watch, cluster: Cluster | None
) -> Report:
    waiting = [job for job in folder.jobs if not folder.is_done(job)]
    missing = set(waiting)
    watch.begin(len(folder.jobs), len(folder.jobs) - len(waiting))
    try:
        for job in folder.jobs if watch.wants_content else ():
            if job not in missing:
                watch.found(job, folder.content(job))
        if cluster is None:
            errors = _work_here(folder, task, watch, strict=strict)
        else:
            errors = _work_on(cluster, folder, task, watch, strict=strict)
    finally:
        watch.end()
    report = Report([job for job in folder.jobs if job.image not in errors], len(waiting) - len(errors), errors)
    report.places, report.listed = [folder.store.place], folder.store.where(ERRORS)
    if report.done:
        folder.begin()
        report.places += [path for one in together for path in one.write(folder, report.done)]
    folder.close(errors)
    return report
