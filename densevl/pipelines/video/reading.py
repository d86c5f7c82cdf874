"""Read videos as upright RGB frames, one at a time: files with PyAV (FFmpeg), cameras with OpenCV."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from densevl.errors import ImageError, MissingExtraError
from densevl.files import RUN_FILE, shown
from densevl.images import UInt8Array, kind_of
from densevl.images.addresses import is_address
from densevl.images.decoding import check_size
from densevl.images.opening import reader

ENDINGS: Final = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv")
)
FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,m4v,h264,hevc,ivf"
"""FFmpeg formats that contain the video themselves, and refer to no other files or addresses."""
ATTACHED_PICTURE: Final = 1024  # the cover of a music file
HDR: Final = (16, 18)  # transfer curves, PQ and HLG


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame. Attributes: rgb: uint8 (H, W, 3), upright; pts: presentation time, in units of its video's time_base."""

    rgb: UInt8Array
    pts: int


class Source(Protocol):
    """A source of frames.

    Attributes:
        name: for messages. rate: approximate frames per second. time_base: seconds per pts unit. frames: number of
            frames, 0 if unknown. live: whether frames arrive in real time until it is stopped. sound: the audio codec,
            "" for none. notes: what a user should know, one sentence each; complete once all frames are read.
    """

    name: str
    rate: Fraction
    time_base: Fraction
    frames: int
    live: bool
    sound: str
    notes: list[str]

    def read(self, hear: Callable[[Any], None] | None = None) -> Iterator[Frame]:
        """Yield the frames in order. `hear`: receives packets of sound."""

    def template(self) -> Any:
        """Return the audio stream."""


class VideoFile:
    """A video file; see `Source`.

    Raises:
        ImageError: If it is missing, damaged, not a video, or of an unsupported format.
        MissingExtraError: If PyAV is not installed.
    """

    live = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._av = _av()
        self.name, self.notes = os.fspath(path), list[str]()
        if is_address(self.name):
            raise ImageError(f"{shown(self.name)} is an address, but videos must be local: copy it first")
        with reader(self.name, None) as (content, _):  # explains what is wrong with a path
            kind = kind_of(start := content.read(512))
        if not start:
            raise ImageError(f"{shown(self.name)} is empty, 0 bytes; copy or record it again")
        if kind.startswith("a picture") and "GIF" not in kind:
            raise ImageError(f"{shown(self.name)} is {kind}, not a video; use `densevl segment` for pictures")
        with self._told("is not a readable video (MP4, MOV, MKV, WebM, AVI, MPEG, ...), or is damaged"):
            self._file = open(self.name.removeprefix("file://"), "rb")  # noqa: SIM115  closed by `close`
            self._container = self._av.open(self._file, options={"format_whitelist": FORMATS})
        videos = [s for s in self._container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
        if not videos:
            raise ImageError(f"{shown(self.name)} contains no video, only sound or data")
        self._video = videos[0]
        if not self._video.width or not self._video.height:
            raise ImageError(f"{shown(self.name)} does not give the size of its frames; it is damaged")
        self._video.thread_type = "AUTO"
        self._sound = next(iter(self._container.streams.audio), None)
        self.sound = self._sound.codec_context.codec.canonical_name if self._sound is not None else ""
        self.rate = Fraction(self._video.average_rate or self._video.guessed_rate or 25)
        self.time_base = Fraction(self._video.time_base or 1 / self.rate)
        self.frames = int(self._video.frames)
        check_size(shown(self.name), (self._video.width, self._video.height))
        if self._video.codec_context.color_trc in HDR:
            self.notes.append("the video has HDR colours, which look dull here: convert it to SDR for better labels")

    def template(self) -> Any:
        """See `Source`."""
        return self._sound

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        self._file.close()

    def read(self, hear: Callable[[Any], None] | None = None) -> Iterator[Frame]:
        """See `Source`. Damaged parts are skipped, with a note.

        Raises:
            ImageError: If no frame can be decoded.
        """
        size: tuple[int, int] | None = None
        last: int | None = None
        count = damaged = 0
        step = max(1, round(1 / (self.rate * self.time_base)))
        for frame in self._decoded(hear):
            if frame is None:
                damaged += 1
                continue
            damaged += bool(frame.is_corrupt)
            size = size or (frame.width, frame.height)
            rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            turned = np.ascontiguousarray(_upright(rgb, _matrix(frame)))
            pts = frame.pts if frame.pts is not None else 0 if last is None else last + step
            last = pts if last is None else max(pts, last + 1)  # muxers refuse equal times
            count += 1
            yield Frame(turned, last)
        if not count:
            raise ImageError(f"no frame of {shown(self.name)} can be decoded; it is damaged or truncated")
        if damaged:
            self.notes.append(f"{damaged} parts of the video are damaged, and their frames are missing or wrong")
        if count < self.frames - 1:
            self.notes.append(f"the video claims {self.frames} frames but has {count}: it may be truncated")

    def _decoded(self, hear: Callable[[Any], None] | None) -> Iterator[Any]:
        """Yield frames, and None for each damaged part."""
        streams = [self._video] if hear is None or self._sound is None else [self._video, self._sound]
        packets = self._container.demux(*streams)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.FFmpegError, OSError):  # the file is truncated here
                yield None
                packet = None
            if packet is None:
                return
            if packet.stream is self._sound and hear is not None:
                hear(packet)
                continue
            try:
                yield from packet.decode()
            except self._av.FFmpegError:
                yield None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{shown(self.name)} {what}: {getattr(error, 'strerror', None) or error}") from error


