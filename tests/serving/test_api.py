"""The API: every route by its own example, every format, and what is refused, in words."""

from __future__ import annotations

import io
import json
import re
import zipfile
from base64 import b64decode

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from densevl import Segmenter
from densevl.errors import OptionError
from densevl.images.notes import ImageWarning
from densevl.serving.models import photo
from densevl.serving.settings import Limits, Settings
from serving.server import EXAMPLES

WATER = (EXAMPLES / "water.png").read_bytes()
LABELS = "elephant, fish, sailboat, pizza, sunflower, house"


@pytest.fixture(scope="module")
def client(served):
    with httpx.Client(base_url=served[0], timeout=60) as own:
        yield own


def png(size=(32, 24), colour=(200, 30, 30), format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format, **options)
    return buffer.getvalue()


def decoded(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and blue of a map."""
    rgb = np.asarray(Image.open(io.BytesIO(b64decode(text))))
    numbers = rgb[..., 0] + 256 * rgb[..., 1].astype(np.int32)
    return np.where(numbers == 65535, -1, numbers), rgb[..., 2]


def post(client, route, image=WATER, name="water.png", **fields) -> httpx.Response:
    return client.post(f"/v1/{route}", files={"image": (name, image)}, data=fields)


def test_every_route_has_an_example_that_works(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path: own["post"] for path, own in paths.items() if "post" in own}
    assert {"/v1/segment", "/v1/regions", "/v1/anomaly", "/v1/classify", "/v1/session"} <= set(posts)
    session, saved = "", b""
    for path, route in posts.items():  # those of a session come in the order in which they are of use
        form = dict(route["requestBody"]["content"]["multipart/form-data"]["example"])
        files = {"image": client.get(f"/{form.pop('image')}").content} if "image" in form else {}
        if "session" in form:
            form["session"] = session
        if form.pop("file", None):
            files["file"] = saved
        answer = client.post(path, files=files, data=form)
        assert answer.status_code == 200, (path, answer.text)
        if path.startswith("/v1/session"):
            session = answer.json().get("session", session)
            saved = answer.content if path.endswith("/coco") else saved
        else:
            assert {"size", "names", "meta", "warnings"} <= answer.json().keys()
    for path in set(paths) - set(posts):
        assert client.get(path).status_code == 200


def test_a_map_is_that_of_the_library(client, models) -> None:
    got = post(client, "segment", labels=LABELS).json()
    want = Segmenter(models.backbones["mini"])(EXAMPLES / "water.png", LABELS)
    labels, steps = decoded(got["map"])
    assert np.array_equal(labels, want.labels)
    assert np.array_equal(steps, np.rint(want.confidence * 255))
    assert got["names"] == list(want.names)
    assert got["fractions"] == want.fractions()
    near = got["alternatives"]
    classes, chances = decoded(near["map"])
    best, share = want.top(near["count"], (near["height"], near["width"]))
    assert np.array_equal(classes.reshape(best.shape), best)
    assert np.abs(chances.reshape(best.shape) / 255 - share).max() <= 0.5 / 255 + 1e-6


def test_regions_at_boxes_and_clicks_come_in_order(client) -> None:
    asked = {"labels": LABELS, "boxes": "[[85, 92, 140, 152]]", "points": "[[167, 90], [37, 160]]"}
    got = post(client, "regions", **asked).json()
    assert [region["name"] for region in got["regions"]] == ["sunflower", "house", "elephant"]
    assert got["regions"][0]["segmentation"]["size"] == [192, 192]
    assert got["regions"][0]["alternatives"][0][0] == "sunflower"


def test_rectangles_stay_rectangles_where_no_sam_is(client) -> None:
    got = post(client, "regions", labels=LABELS, boxes="[[85, 92, 140, 152]]", proposals="grid").json()
    assert got["regions"][0]["box"] == [85, 92, 140, 152]
    assert got["regions"][0]["area"] == 55 * 60


def test_an_anomaly_by_words_and_against_normal_images(client) -> None:
    damaged, sound = ((EXAMPLES / f"tiles_{kind}.png").read_bytes() for kind in ("damaged", "sound"))
    by_words = post(client, "anomaly", damaged, item="tile").json()
    assert by_words["threshold"] is None
    files = [("image", damaged), ("normal", sound)]
    compared = client.post("/v1/anomaly", files=files, data={"item": "tile"}).json()
    assert compared["is_anomalous"] is True
    values, _ = decoded(compared["map"])
    low, high = compared["range"]
    heat = low + values * (high - low) / 65535
    x = int(heat.argmax()) % heat.shape[1]
    assert 95 <= x <= 120, "the crack"
    assert (heat > compared["threshold"]["pixel"]).any()


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("segment", {"labels": LABELS}),
        ("regions", {"labels": LABELS, "boxes": "[[85, 92, 140, 152]]"}),
        ("anomaly", {"item": "tile"}),
        ("classify", {"labels": LABELS}),
    ],
)
def test_every_format_opens(client, served, route, fields) -> None:
    """Other formats of an answer come without the model running again."""
    post(client, route, **fields)
    worker = served[2].sites[0][1]
    passes = worker.passes
    for format in client.get("/v1/models").json()["formats"][route]:
        answer = post(client, route, format=format, **fields)
        assert answer.status_code == 200, answer.text
        kind, body = answer.headers["content-type"], answer.content
        if format != "json":
            assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''water")
        if kind == "image/png":
            assert Image.open(io.BytesIO(body)).size[0] >= 192
        elif kind == "application/zip":
            archive = zipfile.ZipFile(io.BytesIO(body))
            assert len(archive.namelist()) >= 2
            assert archive.testzip() is None
        elif kind == "application/json":
            json.loads(body)
        elif kind.startswith("text/html"):
            assert body[:15].lower() == b"<!doctype html>"
        elif kind == "application/geo+json":
            assert json.loads(body)["type"] == "FeatureCollection"
        elif format == "npz":
            assert {"names", "labels", "confidence"} <= set(np.load(io.BytesIO(body)))
        else:
            assert np.load(io.BytesIO(body)).ndim == 2
    assert worker.passes == passes


def test_a_coco_file_is_whole(client) -> None:
    got = post(client, "segment", labels=LABELS, format="coco").json()
    assert got["images"] == [{"id": 1, "file_name": "water.png", "height": 192, "width": 192}]
    assert [row["id"] for row in got["annotations"]] == list(range(1, len(got["annotations"]) + 1))
    assert [row["name"] for row in got["categories"]] == LABELS.split(", ")


def test_corrections_are_in_the_map_and_in_files(client) -> None:
    before, _ = decoded(post(client, "segment", labels=LABELS).json()["map"])
    y, x = np.argwhere(before == 0)[0]
    pieces, _ = ndimage.label(before == 0)
    edits = json.dumps([[int(x), int(y), "mammoth"], [0, 0, "nothing"]])
    got = post(client, "segment", labels=LABELS, edits=edits).json()
    after, steps = decoded(got["map"])
    assert got["names"][-1] == "mammoth"
    assert np.array_equal(after == 6, pieces == pieces[y, x])
    assert (steps[after == 6] == 255).all()
    assert after[0, 0] == -1
    coco = post(client, "segment", labels=LABELS, edits=edits, format="coco").json()
    assert "mammoth" in [row["category_name"] for row in coco["annotations"]]


@pytest.mark.parametrize(
    ("route", "fields", "code", "message"),
    [
        ("segment", {}, "field", "field 'labels' is missing"),
        ("segment", {"labels": " , "}, "label", "no labels"),
        ("segment", {"labels": "cat", "nosuch": "1"}, "option", "no field 'nosuch'; there are image, labels"),
        ("classify", {"labels": "cat", "modelx": "mini"}, "option", r"no field 'modelx' \(closest: model"),
        ("segment", {"labels": ["cat", "dog"]}, "option", "'labels' came 2 times"),
        ("segment", {"labels": "cat, list.txt"}, "label", "looks like a path, but a server opens no files"),
        ("segment", {"labels": "cat", "background": "bogus.txt"}, "option", "looks like a path"),
        ("segment", {"labels": "cat, cat"}, "label", "label 'cat' is given twice"),
        ("segment", {"labels": "cat,,dog"}, "label", "empty label"),
        ("segment", {"labels": "nothing"}, "label", "what pixels without a label are called"),
        ("segment", {"labels": ",".join("abcdefghijklmnopqrstu")}, "label", "21 labels .* at most 20"),
        ("segment", {"labels": "|".join("abcdefghijklmnopqrstu")}, "label", "21 labels .* at most 20"),
        ("segment", {"labels": '["cat", 3]'}, "label", "list of strings"),
        ("segment", {"labels": '{"cat": 3}'}, "label", "list of strings"),
        ("segment", {"labels": '["cat"'}, "label", "not JSON"),
        ("segment", {"labels": "[" * 5000}, "label", "not JSON"),
        ("segment", {"labels": "cat", "model": "photo"}, "option", "model is 'photo'.*; it is one of mini"),
        ("segment", {"labels": "cat", "recipe": "proxyclip"}, "option", "one of maskclip_value, sclip"),
        ("segment", {"labels": "cat", "recipe": "os:path"}, "option", "one of maskclip_value, sclip"),
        ("segment", {"labels": "cat", "background": "1.5"}, "option", "outside 0..1"),
        ("segment", {"labels": "cat", "background": "nan"}, "option", "outside 0..1"),
        ("segment", {"labels": "cat", "background": ",".join("abcdefghijklmnopqrstu")}, "option", "21 words"),
        ("segment", {"labels": "cat", "presence": "2"}, "option", "presence is '2'"),
        ("segment", {"labels": "cat", "format": "gif"}, "option", "one of json, png"),
        ("segment", {"labels": "cat", "edits": "[[1, 2]]"}, "option", "edits must be"),
        ("segment", {"labels": "cat", "edits": '[[999, 2, "dog"]]'}, "densevl", "outside the photo of 192 x 192"),
        ("segment", {"labels": "cat", "edits": '[[1, 2, " "]]'}, "label", "empty label"),
        ("regions", {"labels": "cat", "boxes": "[[1, 2, 3]]"}, "proposal", "boxes must be"),
        ("regions", {"labels": "cat", "boxes": "[[NaN, 2, 3, 4]]"}, "proposal", "not all of these"),
        ("regions", {"labels": "cat", "boxes": "[[1e999, 2, 3, 4]]"}, "proposal", "not all of these"),
        ("regions", {"labels": "cat", "boxes": f"[[{10**400}, 2, 3, 4]]"}, "proposal", "not all of these"),
        ("regions", {"labels": "cat", "boxes": str([[1, 2, 3, 4]] * 6)}, "proposal", "6 boxes; .* at most 5"),
        ("regions", {"labels": "cat", "points": "[[500, 5]]"}, "proposal", "outside the image"),
        ("regions", {"labels": "cat", "points": "[[5, 5]]", "proposals": "grid"}, "option", "points need"),
        ("regions", {"labels": "cat", "proposals": "sam"}, "option", "one of mini-sam, grid"),
        ("regions", {"labels": "cat", "objects": "maybe"}, "field", "field 'objects' cannot be used"),
        ("anomaly", {"fpr": "0"}, "option", "fpr is '0'"),
        ("classify", {}, "field", "field 'labels' is missing"),
    ],
)
def test_what_cannot_be_is_one_line(client, route, fields, code, message) -> None:
    answer = post(client, route, **fields)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == code
    assert re.search(message, error["message"]), error["message"]
    assert "\n" not in error["message"]


CUT = png((64, 64), format="JPEG")[:400]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "."),
        (b"hello", "hello.png"),
        (CUT, "hello.png"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "hello.png"),
        (png((1200, 1000), optimize=True), "1200x1000|1,200"),
        (png((30_000, 2)), "at most 20,000 pixels per side"),
        (b"/etc/hostname", "hello.png"),
    ],
    ids=["empty", "text", "cut", "svg", "bomb", "thread", "path"],
)
def test_what_is_no_photo_is_one_line(client, image, message) -> None:
    answer = post(client, "segment", image, "hello.png", labels="cat")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "image", answer.text
    assert re.search(message, answer.json()["error"]["message"]), answer.text


def test_a_photo_of_any_kind_has_the_size_that_people_see(client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (png((40, 20), format="JPEG", exif=exif), png((20, 40), format="WEBP"), png((20, 40), format="GIF")):
        assert post(client, "segment", image, labels="cat").json()["size"] == {"height": 40, "width": 20}


def test_photos_of_few_of_16_bits_are_read_as_the_operator_says() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 4095, np.uint16)).save(buffer, "PNG")
    assert photo(buffer.getvalue(), "scan.png", Limits(bits=12)).min() == 255
    with pytest.warns(ImageWarning, match="--bits 12"):
        assert photo(buffer.getvalue(), "scan.png", Limits()).max() == 16
    assert photo(png(), "photo.png", Limits(bits=12)).max() == 200


def test_what_is_said_of_an_image_is_among_the_warnings(client) -> None:
    frames = [Image.new("RGB", (40, 30), (80 * number, 0, 0)) for number in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    for route in ("segment", "classify"):
        told = post(client, route, buffer.getvalue(), "turning.gif", labels="cat, dog").json()["warnings"]
        assert sum("3 frames" in sentence for sentence in told) == 1


def test_an_image_that_is_sent_as_text_is_told_so(client) -> None:
    answer = client.post("/v1/segment", data={"labels": "cat", "image": "data:image/png;base64,AAAA"})
    assert answer.json()["error"] == {
        "code": "field",
        "message": "field 'image' is text; send it as a file, in multipart/form-data",
    }


NAMES = ["../../etc/x.png", "a\r\nSet-Cookie: b.png", "ü" * 300, '"; x="', "C:\\me\\x.png", "..", "a\0b.png", "%00.png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_do_no_harm(client, name) -> None:
    for format in ("panoptic", "labelme", "labelstudio", "yolo", "geojson", "npz", "html", "zip"):
        answer = post(client, "segment", WATER, name, labels="cat", format=format)
        assert answer.status_code == 200, (format, answer.text)
        if answer.headers["content-type"] == "application/zip":
            inside = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
            assert not any(part in ("", "..") for one in inside for part in one.split("/"))
        else:
            assert b"densevl-" not in answer.content, "the folder it was made in"
    answer = post(client, "segment", WATER, name, labels="cat", format="coco")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    stored = answer.json()["images"][0]["file_name"]
    assert "/" not in stored
    assert "\\" not in stored


def test_regions_that_are_called_otherwise_are_so_in_files_too(client) -> None:
    asked = {"labels": LABELS, "boxes": "[[85, 92, 140, 152], [145, 60, 190, 120]]"}
    edits = json.dumps([[112, 130, "mammoth"], [167, 90, "nothing"]])
    got = post(client, "regions", edits=edits, **asked).json()
    assert [(one["name"], one["score"]) for one in got["regions"]] == [("mammoth", 1), ("nothing", 1)]
    assert got["regions"][0]["alternatives"][0] == ["mammoth", 1]
    coco = post(client, "regions", edits=edits, format="coco", **asked).json()
    assert [row["category_name"] for row in coco["annotations"]] == ["mammoth"]
    nowhere = post(client, "regions", edits='[[2, 2, "x"]]', **asked)
    assert "no region at pixel (2, 2)" in nowhere.json()["error"]["message"]


FIELDS = {
    "segment": ("labels", "model", "recipe", "background", "presence", "edits", "format"),
    "regions": ("labels", "model", "proposals", "background", "boxes", "points", "objects", "edits", "format"),
    "anomaly": ("item", "model", "fpr", "format"),
    "classify": ("labels", "model", "format"),
}


@pytest.mark.parametrize(("route", "field"), [(r, f) for r, all_of in FIELDS.items() for f in all_of])
def test_a_path_is_only_ever_a_word(client, tmp_path, monkeypatch, route, field) -> None:
    """No field opens a file of the server, in any of the ways in which the library lets its own user name one."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("secret.json", '["hidden"]'), ("secret.txt", "hidden"))[field == "item" :]:
        (tmp_path / name).write_text(content)
        path = str(tmp_path / name)
        ways = (path, name, f"@{name}", json.dumps([path]), json.dumps({"x": path}))
        for given in ways[: 1 if field == "item" else 5]:
            fields = {"labels": "cat"} | {field: given}
            if route == "regions":
                fields.setdefault("boxes", "[[5, 5, 60, 60]]")
            answer = post(client, route, png(), name="own.png", **fields)
            assert answer.status_code in (200, 422)
            assert "hidden" not in answer.text


def test_messages_hold_no_paths_of_the_server(client) -> None:
    for answer in (
        post(client, "segment", b"x", "photo.png", labels="cat"),
        client.get("/nothing"),
        client.get("/../setup.py"),
        client.get("/%2e%2e/%2e%2e/setup.py"),
        client.get("/examples/"),
        client.delete("/v1/segment"),
        client.post("/v1/segment", content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}),
        client.post("/v1/segment", content=b"{}", headers={"content-type": "application/json"}),
    ):
        assert answer.status_code in (404, 405, 400, 422)
        assert answer.json()["error"].keys() == {"code", "message"}
        assert str(EXAMPLES.parents[2]) not in answer.text
        assert "Traceback" not in answer.text


