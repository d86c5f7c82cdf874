"""Write a video's labels as frames come: an overlay video, an archive of label maps, and one line per frame."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from densevl.drawing import Captions, draw_key, draw_overlay
from densevl.errors import OutputError
from densevl.files import json_text, shown
from densevl.pipelines.video.reading import Frame, Source
from densevl.results import SegmentationResult

QUALITY = {"crf": "20", "preset": "veryfast"}
"""Settings of x264."""
SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")
"""Codecs that players support in MP4."""


class VideoWriter:
    """Three open files. Use it as a context manager.

    Attributes:
        notes: what a user should know, one sentence each.
    """

    def __init__(self, movie: Path, labels: Path, lines: Path, source: Source, names: tuple[str, ...]) -> None:
        """Open the files.

        Args:
            movie: the overlay, as MP4 (H.264), with the sound copied if MP4 can hold it. labels: a zip of label maps,
                one palette PNG per frame. lines: JSON lines, one per frame. source: gives times and sound.
        """
        import av

        self.notes: list[str] = []
        self._av, self._names, self._movie_path = av, names, movie
        self._rate, self._time_base = source.rate, source.time_base
        self._video: Any = None
        self._key: np.ndarray | None = None
        self._captions = Captions()
        with self._refusing():
            self._movie = av.open(str(movie), "w", format="mp4", options={"movflags": "faststart"})
            self._labels = zipfile.ZipFile(labels, "w")
            self._lines = open(lines, "w", encoding="utf-8")  # noqa: SIM115  closed on leaving
        template = source.template()
        self._sound: Any = None
        if template is not None:
            if source.sound in SOUND:
                self._sound = self._movie.add_stream_from_template(template)
            else:
                self.notes.append(f"the sound ({source.sound}) is left out of the overlay: MP4 cannot hold it")
        self._waiting: list[
            Any
        ] = []  # sound before the first frame: all streams must be known before anything is written

    @property
    def hears(self) -> bool:
        """Whether sound is written."""
        return self._sound is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._refusing():
            if kind is None and self._video is not None:
                for packet in self._video.encode():
                    self._movie.mux(packet)
            self._labels.close()
            self._lines.close()
            if self._video is not None or kind is None:
                self._movie.close()

    def hear(self, packet: Any) -> None:
        """Write a packet of sound."""
        if packet.dts is None:
            return
        packet.stream = self._sound
        if self._video is None:
            self._waiting.append(packet)
            return
        with self._refusing():
            self._movie.mux(packet)

    def add(self, number: int, frame: Frame, result: SegmentationResult, **facts: Any) -> None:
        """Write a frame. `facts`: what its line contains besides time and shares."""
        shares = {name: round(share, 6) for name, share in result.fractions().items() if share}
        line = {"frame": number, "time": float(frame.pts * self._time_base), **facts, "fractions": shares}
        with self._refusing():
            self._labels.writestr(zipfile.ZipInfo(f"{number:06d}.png"), result.label_png())
            self._lines.write(json_text(line, ensure_ascii=False) + "\n")
            picture = self._av.VideoFrame.from_ndarray(self._drawn(frame.rgb, result), format="rgb24")
            if self._video is None:
                self._begin(picture.width, picture.height)
            picture.pts, picture.time_base = frame.pts, self._time_base
            for packet in self._video.encode(picture):
                self._movie.mux(packet)

    def _begin(self, width: int, height: int) -> None:
        self._video = self._movie.add_stream("libx264", rate=_rounded(self._rate), options=QUALITY)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.time_base = self._video.codec_context.time_base = self._time_base
        for packet in self._waiting:
            self._movie.mux(packet)
        self._waiting = []

    def _drawn(self, rgb: np.ndarray, result: SegmentationResult) -> np.ndarray:
        """Draw the overlay with the same key below every frame, and with even sides, as yuv420p requires."""
        painted = draw_overlay(rgb, result.labels, self._names, legend=False, captions=self._captions)
        if self._key is None:
            self._key = draw_key(self._names, painted.shape[0], painted.shape[1])
        width = max(painted.shape[1], self._key.shape[1])
        rows = [
            np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255)
            for part in (painted, self._key)
        ]
        sheet = np.concatenate(rows)
        return np.pad(sheet, ((0, sheet.shape[0] % 2), (0, sheet.shape[1] % 2), (0, 0)), mode="edge")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors of the disk into `OutputError`."""
        try:
            yield
        except (self._av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"cannot write {shown(self._movie_path)}: {reason}") from error


def _rounded(rate: Fraction) -> Fraction:
    """Return a rate that x264 accepts. The times of frames do not depend on it."""
    return rate.limit_denominator(1001) or Fraction(25)
