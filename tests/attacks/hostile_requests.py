"""Requests that mean harm, as bytes on a socket: what they are, and what they may be answered with."""

from __future__ import annotations

import json
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.attacks.pictures import encoded, grey_png, photo, png_chunk

PICTURE = encoded(photo(24, 32), "PNG")
KIND = "multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Attack:
    """A request. Attributes: data: makes it, of about so many bytes. statuses: that are right."""

    data: Callable[[int], bytes]
    statuses: tuple[int, ...] = (400, 422)


def request(
    body: bytes, kind: str = KIND, path: str = "/v1/segment", *, method: str = "POST", headers: str = ""
) -> bytes:
    """A whole request."""
    size = "" if "Transfer-Encoding" in headers else f"Content-Length: {len(body)}\r\n"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {kind}\r\n{size}{headers}"
    )
    return head.encode() + b"\r\n" + body


def part(name: str | bytes, content: bytes, more: bytes = b"") -> bytes:
    """A part of a form."""
    name = name.encode() if isinstance(name, str) else name
    return b'--x\r\nContent-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content + b"\r\n"


def form(image: bytes | None = PICTURE, file: bytes = b"a.png", **fields: str | bytes | None) -> bytes:
    """A form with a picture, and with labels unless they are None."""
    given = {"labels": "cat", **fields}
    texts = [part(name, text.encode() if isinstance(text, str) else text) for name, text in given.items() if text]
    picture = [] if image is None else [part("image", image, b'; filename="' + file + b'"')]
    return b"".join([*picture, *texts, b"--x--\r\n"])


def _segment(**fields: str | bytes) -> bytes:
    return request(form(**fields))


def _get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n".encode()


def _raw(head: str, body: bytes = b"") -> bytes:
    return f"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{head}\r\n".encode() + body


