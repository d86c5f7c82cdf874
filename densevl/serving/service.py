"""From a client's request to its answer, independent of the transport: parse, run on a device, cache for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from densevl import __version__, digest
from densevl.errors import OptionError, one_of
from densevl.images.notes import collected
from densevl.images.opening import display_name
from densevl.pipelines.many import with_warnings
from densevl.proposals import NAMES
from densevl.saved import parse_json
from densevl.serving import answers, fields
from densevl.serving.answers import Answer
from densevl.serving.models import RGB, Models, Segmented, corrected, photo, renamed
from densevl.serving.sessions import Sessions
from densevl.serving.settings import MEGABYTE, Limits
from densevl.serving.worker import Job, Worker

Upload = tuple[bytes, str | None]
"""The content of a file, and its name."""
FPR = 0.01
LONGEST = 200  # bytes of a name


class Service:
    """The models of all devices, with a worker each."""

    def __init__(self, models: Sequence[Models], limits: Limits) -> None:
        """Start a worker for the models of each device. All devices offer the same."""
        self.limits = limits
        self.sites = [(each, Worker(each.device)) for each in models]
        self._asked = [0] * len(self.sites)  # requests per device, including those whose images are being read
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self.sessions = Sessions(limits)

    def drop(self) -> None:
        """Drop waiting requests, and accept no more."""
        for _, worker in self.sites:
            worker.drop()

    def close(self) -> None:
        """Finish waiting requests, and end the threads."""
        for _, worker in self.sites:
            worker.close()

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Return the state of the workers for the counters."""
        workers = [worker for _, worker in self.sites]
        passes, shared = sum(w.passes for w in workers), sum(w.shared for w in workers)
        return {
            "load": ("Requests that run or wait on the devices.", sum(worker.load for worker in workers)),
            "devices": ("Devices that models are loaded on.", len(workers)),
            "passes": ("Passes run on the devices.", passes),
            "requests_per_pass": ("Requests per pass, on average.", shared / max(1, passes)),
            "kept": ("Cached answers.", len(self._kept)),
            "sessions": ("Open labelling sessions.", len(self.sessions)),
        }

    def catalogue(self) -> dict[str, Any]:
        """Describe what is offered: models, recipes, proposals and limits."""
        from densevl.recipes import get

        models, _ = self.sites[0]
        return {
            "densevl": __version__,
            "models": [
                {
                    "name": name,
                    "about": backbone.summary,
                    "device": str(backbone.device),
                    "tasks": models.tasks(name),
                    "normal_needed": backbone.default_recipe is None,
                    "recipes": [
                        {"name": recipe, "about": "; ".join(get(recipe).clauses())}
                        for recipe in models.recipes(name)
                        if recipe is not None
                    ],
                }
                for name, backbone in models.backbones.items()
            ],
            "proposals": [
                {"name": name, "clicks": hasattr(loaded, "prompt")} for name, loaded in models.proposers.items()
            ],
            "limits": {**vars(self.limits), "bytes": self.limits.body * MEGABYTE},
            "formats": {
                "segment": ["json", *answers.SEGMENT],
                "regions": ["json", *answers.REGIONS],
                "anomaly": ["json", *answers.ANOMALY],
                "classify": ["json", *answers.CLASSIFY],
                "session": ["json", *answers.SEGMENT],
            },
        }

    async def segment(
        self,
        image: Upload,
        labels: str,
        model: str,
        recipe: str,
        background: str,
        presence: str,
        edits: str,
        format: str,
    ) -> Answer:
        """Label every pixel.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        one_of(format, ("json", *answers.SEGMENT), "format", OptionError)
        asked = fields.labels(labels, self.limits)
        policy, least = fields.background(background, self.limits), fields.share(presence, "presence")
        changes = fields.edits(edits, self.limits)

        def job(models: Models, rgbs: Sequence[RGB]) -> Job:
            return models.segment(rgbs[0], asked, model, recipe, policy, least)

        found = await self._found(job, [image], "segment", labels, model, recipe, background, presence)
        found = await asyncio.to_thread(corrected, found, changes) if changes else found
        return await _told(found, answers.segmentation, answers.SEGMENT, format, image)

    async def regions(
        self,
        image: Upload,
        labels: str,
        model: str,
        proposals: str,
        background: str,
        boxes: str,
        points: str,
        objects: bool,
        edits: str,
        format: str,
    ) -> Answer:
        """Find regions, or take those at boxes and points, and name them; without labels, by a list of nouns.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        one_of(format, ("json", *answers.REGIONS), "format", OptionError)
        one_of(proposals, ("", *NAMES), "proposals", OptionError)
        asked = fields.labels(labels, self.limits) if labels.strip() else None
        policy, changes = fields.background(background, self.limits), fields.edits(edits, self.limits)
        corners = fields.prompts(boxes, "boxes", 4, self.limits)
        clicks = fields.prompts(points, "points", 2, self.limits)

        def job(models: Models, rgbs: Sequence[RGB]) -> Job:
            return models.name_regions(rgbs[0], asked, model, proposals, policy, corners, clicks, objects)

        given = ("regions", labels, model, proposals, background, boxes, points, str(objects))
        found = await self._found(job, [image], *given)
        found = await asyncio.to_thread(renamed, found, changes) if changes else found
        return await _told(found, answers.regions, answers.REGIONS, format, image)

    async def anomaly(
        self, image: Upload, normal: Sequence[Upload], item: str, model: str, fpr: str, format: str
    ) -> Answer:
        """Score an image by words, or against normal images.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        one_of(format, ("json", *answers.ANOMALY), "format", OptionError)
        if len(normal) > self.limits.normal:
            raise OptionError(f"{len(normal)} normal images; this server takes at most {self.limits.normal}")
        share = fields.share(fpr, "fpr") or FPR
        thing = fields.words(item, "item") or "object"

        def job(models: Models, rgbs: Sequence[RGB]) -> Job:
            return models.score(rgbs[0], thing, rgbs[1:], model, share)

        given = ("anomaly", thing, model, str(share))
        found = await self._found(job, [image, *normal], *given)
        return await _told(found, answers.anomaly, answers.ANOMALY, format, image)

    async def classify(self, image: Upload, labels: str, model: str, format: str) -> Answer:
        """Find the likeliest label of a whole photo.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        one_of(format, ("json", *answers.CLASSIFY), "format", OptionError)
        asked = fields.labels(labels, self.limits)

        def job(models: Models, rgbs: Sequence[RGB]) -> Job:
            return models.classify(rgbs[0], asked, model)

        found = await self._found(job, [image], "classify", labels, model)
        return await _told(found, answers.naming, answers.CLASSIFY, format, image)

    async def begin(self, labels: str, model: str, recipe: str, background: str) -> answers.Session:
        """Start a labelling session on the least busy device.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        asked, policy = fields.labels(labels, self.limits), fields.background(background, self.limits)
        models, worker = self.sites[min(range(len(self.sites)), key=lambda index: self._asked[index])]
        most = self.limits.session_megabytes
        return await self.sessions.begin(models, worker, asked, model, recipe, policy, most)

    async def add(self, session: str, image: Upload) -> answers.Session:
        """Add a photo to a session.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        rgb = await asyncio.to_thread(photo, *image, self.limits)
        return await self.sessions.add(session, rgb, _stem(image))

    async def labelled(self, session: str, number: int, format: str) -> tuple[Answer, str]:
        """Return the labels of a session's photo, as JSON or as a file, and its name.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        one_of(format, ("json", *answers.SEGMENT), "format", OptionError)
        found, units, name = await self.sessions.labels(session, number)
        as_model = partial(answers.session_labels, units=units)
        return await _told(found, as_model, answers.SEGMENT, format, (b"", name)), name

    async def correct(
        self, session: str, number: int, name: str, box: str, point: str, mask: Upload | None
    ) -> answers.Session:
        """Correct the label of some pixels in a session's photo.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        name = fields.words(name, "name")
        where: dict[str, Any] = {}
        if box.strip():
            where["box"] = fields.prompt(box, "boxes", 4, self.limits)
        if point.strip():
            x, y = fields.prompt(point, "points", 2, self.limits)
            where["point"] = (int(x), int(y))
        if mask is not None and mask[0]:
            rgb = await asyncio.to_thread(photo, mask[0], "the mask", self.limits)
            where["mask"] = rgb.max(axis=2) > 127
        return await self.sessions.correct(session, number, name, **where)

    async def restore(self, session: str, file: bytes) -> answers.Session:
        """Apply the corrections of a saved session.

        Raises:
            DensevlError: If anything is unusable, with a one-line message.
        """
        try:
            content = await asyncio.to_thread(parse_json, file)
        except (ValueError, RecursionError) as error:
            raise OptionError("the file is not JSON; give a file from /v1/session/coco") from error
        return await self.sessions.restore(session, content)

    async def _found(self, job: Callable[[Models, Sequence[RGB]], Job], images: Sequence[Upload], *given: str) -> Any:
        """Run a job, or return its cached result for the same request with the same images."""
        key = await asyncio.to_thread(_key, images, given)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        site = min(range(len(self.sites)), key=lambda index: self._asked[index])
        self._asked[site] += 1
        try:
            models, worker = self.sites[site]
            rgbs, ready, said = await asyncio.to_thread(partial(_ready, job, models, images, self.limits))
            found = _with_warnings(await worker.run(ready), said)
        finally:
            self._asked[site] -= 1
        self._kept[key] = found, rgbs[0].shape[0] * rgbs[0].shape[1]
        while len(self._kept) > self.limits.kept or (
            len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self.limits.pixels * MEGABYTE
        ):
            self._kept.popitem(last=False)
        return found


