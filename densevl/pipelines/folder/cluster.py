"""The loop over a folder on a Ray cluster: workers that have loaded the model once process shards of images.

Only paths and messages are sent, so all machines must see the same folders. Ray replaces a lost worker. Images of its
shard that were already done are not repeated: every image has its results once, whoever made them.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densevl.devices import keep_memory
from densevl.errors import DensevlError, MissingExtraError, OptionError
from densevl.fitted import differing
from densevl.images import bit_depth, pixel_limit
from densevl.images.limit import most_pixels
from densevl.pipelines.folder.each import work_through
from densevl.pipelines.folder.packing import do_shard
from densevl.pipelines.folder.storing import Store
from densevl.pipelines.folder.tasks import Work
from densevl.pipelines.folder.watch import Job
from densevl.weights.given import given_in, loaded_as

SHARD = 64
Outcome = tuple[list[Job], dict[str, str]]
"""The jobs of a shard, and the error message of each bad image."""


class _Worker:
    """An actor of Ray Data. It gets one row per shard, and returns a row with the outcome.

    Errors that concern the whole run are returned in the row, because Ray would restart an actor that raises forever.
    """

    def __init__(self, work: Work, facts: dict[str, Any], store: Store, threads: int | None, most: int) -> None:
        keep_memory()
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.store, self.wrong, self.bits, self.most = store, "", facts.get("bits"), most
        try:
            with bit_depth(self.bits), loaded_as(**given_in(facts.get("reading", {}))):
                self.task = work.task()
                own = self.task.identity
        except DensevlError as error:
            self.wrong = str(error)
            return
        facts = {name: fact for name, fact in facts.items() if name in own}
        if changes := differing(facts, own):
            self.wrong = f"a worker would give other results ({changes}): install the same versions everywhere"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        errors: dict[str, str] = {}
        try:
            if not self.wrong:
                jobs = [Job(image, name) for image, name in json.loads(row["jobs"])]
                with bit_depth(self.bits), pixel_limit(self.most):
                    if row["pack"]:
                        errors = do_shard(self.task, self.store, row["pack"], jobs, _nothing, _nothing)
                    else:
                        self._work(jobs, json.loads(row["bad_before"]), errors)
        except DensevlError as error:
            self.wrong = str(error)
        return {"jobs": row["jobs"], "errors": json.dumps(errors), "wrong": self.wrong}

    def _work(self, jobs: Sequence[Job], bad_before: Sequence[str], errors: dict[str, str]) -> None:
        kind = self.task.kind

        def save(job: Job, result: Any) -> None:
            self.store.save(job, kind, result)

        def failed(job: Job, error: Exception) -> None:
            errors[job.image] = str(error)

        def is_done(job: Job) -> bool:
            return self.store.has(job, kind)

        work_through(self.task.run, jobs, is_done, save, failed, group=self.task.group, bad_before=bad_before)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and how work is distributed on it.

    Attributes:
        work: what is done. address: "local" starts Ray on this machine; otherwise that of a cluster, such as "auto".
        workers: number of workers, each with its own model. shard: number of images a worker takes at a time.
        threads: torch threads per worker; None leaves it to torch.

    Raises:
        OptionError: If no cluster answers at the address.
    """

    work: Work
    address: str = "local"
    workers: int = 1
    shard: int = SHARD
    threads: int | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        if self.address in ("local", "auto"):
            return
        try:  # Ray itself would keep trying for minutes
            if not (host and colon and port.isdecimal()):
                raise OSError("it is not HOST:PORT")
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"no Ray cluster at {self.address!r} ({error}); give HOST:PORT, 'auto' or 'local'"
            ) from error

    def run(
        self,
        facts: dict[str, Any],
        store: Store,
        jobs: Sequence[Job],
        missing: Collection[Job],
        group: int = 1,
        bad_before: Collection[str] = (),
    ) -> Iterator[Outcome]:
        """Do the missing jobs, and yield the outcome of each shard when it is done.

        Args:
            facts: facts of the task, which must be equal on every worker. store: where results are written.
            jobs: all jobs, so that shards are the same in every run. group: shards contain whole groups of this size.
            bad_before: see `work_through`.

        Raises:
            MissingExtraError: If Ray is not installed.
            DensevlError: If a worker has another model or version, or fails.
        """
        size = -(-self.shard // group) * group
        shards = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        rows = [
            {
                "jobs": json.dumps([[job.image, job.name] for job in part]),
                "pack": "",
                "bad_before": json.dumps([job.image for job in part if job.image in bad_before]),
            }
            for part in shards
            if any(job in missing for job in part)
        ]
        yield from self._hand_out(facts, store, rows)

    def packs(self, facts: dict[str, Any], store: Store, shards: Mapping[str, Sequence[Job]]) -> Iterator[Outcome]:
        """Do shards that are each packed in one file, by file name; see `run`."""
        rows = [
            {"jobs": json.dumps([[job.image, job.name] for job in part]), "pack": name, "bad_before": "[]"}
            for name, part in shards.items()
        ]
        yield from self._hand_out(facts, store, rows)

    def _hand_out(self, facts: dict[str, Any], store: Store, rows: list[dict[str, str]]) -> Iterator[Outcome]:
        """Give rows to workers as they become free."""
        if not rows:
            return
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "work on several machines") from error
        if not ray.is_initialized():
            place = None if self.address == "local" else self.address
            try:
                ray.init(place, log_to_driver=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise OptionError(f"no Ray cluster at {self.address!r}; start one, or take 'local'") from error
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # `Watch` reports progress
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= self.workers else 0  # one GPU each, if there are enough
        # One shard is one block: free workers get the next shard, and only paths are held in memory.
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        worker: Any = _Worker
        done = data.map(
            worker,
            fn_constructor_args=(self.work, facts, store, self.threads, most_pixels()),
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),
        )
        for row in done.iter_rows():
            if row["wrong"]:
                raise DensevlError(row["wrong"])
            yield [Job(image, name) for image, name in json.loads(row["jobs"])], json.loads(row["errors"])


def _nothing(job: Job, result: Any) -> None:
    """Do nothing: a worker reports its images when the shard is done."""
