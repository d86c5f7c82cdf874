"""Pack results of many images in few files: tar archives for WebDataset, or Parquet tables, one per shard.

`results.tar` becomes results-000000.tar and so on. A shard is written completely once all its images are done, or not
at all, so a restarted run continues with the next one. results.json records what made them.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from densevl import __version__, digest
from densevl.errors import ImageError, MissingExtraError, OutputError
from densevl.files import shown
from densevl.fitted import differing
from densevl.images import Found
from densevl.images.addresses import Archive, key_of, stamp
from densevl.pipelines.folder.each import work_through
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.naming import names_for, require_inside
from densevl.pipelines.folder.storing import Local, Store, open_store
from densevl.pipelines.folder.tasks import Kind, Task
from densevl.pipelines.folder.watch import Job, Report, Watch
from densevl.saved import parse_json

Elsewhere = Callable[
    [dict[str, Any], Store, Mapping[str, Sequence[Job]]], Iterator[tuple[Sequence[Job], dict[str, str]]]
]
"""Takes the task's facts, the store, and shards by name; yields each shard's jobs and its error messages."""


def to_packs(
    task: Task,
    found: Found,
    out: str,
    *,
    overwrite: bool,
    strict: bool,
    watch: Watch,
    shard: int,
    elsewhere: Elsewhere | None = None,
) -> Report:
    """Run a task on every image and write the results shard by shard, each packed in one file.

    Args:
        shard: number of images per shard, rounded up to whole groups of the task. elsewhere: does shards on other
            machines; None does them here. For the others, and the errors, see `loop.to_files`.
    """
    place, name = os.path.split(out)
    stem, ending = os.path.splitext(name)
    store, keys = open_store(place or "."), [key_of(image) for image in found.paths]
    jobs = [Job(image, name) for image, name in zip(found.paths, names_for(found, keys, {}), strict=True)]
    size = -(-shard // task.group) * task.group
    shards = {f"{stem}-{n // size:06d}{ending}": jobs[n : n + size] for n in range(0, len(jobs), size)}
    images = digest.of_text(json.dumps([[key, *stamp(path)] for key, path in zip(keys, found.paths, strict=True)]))
    facts = {**task.identity, "shard": size, "images": images}
    record, listed = f"{stem}.json", f"{stem}.errors.jsonl"
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        recorded = json.loads(store.read(record))
        require_inside(recorded["files"])
        before = {
            "files": recorded["files"],
            "facts": dict(recorded["facts"]),
        }  # a damaged record does not count as ours
    own = before.get("files", [])
    fresh = overwrite or before.get("facts") != facts
    if own and fresh and not overwrite:
        changes = differing(before.get("facts", {}), facts)
        raise OutputError(
            f"{shown(out)} holds results of another run ({changes}); name another --out, or start over with --overwrite"
        )
    theirs = [name for name in (record, listed, *shards) if not (own and name in (record, *own))]
    store.guard(theirs, inputs=found.paths, overwrite=overwrite)
    store.guard(own, inputs=found.paths, overwrite=True)
    if fresh:
        store.remove([*own, *shards, listed])
    content = {"densevl": __version__, "files": [*shards, listed], "facts": facts}
    store.renew(record, json.dumps(content, indent=1).encode())
    errors = ErrorList(store, listed)
    places = {job: store.where(name) for name, part in shards.items() for job in part}
    bad: dict[str, str] = {}
    finished = {name for name in shards if store.exists(name)}
    watch.begin(len(jobs), sum(len(shards[name]) for name in finished))

    def failed(job: Job, error: Exception | str) -> None:
        errors.add(job.image, str(error))
        watch.failed(job, str(error))
        if strict:
            raise error if isinstance(error, Exception) else ImageError(error)

    def done(job: Job, result: Any) -> None:
        notes = list(getattr(result, "warnings", ()))
        shares = {"fractions": result.fractions()} if hasattr(result, "fractions") else {}
        watch.done(job, result, {"warnings": notes, "image": job.image, "shard": places[job], **shares})

    waiting = {name: part for name, part in shards.items() if name not in finished}
    try:
        for name in finished:
            bad |= errors_of(name, store.read(name))
        for name, part in waiting.items() if elsewhere is None else ():
            bad |= do_shard(task, store, name, part, done, failed)
        for jobs_done, wrong in elsewhere(facts, store, waiting) if elsewhere is not None else ():
            for job in jobs_done:
                failed(job, wrong[job.image]) if job.image in wrong else done(job, None)
            bad |= wrong
    finally:
        watch.end()
    errors.begin()
    errors.close([job.image for job in jobs], bad)
    report = Report([job for job in jobs if job.image not in bad], errors=bad, listed=store.where(listed))
    report.places = [store.where(name) for name in shards]
    report.fresh = sum(job.image not in bad for part in waiting.values() for job in part)
    return report


def pack(place: str, kind: Kind, jobs: Sequence[Job], errors: dict[str, str], folder: Local) -> bytes:
    """Return the results of a shard as one file. The extension of `place` decides its format.

    Args:
        jobs: all jobs of the shard. errors: message of each bad image. folder: contains the results of the others.
    """
    done = [job for job in jobs if job.image not in errors]
    return (_parquet if place.endswith(".parquet") else _tar)(kind, jobs, done, errors, folder)


def do_shard(
    task: Task,
    store: Store,
    name: str,
    jobs: Sequence[Job],
    done: Callable[[Job, Any], None],
    failed: Callable[[Job, Exception], None],
) -> dict[str, str]:
    """Do a shard and write it, unless it exists. Return the message of each bad image."""
    if store.exists(name):
        return errors_of(name, store.read(name))
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Local(temporary)

        def save(job: Job, result: Any) -> None:
            folder.save(job, task.kind, result)

        def bad(job: Job, error: Exception) -> None:
            errors[job.image] = str(error)
            failed(job, error)

        work_through(task.run, jobs, lambda job: False, save, bad, done, group=task.group)
        store.write(name, pack(name, task.kind, jobs, errors, folder))
    return errors


def errors_of(place: str, data: bytes) -> dict[str, str]:
    """Return the bad images of a packed shard, with their messages.

    Raises:
        OutputError: If it is not such a shard.
    """
    try:
        if place.endswith(".parquet"):
            import pyarrow.parquet as parquet

            table = parquet.read_table(io.BytesIO(data), columns=["image", "error"])
            rows = [row for row in table.to_pylist() if row["error"]]
        else:
            listed = Archive(place, io.BytesIO(data)).read("errors.jsonl")
            rows = [parse_json(line) for line in listed.splitlines()]
        return {str(row["image"]): str(row["error"]) for row in rows}
    except Exception as error:  # each reader raises its own errors on damaged data
        cause = " ".join(str(error).split())[:200]
        raise OutputError(f"{shown(place)} is not a shard of results, or is damaged ({cause}): remove it") from error


def _tar(kind: Kind, jobs: Sequence[Job], done: Sequence[Job], errors: dict[str, str], folder: Local) -> bytes:
    buffer = io.BytesIO()
    rows = "".join(
        json.dumps({"image": job.image, "error": errors[job.image]}) + "\n" for job in jobs if job.image in errors
    )
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for job in done:
            for ending in kind.endings:
                # WebDataset uses what follows the first dot as the name of a field
                _add(archive, f"{job.name.replace('.', '_')}{_field(ending)}", folder.read(f"{job.name}{ending}"))
        _add(archive, "errors.jsonl", rows.encode())
    return buffer.getvalue()


def _parquet(kind: Kind, jobs: Sequence[Job], done: Sequence[Job], errors: dict[str, str], folder: Local) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "remote", "results in Parquet") from error
    there = set(done)
    columns: dict[str, Any] = {
        "image": pyarrow.array([job.image for job in jobs], pyarrow.string()),
        "name": pyarrow.array([job.name for job in jobs], pyarrow.string()),
        "error": pyarrow.array([errors.get(job.image) for job in jobs], pyarrow.string()),
    }
    for ending in kind.endings:
        data = [folder.read(f"{job.name}{ending}") if job in there else None for job in jobs]
        columns[_field(ending)[1:]] = pyarrow.array(data, pyarrow.binary())
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer, compression="none")  # pictures are already compressed
    return buffer.getvalue()


def _field(ending: str) -> str:
    """Return a field name: .json, .png, .npy; the overlay becomes .overlay.png."""
    return ending if ending.startswith(".") else f".{ending.lstrip('_')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
