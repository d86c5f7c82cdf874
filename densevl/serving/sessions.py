"""Labelling sessions of clients: photos that stay for a while, are corrected and labelled again; see `LabelSession`."""

from __future__ import annotations

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError, LabelError, OptionError, ProposalError
from densevl.pipelines.fewshot.session import LabelSession
from densevl.serving.answers import Session, SessionPhoto, colours
from densevl.serving.models import ALTERNATIVES, RGB, Models, Segmented
from densevl.serving.settings import Limits
from densevl.serving.worker import Job, Worker, alone

MINUTE = 60  # seconds
LATELY = 600  # seconds after its last request in which a session is not dropped for a new one


class SessionError(DensevlError):
    """There is no such session, or no room for another."""


@dataclass(eq=False)
class _Open:
    """A session of a client, with the worker it runs on."""

    work: LabelSession
    worker: Worker
    asked: float = field(default_factory=time.monotonic)


class Sessions:
    """The open sessions: a few, each on one device, with a few photos, for as long as they get requests."""

    def __init__(self, limits: Limits) -> None:
        """Start without sessions."""
        self.limits = limits
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def __len__(self) -> int:
        self._drop()
        return len(self._open)

    async def begin(self, models: Models, worker: Worker, *given: Any) -> Session:
        """Start a session. `given`: the arguments of `Models.session`.

        Raises:
            SessionError: If there are too many.
            DensevlError: As for `Models.session`.
        """
        self._drop()
        if len(self._open) >= self.limits.sessions:
            oldest = next(iter(self._open.values()))
            if time.monotonic() - oldest.asked < LATELY:
                raise SessionError(f"{len(self._open)} sessions are open; try again in a few minutes")
            self._open.popitem(last=False)
        key = secrets.token_urlsafe(16)
        work = await worker.run(Job(partial(alone, partial(models.session, *given))))
        self._open[key] = _Open(work, worker)
        return _told(key, work)

    async def add(self, key: str, rgb: RGB, name: str) -> Session:
        """Add a photo. If its name is taken, it gets another.

        Raises:
            SessionError: If there is no such session.
            OptionError: If there is no more room.
        """

        def call(work: LabelSession) -> None:
            if len(work.photos) >= self.limits.session_photos:
                raise OptionError(f"a session takes at most {self.limits.session_photos} photos")
            own, number = name, 1
            while own in work.photos:
                number += 1
                stem, dot, ending = name.rpartition(".")
                own = f"{stem or ending} ({number}){dot}{ending if stem else ''}"
            work.add(rgb, own)

        return await self._run(key, call)

    async def labels(self, key: str, photo: int) -> tuple[Segmented, npt.NDArray[np.int32], str]:
        """Return the labels of a photo, its units for clicks, and its name."""

        def call(work: LabelSession) -> tuple[Segmented, npt.NDArray[np.int32], str]:
            name = _name(work, photo)
            result = work.result(name)
            return Segmented(result, *result.top(ALTERNATIVES)), work.units(name, result), name

        return await self._do(key, call)

    async def correct(self, key: str, photo: int, name: str, **where: Any) -> Session:
        """Correct the label of some pixels; see `LabelSession.correct`.

        Raises:
            SessionError: If there is no such session.
            DensevlError: If the correction is impossible.
        """

        def call(work: LabelSession) -> None:
            if len(work.corrections) >= self.limits.corrections:
                raise OptionError(f"a session takes at most {self.limits.corrections} corrections")
            if name.strip() not in work.labels.names and len(work.labels) >= self.limits.labels:
                raise LabelError(f"{len(work.labels)} labels; this server takes at most {self.limits.labels}")
            given = where.get("mask")
            size = work.result(_name(work, photo)).labels.shape if given is not None else ()
            if given is not None and given.shape != size:
                raise ProposalError(f"the mask is {given.shape[1]}x{given.shape[0]}, the photo {size[1]}x{size[0]}")
            work.correct(_name(work, photo), name, **where)

        return await self._run(key, call)

    async def confirm(self, key: str, photo: int) -> Session:
        """Confirm a photo as it is."""
        return await self._run(key, lambda work: work.confirm(_name(work, photo)))

    async def undo(self, key: str) -> Session:
        """Undo the last correction."""
        return await self._run(key, lambda work: work.undo())

    async def coco(self, key: str) -> dict[str, Any]:
        """Return the session as COCO."""
        return await self._do(key, lambda work: work.to_coco())

    async def restore(self, key: str, content: Any) -> Session:
        """Apply the corrections of a saved session to the photos that are here."""
        found: list[str] = []

        def call(work: LabelSession) -> None:
            annotations, names = _rows(content, "annotations"), _rows(content, "categories")
            if len(annotations) > 10 * self.limits.corrections or (
                sum(bool(row.get("corrected")) for row in annotations) + len(work.corrections) > self.limits.corrections
            ):
                raise OptionError(f"a session takes at most {self.limits.corrections} corrections")
            if sum(len(str(row.get("name"))) for row in names) > self.limits.characters or (
                len(names) > self.limits.labels + 1  # and "nothing"
            ):
                raise LabelError(
                    f"there are too many labels, or they are too long; this server takes at most {self.limits.labels}"
                )
            found.extend(work.restore(content))

        answer = await self._run(key, call)
        return answer.model_copy(update={"missing": found})

    def end(self, key: str) -> None:
        """Forget a session."""
        self._open.pop(key, None)

    async def _run(self, key: str, call: Callable[[LabelSession], Any]) -> Session:
        def both(work: LabelSession) -> Session:
            call(work)
            return _told(key, work)

        return await self._do(key, both)

    async def _do(self, key: str, call: Callable[[LabelSession], Any]) -> Any:
        self._drop()
        if key not in self._open:
            raise SessionError(
                "there is no such session: it has ended, or the key is mistyped; start another, and open the file that "
                "was saved from it"
            )
        one = self._open[key]
        one.asked = time.monotonic()
        self._open.move_to_end(key)
        return await one.worker.run(Job(partial(alone, partial(call, one.work))))

    def _drop(self) -> None:
        """Forget sessions that got no request for a long time."""
        late = time.monotonic() - MINUTE * self.limits.session_minutes
        for key in [key for key, one in self._open.items() if one.asked < late]:
            del self._open[key]


def _rows(content: Any, name: str) -> list[dict[str, Any]]:
    """Return the rows of a list in a saved session, if there are any."""
    rows = content.get(name) if isinstance(content, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _name(work: LabelSession, photo: int) -> str:
    if not 0 <= photo < len(work.photos):
        raise OptionError(f"there is no photo {photo}; photos are numbered from 0, in the order they were added")
    return work.photos[photo]


def _told(key: str, work: LabelSession) -> Session:
    numbers = {name: number for number, name in enumerate(work.photos)}
    counts = Counter(one.photo for one in work.corrections)
    return Session(
        session=key,
        names=list(work.labels.names),
        colours=colours(len(work.labels)),
        photos=[
            SessionPhoto(number=numbers[name], name=name, doubt=doubt, corrections=counts[name])
            for name, doubt in work.order()
        ],
        corrections=len(work.corrections),
        warnings=[],
        missing=[],
    )