def test_what_goes_wrong_inside_is_not_told(client, served, monkeypatch) -> None:
    def broken(*given, **named):
        raise ValueError("/home/secret/weights.pt")

    monkeypatch.setattr(served[2].sites[0][0], "segment", broken)
    answer = post(client, "segment", labels="own words")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text


def test_counts_are_prometheus_text(client) -> None:
    client.get("/healthz")
    client.get("/unheard/of")
    lines = client.get("/metrics").text.splitlines()
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in lines)
    assert any(line.startswith('densevl_requests_total{route="/healthz",status="200"}') for line in lines)
    assert not any("unheard" in line for line in lines)


def test_every_answer_carries_the_policy(client) -> None:
    for answer in (client.get("/"), client.get("/nothing"), client.get("/v1/models"), post(client, "segment")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_models_are_offered_by_names_that_are_no_paths(models, monkeypatch) -> None:
    from densevl.serving import models as served

    monkeypatch.setattr(served, "load_backbone", lambda name, **options: models.backbones["mini"])
    offered = served.Models(Settings(("/srv/private/mini.onnx",), (), ("grid",)), "cpu")
    assert list(offered.backbones) == ["mini"]
    with pytest.raises(OptionError, match="two of the models are named 'mini'"):
        served.Models(Settings(("a", "b"), (), ("grid",)), "cpu")


def test_a_photo_that_comes_twice_or_words_in_the_address_are_refused(client) -> None:
    twice = client.post("/v1/segment", files=[("image", ("a.png", WATER))] * 2, data={"labels": "cat"})
    assert (twice.status_code, twice.json()["error"]["message"]) == (
        422,
        "field 'image' came 2 times; it takes one value",
    )
    answer = client.post("/v1/segment?labels=cat", files={"image": ("a.png", WATER)}, data={"labels": "cat"})
    assert answer.json()["error"]["message"] == "'labels' is in the address; send it as a form field"


def test_a_label_that_is_background_too_is_told_of(client) -> None:
    told = post(client, "segment", labels="fish, pizza", background="Fish, sea").json()["warnings"]
    assert sum("'fish' is both label and background" in text for text in told) == 1, told
    assert not any(
        "both" in text for text in post(client, "segment", labels="sky", background="voc").json()["warnings"]
    )


def test_a_get_where_a_post_is_due_says_so(client) -> None:
    answer = client.get("/v1/segment")
    assert (answer.status_code, answer.headers["allow"], answer.json()["error"]["code"]) == (405, "POST", "method")
    assert client.get("/v1/nosuch").status_code == 404
    assert "mistyped" in client.post("/v1/session/undo", data={"session": "x"}).json()["error"]["message"]
