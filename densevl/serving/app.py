"""The routes of the server, with FastAPI. The work is done by the `Service`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, get_origin
from urllib.parse import quote

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from densevl import __version__
from densevl.errors import DensevlError, MissingExtraError, OptionError, WeightsError, suggest
from densevl.serving import answers
from densevl.serving.answers import Anomaly, Answer, Failure, Naming, Regions, Segmentation, Session, SessionLabels
from densevl.serving.counters import Counters
from densevl.serving.gate import INTERNAL, STOPPING, Gate
from densevl.serving.service import Service, Upload
from densevl.serving.worker import Stopped
from densevl.vocabulary.parsing import short

PAGE = Path(__file__).parent / "page"
CODES = {404: "not_found", 405: "method", 400: "malformed"}
SAME_STEM = ("labelme",)  # readers of the file find the photo by its name
FAILURES: dict[int | str, dict[str, Any]] = {
    413: {"model": Failure, "description": "larger than the server allows"},
    422: {"model": Failure, "description": "an unusable image, labels or setting; the message says why"},
    503: {"model": Failure, "description": "too many requests at once; Retry-After says when to try again"},
}

Image = Annotated[UploadFile, File(description="the photo: JPEG, PNG, WebP, ...")]
Labels = Annotated[
    str,
    Form(
        description='classes: "cat, dog | puppy, sky", or JSON: a list of these, or an object of lists of words by name'
    ),
]
Model = Annotated[str, Form(description="one of /v1/models; the first if left out")]
Recipe = Annotated[str, Form(description="one of the model's recipes; the first if left out")]
Background = Annotated[
    str, Form(description='when a pixel has none of the labels: "auto", "none", a probability, words, or a list: "voc"')
]
Presence = Annotated[str, Form(description="labels that reach this probability nowhere in the photo are dropped")]
Edits = Annotated[
    str, Form(description='corrections, JSON [[x, y, "name"], ...]: the region around that pixel has that class')
]
Proposals = Annotated[str, Form(description="the proposer of regions: one of /v1/models; the first if left out")]
Boxes = Annotated[str, Form(description="JSON [[x0, y0, x1, y1], ...] in pixels: name what is in these boxes")]
Points = Annotated[str, Form(description="JSON [[x, y], ...] in pixels: name what is at these points")]
Objects = Annotated[bool, Form(description="keep only regions that have a label, each object once, best first")]
Normal = Annotated[list[UploadFile], File(description="images of normal objects, to compare with")]
Item = Annotated[str, Form(description='the object in the images, in the singular: "metal nut"')]
Fpr = Annotated[str, Form(description="the share of normal images that may be called anomalous; 0.01 if left out")]
SessionKey = Annotated[str, Form(description="the session, as returned by /v1/session")]
Number = Annotated[int, Form(description="the number of the photo in the session")]
Name = Annotated[str, Form(description='the class; a new one is added; "nothing" for none of them')]
Box = Annotated[str, Form(description="JSON [x0, y0, x1, y1] in pixels: the object in this box")]
Point = Annotated[str, Form(description="JSON [x, y] in pixels: the region of one label at this point")]
Mask = Annotated[UploadFile | None, File(description="a picture of the photo's size, bright at the pixels meant")]
Saved = Annotated[UploadFile, File(description="a file from /v1/session/coco")]
Format = Annotated[str, Form(description="json, or a file; /v1/models lists them")]


def create_app(service: Service, *, local: bool = True, origin: str | None = None) -> Gate:
    """Create the ASGI application.

    Args:
        local: serve only this machine. origin: address of a page elsewhere that may send requests; see `Gate`.
    """
    counters = Counters()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        threads = max(2, min(service.limits.queue, os.cpu_count() or 1))
        asyncio.get_running_loop().set_default_executor(_threads(threads))
        current_default_thread_limiter().total_tokens = threads  # threads that read the page and uploads
        yield
        service.close()

    app = FastAPI(
        dependencies=[Depends(_only_known)],
        title="densevl",
        version=__version__,
        description="Open-vocabulary dense prediction.",
        docs_url=None,  # their scripts are on another host
        redoc_url=None,
        lifespan=life,
    )
    app.add_exception_handler(DensevlError, _unusable)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(Stopped, _stopped)
    app.add_exception_handler(Exception, _broken)

    @app.post("/v1/segment", **_route(Segmentation, labels="elephant, fish, sailboat, pizza", background="none"))
    async def segment(
        image: Image,
        labels: Labels,
        model: Model = "",
        recipe: Recipe = "",
        background: Background = "",
        presence: Presence = "",
        edits: Edits = "",
        format: Format = "json",
    ) -> Response:
        """Label every pixel of a photo by words."""
        return _sent(
            await service.segment(
                await _read(image), labels, model, recipe, background, presence, edits, format or "json"
            ),
            image.filename,
            format,
        )

    @app.post("/v1/regions", **_route(Regions, labels="elephant, fish, sailboat, pizza", boxes="[[85, 92, 140, 152]]"))
    async def regions(
        image: Image,
        labels: Labels = "",
        model: Model = "",
        proposals: Proposals = "",
        background: Background = "",
        boxes: Boxes = "",
        points: Points = "",
        objects: Objects = False,
        edits: Edits = "",
        format: Format = "json",
    ) -> Response:
        """Find regions of a photo, or take those at boxes and points, and name them by words.

        Without labels they are named from a list of common nouns.
        """
        return _sent(
            await service.regions(
                await _read(image),
                labels,
                model,
                proposals,
                background,
                boxes,
                points,
                objects,
                edits,
                format or "json",
            ),
            image.filename,
            format,
        )

    @app.post("/v1/anomaly", **_route(Anomaly, image="tiles_damaged.png", item="tile"))
    async def anomaly(
        image: Image,
        normal: Normal = [],  # noqa: B006  FastAPI copies it
        item: Item = "object",
        model: Model = "",
        fpr: Fpr = "",
        format: Format = "json",
    ) -> Response:
        """Say how anomalous an image is, and where: by words alone, or against normal images."""
        return _sent(
            await service.anomaly(
                await _read(image), [await _read(one) for one in normal], item, model, fpr, format or "json"
            ),
            image.filename,
            format,
        )

    @app.post("/v1/classify", **_route(Naming, labels="harbour, street, kitchen"))
    async def classify(image: Image, labels: Labels, model: Model = "", format: Format = "json") -> Response:
        """Find the likeliest label of a whole photo."""
        return _sent(
            await service.classify(await _read(image), labels, model, format or "json"), image.filename, format
        )

    sessions(app, service)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List what this server offers: models, their recipes and tasks, proposals, formats and limits."""
        return service.catalogue()

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Report that the server works, and its load."""
        waiting = sum(worker.load for _, worker in service.sites)
        return {"status": "ok", "running": gate.running, "on_devices": waiting, "queue": service.limits.queue}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Return counts and times in the text format of Prometheus."""
        now = {"running": ("Requests that run or wait.", float(gate.running))}
        return counters.text(now | service.gauges())

    routes = [route.path for route in app.routes if hasattr(route, "path")]
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    asgi: Any = app
    if origin is not None:
        from starlette.middleware.cors import CORSMiddleware

        asgi = CORSMiddleware(app, allow_origins=[origin], allow_methods=["GET", "POST"])
    gate = Gate(asgi, service.limits, counters, routes, local=local, origin=origin)
    return gate