class Camera:
    """A camera of this machine, by number. The newest frame is used, and earlier ones are dropped.

    Raises:
        ImageError: If there is no such camera.
        MissingExtraError: If OpenCV is not installed.
    """

    live, frames, sound = True, 0, ""

    def __init__(self, number: int, seconds: float | None = None) -> None:
        _av()
        try:
            import cv2
        except ImportError as error:
            raise MissingExtraError("opencv-python", "video", "a camera") from error
        self.name, self.notes = f"camera {number}", list[str]()
        self.rate, self.time_base = Fraction(25), Fraction(1, 1000)
        self._seconds, self._waiting = seconds, threading.Condition()
        self._newest: Any = None
        self._camera = cv2.VideoCapture(number)
        self._open = bool(self._camera.isOpened())
        if not self._open:
            raise ImageError(f"there is no camera {number}, or it is in use; camera numbers start at 0")

    def template(self) -> Any:
        """See `Source`."""
        return None

    def read(self, hear: Callable[[Any], None] | None = None) -> Iterator[Frame]:
        """See `Source`."""
        taking = threading.Thread(target=self._take, daemon=True)
        taking.start()
        started, last = time.monotonic(), -1
        try:
            while self._seconds is None or time.monotonic() - started < self._seconds:
                with self._waiting:
                    self._waiting.wait_for(lambda: self._newest is not None or not self._open, timeout=10)
                    taken, self._newest = self._newest, None
                if taken is None:
                    self.notes.append("the camera gave no more frames")
                    return
                last = max(last + 1, round((time.monotonic() - started) * 1000))
                yield Frame(np.ascontiguousarray(taken[..., ::-1]), last)
        finally:
            self._open = False
            taking.join(timeout=5)

    def close(self) -> None:
        """Release the camera."""
        self._open = False
        self._camera.release()

    def _take(self) -> None:
        while self._open:
            there, bgr = self._camera.read()
            with self._waiting:
                self._open &= bool(there)
                self._newest = bgr if there else self._newest
                self._waiting.notify()


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return where columns and rows of a frame are displayed: (a, b) and (c, d) of its display matrix."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32, count=9).tolist()
            return a, b, c, d
    return 1, 0, 0, 1


def _upright(rgb: UInt8Array, matrix: tuple[int, int, int, int]) -> UInt8Array:
    """Return a frame as displayed: turned by quarters, mirrored, or both."""
    a, b, c, d = matrix
    if abs(b) > abs(a):  # columns become rows
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def find_videos(sources: Iterable[str]) -> list[str]:
    """Return files as given, and the videos in folders and their subfolders.

    Raises:
        ImageError: If a folder has no videos.
    """
    found: list[str] = []
    for source in sources:
        if not os.path.isdir(source):
            found.append(source)
            continue
        inside = list[str]()
        for folder, below, files in os.walk(source):
            # Hidden folders hold what macOS keeps next to files; folders of results are not the user's videos.
            below[:] = sorted(name for name in below if not name.startswith("."))
            if RUN_FILE in files:
                below[:] = []
                continue
            names = (name for name in sorted(files) if not name.startswith("."))
            inside += [os.path.join(folder, name) for name in names if Path(name).suffix.lower() in ENDINGS]
        if not inside:
            raise ImageError(f"no videos in {shown(source)}: files must end in {' '.join(sorted(ENDINGS))}")
        found += inside
    return found


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video", "reading videos") from error
    av.logging.set_level(None)  # problems are reported once, by an error or a note
    return av