async def _told(
    found: Any,
    as_model: Callable[[Any], Any],
    files: Mapping[str, Callable[[Any, str], Answer]],
    format: str,
    image: Upload,
) -> Answer:
    """Return a result as JSON or as a file."""
    if format == "json":
        return await asyncio.to_thread(lambda: answers.as_json(as_model(found)))
    return await asyncio.to_thread(files[format], found, _stem(image))


def _ready(
    job: Callable[[Models, Sequence[RGB]], Job], models: Models, images: Sequence[Upload], limits: Limits
) -> tuple[list[RGB], Job, tuple[str, ...]]:
    """Return images, the job on them, and the notes about them."""
    with collected() as said:
        rgbs = [photo(data, name, limits) for data, name in images]
    return rgbs, job(models, rgbs), tuple(said)


def _with_warnings(found: Any, said: Sequence[str]) -> Any:
    if isinstance(found, Segmented):
        return replace(found, result=with_warnings(found.result, said))
    return with_warnings(found, said)


def _key(images: Sequence[Upload], given: Sequence[str]) -> str:
    return digest.of_text(*(digest.of_bytes(data) for data, _ in images), *map(repr, given))


def _stem(image: Upload) -> str:
    """Return the name of an upload without folders and not too long. It is used in files that clients keep."""
    name = display_name(image[1]).replace("\\", "/").rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return (
        name if len(name.encode()) <= LONGEST else f"{(stem or ending)[: LONGEST // 4]}{dot}{ending[:8]}"
    ) or "photo"