def _threads(count: int) -> ThreadPoolExecutor:
    """Create threads that read and write images, all at the start, because each has its own heap."""
    pool, met = ThreadPoolExecutor(count, "densevl-images"), threading.Barrier(count)
    list(pool.map(lambda _: met.wait(), range(count)))
    return pool


def sessions(app: FastAPI, service: Service) -> None:
    """Add the routes of labelling sessions: photos are corrected in places, and the sessions learn from it."""

    @app.post("/v1/session", **_route(Session, image="", labels="elephant, fish, sailboat"))
    async def begin(labels: Labels, model: Model = "", recipe: Recipe = "", background: Background = "") -> Session:
        """Begin a labelling session."""
        return await service.begin(labels, model, recipe, background)

    @app.post("/v1/session/photo", **_route(Session, session="..."))
    async def add(session: SessionKey, image: Image) -> Session:
        """Add a photo."""
        return await service.add(session, await _read(image))

    @app.post("/v1/session/labels", **_route(SessionLabels, image="", session="...", photo="0"))
    async def labelled(session: SessionKey, photo: Number, format: Format = "json") -> Response:
        """Label every pixel of a photo by words and all corrections."""
        answer, name = await service.labelled(session, photo, format or "json")
        return _sent(answer, name, format)

    @app.post(
        "/v1/session/correct", **_route(Session, image="", session="...", photo="0", name="house", point="[37, 160]")
    )
    async def correct(
        session: SessionKey, photo: Number, name: Name, box: Box = "", point: Point = "", mask: Mask = None
    ) -> Session:
        """Correct the label of a box, the region at a point, or the pixels of a mask. All photos learn from it."""
        read = None if mask is None else await _read(mask)
        return await service.correct(session, photo, name, box, point, read)

    @app.post("/v1/session/confirm", **_route(Session, image="", session="...", photo="0"))
    async def confirm(session: SessionKey, photo: Number) -> Session:
        """Confirm a photo as it is. All of it becomes an example."""
        return await service.sessions.confirm(session, photo)

    @app.post("/v1/session/undo", **_route(Session, image="", session="..."))
    async def undo(session: SessionKey) -> Session:
        """Undo the last correction."""
        return await service.sessions.undo(session)

    @app.post("/v1/session/coco", **_route(dict[str, Any], image="", session="..."))
    async def coco(session: SessionKey) -> Response:
        """Return all photos as COCO: corrections, then results."""
        answer = answers.as_file(await service.sessions.coco(session))
        return _sent(answer, "session", "coco")

    @app.post("/v1/session/restore", **_route(Session, image="", session="...", file="session.coco.json"))
    async def restore(session: SessionKey, file: Saved) -> Session:
        """Apply the corrections of a file to the photos of the session, matched by name."""
        return await service.restore(session, await file.read())

    @app.post("/v1/session/end", **_route(dict[str, Any], image="", session="..."))
    async def end(session: SessionKey) -> dict[str, Any]:
        """End a session and forget it."""
        service.sessions.end(session)
        return {}


