"""Results of many images in few files: tar archives as WebDataset reads them, or Parquet tables, a shard each.

`results.tar` becomes results-000000.tar and so on. A shard is written whole or not at all once all its images are done,
so a run that is started again goes on with the next one; results.json says what made them.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from densevl.errors import MissingExtraError
from densevl.pipelines.folder.each import work_through
from densevl.pipelines.folder.storing import Local, Store
from densevl.pipelines.folder.tasks import Kind, Task
from densevl.pipelines.folder.watch import Job

ENDINGS = (".tar", ".parquet")


def pack(place: str, kind: Kind, jobs: Sequence[Job], errors: dict[str, str], folder: Local) -> bytes:
    """The results of a shard as one file; `place` says by its ending what file.

    Args:
        jobs: all of the shard. errors: message of each bad image. folder: where the results of the others are.
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
    """Do a shard and write it, unless it is there; the message of each bad image."""
    if store.exists(name):
        return errors_of(name, store.read(name))
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Local(temporary)

        def save(job: Job, result: Any) -> None:
            result.meta.pop("seconds", None)  # files do not differ between two runs
            folder.save(job, task.kind, result)
            done(job, result)

        def bad(job: Job, error: Exception) -> None:
            errors[job.image] = str(error)
            failed(job, error)

        work_through(task.run, jobs, lambda job: False, save, bad, group=task.group)
        store.write(name, pack(name, task.kind, jobs, errors, folder))
    return errors


def errors_of(place: str, data: bytes) -> dict[str, str]:
    """The bad images of a packed shard, and why."""
    if place.endswith(".parquet"):
        import pyarrow.parquet as parquet

        table = parquet.read_table(io.BytesIO(data), columns=["image", "error"])
        return {row["image"]: row["error"] for row in table.to_pylist() if row["error"]}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("errors.jsonl")
        rows = [json.loads(line) for line in (file.read() if file else b"").splitlines()]
    return {row["image"]: row["error"] for row in rows}


def _tar(kind: Kind, jobs: Sequence[Job], done: Sequence[Job], errors: dict[str, str], folder: Local) -> bytes:
    buffer = io.BytesIO()
    rows = "".join(
        json.dumps({"image": job.image, "error": errors[job.image]}) + "\n" for job in jobs if job.image in errors
    )
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for job in done:
            for ending in kind.endings:
                # WebDataset takes what follows the first dot for the name of a field
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
    parquet.write_table(pyarrow.table(columns), buffer, compression="none")  # pictures are compressed as they are
    return buffer.getvalue()


def _field(ending: str) -> str:
    """.json, .png, .npy; the overlay becomes .overlay.png."""
    return ending if ending.startswith(".") else f".{ending.lstrip('_')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