def _png(*chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    whole = grey_png(8, 8, 8, b"\0" * 72)
    return whole[:33] + b"".join(chunks) + whole[33:]


FORMS = {
    "a thousand and more fields": Attack(lambda size: request(b"".join([part(f"f{n}", b"") for n in range(1100)]))),
    "a thousand and more files": Attack(
        lambda size: request(b"".join([part("image", b"", b'; filename="a"') for n in range(1100)]))
    ),
    "a field's name without end": Attack(lambda size: request(part(b"n" * size, b"1"))),
    "a part's header without end": Attack(lambda size: request(part("a", b"1", b"\r\nX-A: " + b"n" * size))),
    "headers of a part without end": Attack(lambda size: request(part("a", b"1", b"\r\nX: 1" * (size // 6)))),
    "a form without end": Attack(lambda size: request(part("image", b"y" * size, b'; filename="a"')[:-2])),
    "boundaries without end": Attack(lambda size: request(b"--x\r\n" * (size // 5))),
    "almost boundaries": Attack(lambda size: request(part("image", b"\r\n--" * (size // 4), b'; filename="a"'))),
    "lines before a form": Attack(lambda size: request(b"\r\n" * (size // 2) + form(None))),
    "lines after a form": Attack(lambda size: request(form(None) + b"\r\n" * (size // 2))),
    "a long boundary": Attack(
        lambda size: request(b"--" + b"x" * 20_000, f"multipart/form-data; boundary={'x' * 20_000}")
    ),
    "an empty boundary": Attack(lambda size: request(b"--", "multipart/form-data; boundary=")),
    "no boundary": Attack(lambda size: request(form(), "multipart/form-data")),
    "JSON for a form": Attack(lambda size: request(b'{"labels": "cat"}', "application/json")),
    "text for a form": Attack(lambda size: request(form(), "text/plain")),
    "a charset that is none": Attack(lambda size: request(form(None), f"{KIND}; charset=zlib")),
    "a form that is compressed": Attack(
        lambda size: request(zlib.compress(form()), headers="Content-Encoding: gzip\r\n")
    ),
    "fields of an address without end": Attack(
        lambda size: request(b"a=1&" * (size // 4), "application/x-www-form-urlencoded")
    ),
    "a long name in an address": Attack(lambda size: request(b"labels" * 20_000, "application/x-www-form-urlencoded")),
    "bytes that are no text": Attack(lambda size: request(form(None, labels=b"\xff\xfe\x00"))),
    "a name that is no text": Attack(lambda size: request(part(b"\xff\xfe", b"1") + form())),
    "a file that is called by a codec": Attack(
        lambda size: request(part("image", PICTURE, b"; filename*=zlib''%00") + form(None))
    ),
    "fields that are no fields": Attack(lambda size: _segment(path="/etc/passwd", __class__="x")),
}
WORDS = {
    "JSON that is nested deep": Attack(lambda size: _segment(labels="[" * size)),
    "a dict that is nested deep": Attack(lambda size: _segment(labels='{"a":' * (size // 5))),
    "edits that are nested deep": Attack(lambda size: _segment(edits="[" * size)),
    "boxes that are nested deep": Attack(lambda size: request(form(boxes="[" * size), path="/v1/regions")),
    "a number of 4,000 digits": Attack(lambda size: _segment(edits=f'[[1, {"1" * 4000}, "x"]]')),
    "a number of 5,000 digits": Attack(lambda size: _segment(edits=f'[[1, {"1" * 5000}, "x"]]')),
    "numbers that are none": Attack(
        lambda size: request(form(boxes="[[1e308, 1e400, NaN, -Infinity]]"), path="/v1/regions")
    ),
    "a background that is no number": Attack(lambda size: _segment(background="nan")),
    "a background that is all there is": Attack(lambda size: _segment(background="inf")),
    "one long word": Attack(lambda size: _segment(labels="a" * size)),
    "many long words": Attack(lambda size: _segment(labels=",".join(chr(97 + n) * 10_000 for n in range(10)))),
    "synonyms without end": Attack(lambda size: _segment(labels="|" * size)),
    "commas without end": Attack(lambda size: _segment(labels="," * size)),
    "labels without end": Attack(lambda size: _segment(labels=json.dumps({str(n): ["x"] for n in range(size // 20)}))),
    "words for the background without end": Attack(lambda size: _segment(background="a," * (size // 2))),
    "half a character": Attack(lambda size: _segment(labels='["\\ud800"]')),
    "a format without end": Attack(lambda size: _segment(format="png" * (size // 3))),
    "a model without end": Attack(lambda size: _segment(model="mini" * (size // 4))),
    "an item without end": Attack(lambda size: request(form(labels=None, item="z" * size), path="/v1/anomaly")),
    "a file of the server": Attack(lambda size: _segment(labels="/etc/passwd")),
    "a file of the server, by its address": Attack(lambda size: _segment(labels="file:///etc/passwd")),
    "a file of the server, as a list": Attack(lambda size: _segment(labels='["@/etc/passwd"]', background="../x.txt")),
    "a model of the client's": Attack(lambda size: _segment(model="/srv/evil.pt")),
    "a recipe of the client's": Attack(lambda size: _segment(recipe="os:system")),
    "a format of the client's": Attack(lambda size: _segment(format="../../x")),
    "a session of somebody": Attack(
        lambda size: request(form(None, labels=None, session="../x", photo="0"), path="/v1/session/labels")
    ),
}
PICTURES = {
    "a picture of 900 megapixels": Attack(lambda size: _segment_of(grey_png(30_000, 30_000, 1, b"\0" * size)), (422,)),
    "a picture of a side": Attack(lambda size: _segment_of(grey_png(30_000, 2, 8, b"\0" * 60_002)), (422,)),
    "a text in a picture that is a bomb": Attack(
        lambda size: _segment_of(_png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10 * size)))), (200, 422)
    ),
    "a profile in a picture that is a bomb": Attack(
        lambda size: _segment_of(_png(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 10 * size)))), (200, 422)
    ),
    "a picture that has no end": Attack(lambda size: _segment_of(PICTURE[:-40]), (422,)),
    "a script for a picture": Attack(lambda size: _segment_of(b"<svg onload='alert(1)'>" * 100), (422,)),
    "a place for a picture": Attack(lambda size: _segment_of(b"file:///etc/passwd"), (422,)),
    "a picture that is called by a place": Attack(
        lambda size: request(form(file=b"../../../../etc/passwd", format="coco")), (200,)
    ),
    "a picture that is called by a header": Attack(
        lambda size: request(form(file=b"a%0d%0aSet-Cookie: b.png", format="png")), (200,)
    ),
}
PATHS = {
    f"the address {path[:40]}": Attack(lambda size, path=path: _get(path), (404,))
    for path in (
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/%2fetc%2fpasswd", "/..%5c..%5cetc", "/%00",
        "/examples/%00.png", "/%ff%fe", "/file:///etc/passwd", "/http://evil.example/", "/" + "a" * 5000,
        "/" + "../" * 3000 + "etc/passwd", "/v1/segment/../../etc/passwd", "/page.js/../../app.py", "/.git/config",
    )
}  # fmt: skip
HTTP = {
    "a size below nothing": Attack(lambda size: _raw("Content-Length: -5\r\n"), (400,)),
    "two sizes": Attack(lambda size: _raw("Content-Length: 5\r\nContent-Length: 6\r\n", b"x" * 6), (400,)),
    "a size of 26 digits": Attack(lambda size: _raw(f"Content-Length: {'9' * 26}\r\n", b"x"), (400, 413)),
    "a size and chunks": Attack(lambda size: _raw("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    "a chunk of any size": Attack(lambda size: _raw("Transfer-Encoding: chunked\r\n", b"F" * 30 + b"\r\n"), (400,)),
    "chunks of a byte": Attack(lambda size: _raw("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 5000), (400,)),
    "chunks with long extensions": Attack(
        lambda size: _raw("Transfer-Encoding: chunked\r\n", b"1;" + b"a" * 100_000 + b"\r\nx\r\n0\r\n\r\n")
    ),
    "an encoding that is none": Attack(lambda size: _raw("Transfer-Encoding: gzip, chunked\r\n"), (400, 501)),
    "a header without end": Attack(lambda size: _get("/", f"X: {'a' * 200_000}\r\n"), (400, 431)),
    "no host": Attack(lambda size: b"GET / HTTP/1.1\r\n\r\n", (400,)),
    "two hosts": Attack(lambda size: _get("/", "Host: evil.example\r\n"), (400,)),
    "another host": Attack(lambda size: _get("/").replace(b"127.0.0.1", b"evil.example"), (403,)),
    "a host that is none": Attack(lambda size: _get("/").replace(b"127.0.0.1", b"[::1"), (403,)),
    "a page elsewhere": Attack(lambda size: _raw("Origin: https://evil.example\r\nContent-Length: 0\r\n"), (403,)),
    "an origin that is none": Attack(lambda size: _raw("Origin: http://[\r\nContent-Length: 0\r\n"), (403,)),
    "another protocol": Attack(lambda size: b"\x16\x03\x01\x02\x00\x01" + b"\0" * 500, (400,)),
    "no protocol": Attack(lambda size: b"\0" * 70_000, (400,)),
    "a tunnel": Attack(lambda size: _get("/").replace(b"GET /", b"CONNECT evil.example:443"), (400, 404, 405)),
    "ranges without end": Attack(
        lambda size: _get("/page.js", f"Range: bytes={'0-,' * 3000}0-\r\n"), (200, 206, 400, 416)
    ),
}


def _segment_of(image: bytes) -> bytes:
    return request(form(image))


ATTACKS = {**FORMS, **WORDS, **PICTURES, **PATHS, **HTTP}


def connected(address: str, seconds: float = 60) -> socket.socket:
    """A connection to a server."""
    parts = urlsplit(address)
    return socket.create_connection((str(parts.hostname), parts.port or 80), seconds)


def exchange(address: str, data: bytes, *, piece: int = 2**16, pause: float = 0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes and read until the connection ends: status, headers and body; 0 where nothing came.

    Args:
        piece: bytes that are sent at once. pause: seconds between.
    """
    got = b""
    with connected(address) as own:
        try:
            for start in range(0, len(data), piece):
                own.sendall(data[start : start + piece])
                if pause:
                    time.sleep(pause)
        except OSError:
            pass  # the answer may be there all the same
        try:
            while more := own.recv(2**16):
                got += more
        except OSError:
            pass
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]) if got else 0, headers, body


def told(attack: Attack, answer: tuple[int, dict[str, str], bytes]) -> str:
    """What is wrong with the answer to an attack; "" if nothing."""
    status, headers, body = answer
    if status not in attack.statuses:
        return f"{status} {body[:200]!r}"
    text = body.decode(errors="replace")
    if status != 200 and headers.get("content-type", "").startswith("application/json"):
        error = json.loads(text)["error"]
        if "\n" in error["message"] or len(error["message"]) > 600:
            return f"no line: {text[:700]}"
    wrong = [sign for sign in ("Traceback", "root:", "site-packages", "/home/", "/tmp/") if sign in text]
    return f"it tells {wrong}" if wrong or "set-cookie" in headers else ""