def _route(answer: type[Any], *, image: str = "water.png", **example: str) -> dict[str, Any]:
    """Return the OpenAPI description of a route: its responses, and an example with files from /examples/."""
    form = {**({"image": f"examples/{image}"} if image else {}), **example}
    return {
        "responses": {200: {"model": answer}, **FAILURES},
        "openapi_extra": {"requestBody": {"content": {"multipart/form-data": {"example": form}}}},
    }


async def _only_known(request: Request) -> None:
    """Refuse what a route would ignore: unknown fields, and repeated fields where it expects one value."""
    if request.method != "POST":
        return
    known = {field.alias: field for field in request.scope["route"].dependant.body_params}  # codespell:ignore dependant
    if request.query_params:
        raise OptionError(f"{short(next(iter(request.query_params)))!r} is in the address; send it as a form field")
    for name, times in Counter(name for name, _ in (await request.form()).multi_items()).items():
        if name not in known:
            raise OptionError(f"no field {short(name)!r}{suggest(name, known)}; there are {', '.join(known)}")
        if times > 1 and get_origin(known[name].field_info.annotation) is not list:
            raise OptionError(f"field {name!r} came {times} times; it takes one value")


async def _read(upload: UploadFile) -> Upload:
    return await upload.read(), upload.filename


def _sent(answer: Answer, file: str | None, format: str) -> Response:
    headers = {}
    if format not in ("", "json"):
        stem = Path(file or "photo").stem or "photo"
        name = quote(f"{stem}{'' if format in SAME_STEM else f'_{format}'}{answer.ending}", safe="")
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{name}"
    return Response(answer.body, media_type=answer.media, headers=headers)


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def _unusable(request: Request, error: Any) -> Response:
    if isinstance(error, WeightsError | MissingExtraError):  # the operator's problem, and it may contain paths
        raise RuntimeError("the server cannot load what a request needs") from error
    return _problem(422, type(error).__name__.removesuffix("Error").lower() or "error", str(error))


async def _broken(request: Request, error: Exception) -> Response:
    return _problem(500, INTERNAL.code, INTERNAL.message)


async def _stopped(request: Request, error: Exception) -> Response:
    return _problem(STOPPING.status, STOPPING.code, STOPPING.message, STOPPING.headers)


async def _malformed(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    field = str(first["loc"][-1])
    reason = "is missing" if first["type"] == "missing" else f"cannot be used: {first['msg']}"
    if "UploadFile" in first["msg"]:
        reason = "is text; send it as a file, in multipart/form-data"
    return _problem(422, "field", f"field '{field}' {reason}")


async def _other(request: Request, error: Any) -> Response:
    if error.status_code == 404 and any(route.path == request.url.path for route in request.app.routes):
        detail = f"{request.method} does not work with {request.url.path}; send a POST with a form"
        return _problem(405, CODES[405], detail, {"Allow": "POST"})
    code = CODES.get(error.status_code, "error")
    return _problem(error.status_code, code, str(error.detail), error.headers)
