"""Labelling sessions over HTTP: begun, corrected, saved and opened again; and what they refuse."""

from __future__ import annotations

import io
import json
from base64 import b64decode

import httpx
import numpy as np
import pytest
from PIL import Image

from densevl import LabelSession
from serving.server import EXAMPLES, running
from serving.test_api import decoded, png

LABELS = "elephant, fish, sailboat"
PHOTOS = ("water.png", "wood.png")


LIMITS = {"sessions": 2, "session_photos": 2, "corrections": 4, "labels": 5, "pixels": 1}


@pytest.fixture(scope="module")
def client(models):
    with running(models, **LIMITS) as (address, _, _), httpx.Client(base_url=address, timeout=60) as own:
        yield own


def post(client, what="", files=None, **fields) -> httpx.Response:
    return client.post(f"/v1/session{what}", data=fields, files=files)


def begin(client) -> str:
    """Begin a session of two photos: its key."""
    key = post(client, labels=LABELS).json()["session"]
    for name in PHOTOS:
        assert post(client, "/photo", {"image": (name, (EXAMPLES / name).read_bytes())}, session=key).status_code == 200
    return key


@pytest.fixture
def begun(client):
    key = begin(client)
    yield key
    post(client, "/end", session=key)


@pytest.fixture(scope="module")
def unchanged(models):
    """A server of its own and its one session, which no refusal changes."""
    with running(models, **LIMITS) as (address, _, _), httpx.Client(base_url=address, timeout=60) as own:
        yield own, begin(own)


def test_a_session_is_that_of_the_library(client, models, begun) -> None:
    own = LabelSession(models.backbones["mini"], LABELS.split(", "), proposals="mini-sam")
    for name in PHOTOS:
        own.add(EXAMPLES / name)
    post(client, "/correct", session=begun, photo=0, name="house", box="[10, 130, 60, 190]")
    told = post(client, "/correct", session=begun, photo=1, name="nothing", point="[5, 5]").json()
    own.correct("water.png", "house", box=(10, 130, 60, 190))
    own.correct("wood.png", "nothing", point=(5, 5))
    assert [(one["name"], one["doubt"]) for one in told["photos"]] == own.order()
    assert told["names"] == [*LABELS.split(", "), "house"]
    for number, name in enumerate(PHOTOS):
        got = post(client, "/labels", session=begun, photo=number).json()
        labels, steps = decoded(got["map"])
        want = own.result(name)
        assert np.array_equal(labels, want.labels)
        assert np.array_equal(steps, np.rint(want.confidence * 255))
        bits = np.asarray(Image.open(io.BytesIO(b64decode(got["units"])))).astype(np.int32)
        assert np.array_equal(bits @ [1, 256, 65536], own.units(name))
    assert post(client, "/coco", session=begun).json() == json.loads(json.dumps(own.to_coco()))
    picture = post(client, "/labels", session=begun, photo=0, format="overlay")
    assert picture.headers["content-disposition"].endswith("water_overlay.png")


def test_a_saved_session_is_opened_again(client, begun) -> None:
    mask = np.zeros((192, 192), np.uint8)
    mask[140:180, 20:50] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    post(client, "/correct", {"mask": buffer.getvalue()}, session=begun, photo=0, name="house")
    before = post(client, "/labels", session=begun, photo=0).json()["map"]
    saved = post(client, "/coco", session=begun).content
    assert post(client, "/undo", session=begun).json()["corrections"] == 0
    assert post(client, "/labels", session=begun, photo=0).json()["map"] != before
    told = post(client, "/restore", {"file": saved}, session=begun).json()
    assert (told["corrections"], told["missing"]) == (1, [])
    assert post(client, "/labels", session=begun, photo=0).json()["map"] == before
    told = post(client, "/confirm", session=begun, photo=1).json()
    assert told["photos"][-1]["name"] == "wood.png"


@pytest.mark.parametrize(
    ("what", "fields", "message"),
    [
        ("/labels", {"photo": 5}, "no photo 5"),
        ("/labels", {"photo": -1}, "no photo -1"),
        ("/labels", {"photo": "x"}, "field 'photo'"),
        ("/labels", {"photo": 0, "format": "gif"}, "one of json"),
        ("/labels", {"photo": 0, "session": "other"}, "no such session: it has ended"),
        ("/correct", {"photo": 0, "name": "x"}, "give one of"),
        ("/correct", {"photo": 0, "name": "x" * 201, "point": "[1, 1]"}, "name has 201 characters"),
        ("/correct", {"photo": 0, "name": " ", "point": "[1, 1]"}, "empty label"),
        ("/correct", {"photo": 0, "name": "x", "point": "[999, 1]"}, "outside the photo of 192 x 192"),
        ("/correct", {"photo": 0, "name": "x", "point": "[1, 1], [2, 2]"}, "2 points where one"),
        ("/correct", {"photo": 0, "name": "x", "box": "[50, 50, 50, 50]"}, "no area"),
        ("/correct", {"photo": 0, "name": "x", "box": "[1, 1, 9, 9]", "point": "[1, 1]"}, "give one of"),
    ],
)
def test_what_cannot_be_is_one_line(unchanged, what, fields, message) -> None:
    client, key = unchanged
    answer = post(client, what, **{"session": key} | fields)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"{",
        b'{"images": 3, "annotations": [], "categories": []}',
        b'{"images": [], "annotations": [%s {}], "categories": []}' % (b'{"corrected": true},' * 5),
        b'{"images": [], "annotations": [], "categories": [{"name": "%s"}]}' % (b"x" * 40_000),
        b'{"images": [], "annotations": [], "categories": [%s {}]}' % (b'{"name": "x"},' * 2000),
        b'{"images": [{"id": 0, "file_name": "water.png"}], "categories": [{"id": 1, "name": "x"}], "annotations": '
        b'[{"corrected": true, "image_id": 0, "category_id": 1, "segmentation": {"size": [9, 9], "counts": [81]}}]}',
    ],
)
def test_a_file_that_is_no_session_is_told_so(unchanged, content) -> None:
    client, key = unchanged
    answer = post(client, "/restore", {"file": content}, session=key)
    assert answer.status_code == 422
    assert post(client, "/undo", session=key).json()["corrections"] == 0


def test_sessions_are_bounded(client, begun) -> None:
    third = post(client, "/photo", {"image": png()}, session=begun)
    assert "at most 2 photos" in third.json()["error"]["message"]
    wrong = post(client, "/correct", {"mask": png()}, session=begun, photo=0, name="x")
    assert "the mask is 32x24, the photo 192x192" in wrong.json()["error"]["message"]
    for number in range(4):
        post(client, "/correct", session=begun, photo=0, name="nothing", box=f"[{number}, 0, 30, 30]")
    full = post(client, "/correct", session=begun, photo=0, name="fish", point="[5, 5]")
    assert "at most 4 corrections" in full.json()["error"]["message"]
    other = post(client, labels=LABELS).json()["session"]
    assert "2 sessions are open" in post(client, labels=LABELS).json()["error"]["message"]
    post(client, "/end", session=other)
    assert post(client, labels=LABELS).status_code == 200


def test_a_session_that_nobody_asks_is_forgotten(client, models, monkeypatch) -> None:
    from densevl.serving import sessions

    with running(models, session_minutes=1) as (address, _, service), httpx.Client(base_url=address, timeout=60) as own:
        key = post(own, labels="cat").json()["session"]
        assert len(service.sessions) == 1
        monkeypatch.setattr(sessions, "MINUTE", 0)
        assert len(service.sessions) == 0
        assert "has ended" in post(own, "/undo", session=key).json()["error"]["message"]
