"""`VideoSegmenter`: from a video and words to a label map for each frame, decided while it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from densevl.drawing import palette
from densevl.errors import ImageError, OptionError
from densevl.files import guard_saved, staged, target_of
from densevl.pipelines import remarks
from densevl.pipelines.segmentation.evidence import Evidence
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.pipelines.video.reading import Camera, Frame, Source, VideoFile
from densevl.pipelines.video.writing import VideoWriter
from densevl.results import SegmentationResult, to_json
from densevl.vocabulary import NOTHING, Background, LabelSet

THUMBNAIL = 16  # pixels per side of the thumbnails in which frames are compared
CUT, SUDDEN, RECENT = 30.0, 3.0, 8
"""A cut: the mean difference in grey levels, how many times it exceeds recent differences, and how many are recent."""


class VideoSegmenter:
    """Segment videos. Scores may be averaged over time.

    Examples:
        >>> segment = VideoSegmenter(Segmenter("mini"), smooth=0.5)
        >>> segment("clip.mp4", ["cat", "dog"]).save("out/clip.mp4")

    Attributes:
        segmenter: segments the frames. smooth: weight of earlier frames in the scores, 0 to below 1; averaging starts
            over at cuts. every: number of frames that share the labels of the first of them.
    """

    def __init__(self, segmenter: Segmenter, *, smooth: float = 0.0, every: int = 1) -> None:
        """Set how frames are combined.

        Raises:
            OptionError: If a value is out of range.
        """
        if not isinstance(segmenter, Segmenter):
            raise OptionError(
                f"segmenter is a {type(segmenter).__name__}; it must be a `Segmenter`, such as Segmenter('mini')"
            )
        if not isinstance(smooth, (int, float)) or not 0 <= smooth < 1:
            raise OptionError(f"smooth is {smooth}; it must be the weight of earlier frames, 0 to below 1, such as 0.5")
        if not isinstance(every, int) or every < 1:
            raise OptionError(f"every is {every!r}; it must be a whole number of frames, at least 1")
        self.segmenter, self.smooth, self.every = segmenter, smooth, every

    def __call__(
        self,
        video: str | os.PathLike[str] | int,
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        seconds: float | None = None,
    ) -> VideoResult:
        """Read the header of a video, or open a camera. The model runs when frames are requested or written.

        Args:
            video: a path, or the number of a camera. labels, background: as for `Segmenter`.
            seconds: stop a camera after this time; None waits for Ctrl-C.

        Raises:
            ImageError: If the video is unreadable, or there is no such camera.
            LabelError, OptionError: If labels or background are unusable.
        """
        label_set, policy = LabelSet.parse(labels), self.segmenter.policy(background)
        if not isinstance(video, int):
            VideoFile(video).close()
        return VideoResult(self, video, label_set, policy, seconds)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the video and the labels, ready for JSON."""
        return {**self.segmenter.facts(), "smooth": self.smooth, "every": self.every}


@dataclass
class VideoResult:
    """The labels of one video, computed frame by frame on demand.

    Attributes:
        progress: called with the share of frames that are done, 0 to 1, if their number is known.
        shares: share of pixels of each class over all frames. warnings: one sentence each. Both are set by `save`.
    """

    segment: VideoSegmenter
    video: str | os.PathLike[str] | int
    labels: LabelSet
    background: Background
    seconds: float | None = None
    progress: Callable[[float], None] = field(default=lambda share: None, repr=False)
    shares: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def fractions(self) -> dict[str, float]:
        """Return the share of pixels (0-1) of each class, and of "nothing", over all frames, after saving."""
        return self.shares

    def open(self) -> VideoFile | Camera:
        """Open the video. The caller closes it."""
        return Camera(self.video, self.seconds) if isinstance(self.video, int) else VideoFile(self.video)

    def frames(
        self, source: Source | None = None, hear: Callable[[Any], None] | None = None
    ) -> Iterator[tuple[Frame, SegmentationResult, bool]]:
        """Yield each frame with its result, and whether there is a cut. Confidence is that of averaged scores.

        Args:
            source: the open video; None opens it. hear: receives packets of sound.

        Raises:
            ImageError: If no frame can be decoded.
        """
        if source is None:
            own = self.open()
            try:
                yield from self.frames(own)
            finally:
                own.close()
            return
        segment, cuts = self.segment.segmenter, Cuts()
        rgb: np.ndarray | None = None
        looked: Evidence | None = None
        mixed: Evidence | None = None
        result: SegmentationResult | None = None
        for number, frame in enumerate(source.read(hear)):
            cut = cuts(frame.rgb)
            if result is not None and number % self.segment.every and not cut:
                yield frame, replace(result, image=frame.rgb, scores_fn=None, chances_fn=None), cut
                continue
            segments = segment.segments(frame.rgb)
            if looked is None or rgb is None or not same(rgb, frame.rgb):
                rgb, looked = frame.rgb, segment.look(frame.rgb, self.labels, self.background, segments)
            mixed = looked if cut or mixed is None else self._mixed(looked, mixed)
            result = segment.decide(mixed, frame.rgb, self.labels, self.background, segments, image=source.name)
            yield frame, result, cut

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Decide the video and write it: all files, or none. A stopped camera writes the frames so far.

        For "out/clip.mp4":

        - `clip.mp4`: the overlay, with frames at their own times, and the sound copied if MP4 can hold it;
        - `clip_labels.zip`: a label map for each frame, as `SegmentationResult.save` writes it;
        - `clip_frames.jsonl`: a line for each frame: its time in seconds, whether it is a cut, and shares;
        - `clip.json`: names, colours, shares over all frames, cuts, settings and warnings.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Returns:
            The paths written.

        Raises:
            ImageError: If no frame can be decoded.
            OutputError: If a file is the video or was not written by densevl, or the files cannot be written.
        """
        path = target_of(path)
        stem, names = path.stem, self.labels.names
        beside = [path.with_name(f"{stem}{end}") for end in ("_labels.zip", "_frames.jsonl", ".json")]
        guard_saved([path, *beside], inputs=[self.video], overwrite=overwrite)
        source, started = self.open(), time.perf_counter()
        total, count, cuts, said = np.zeros(len(names) + 1), 0, list[float](), dict[str, None]()
        size = (0, 0)
        try:
            with staged([path, *beside]) as parts, VideoWriter(parts[0], parts[1], parts[2], source, names) as writer:
                try:
                    for frame, result, cut in self.frames(source, writer.hear if writer.hears else None):
                        writer.add(count, frame, result, cut=cut)
                        size, count = result.labels.shape, count + 1
                        total += np.bincount(result.labels.ravel() + 1, minlength=len(total)) / result.labels.size
                        cuts += [float(frame.pts * source.time_base)] if cut else []
                        said |= dict.fromkeys(result.warnings)
                        self.meta = result.meta
                        if source.frames:
                            self.progress(min(1.0, count / source.frames))
                except KeyboardInterrupt:
                    if not source.live or not count:
                        raise
                if not count:
                    raise ImageError(f"{source.name} gave no frame")
                self.shares = self._shares(total / count)
                if self.shares["nothing"] < 1:  # single frames without labels need no warning
                    said = {text: None for text in said if text not in remarks.of_labels(np.full((1, 1), NOTHING))}
                if self.segment.smooth and 2 * len(cuts) >= count > 1:
                    said[
                        f"{len(cuts)} of {count} frames are cuts, where smoothing starts over: it does little here"
                    ] = None
                self.meta = {**self.meta, "seconds": round(time.perf_counter() - started, 3)}
                self.warnings = tuple(dict.fromkeys((*said, *source.notes, *writer.notes)))
                parts[3].write_bytes(to_json(self._key(size, count, cuts, source)))
                # The movie is complete when its writer is closed, and moved into place after that.
        finally:
            source.close()
        return [path, *beside]

    def _shares(self, mean: np.ndarray) -> dict[str, float]:
        found = {name: float(mean[number + 1]) for number, name in enumerate(self.labels.names)}
        found["nothing"] = found.get("nothing", 0.0) + float(mean[0])
        return found

    def _mixed(self, new: Evidence, before: Evidence) -> Evidence:
        """Average scores over time. If the size of frames changes, the new scores are used alone."""
        smooth = self.segment.smooth
        if not smooth or new.scores.shape != before.scores.shape:
            return new
        return replace(new, scores=new.scores.lerp(before.scores, smooth))

    def _key(self, size: Sequence[int], count: int, cuts: list[float], source: Source) -> dict[str, Any]:
        own = {"smooth": self.segment.smooth, "every": self.segment.every, "sound": source.sound or None}
        meta = {name: value for name, value in self.meta.items() if name != "seconds"}
        return {
            "size": {"height": size[0], "width": size[1]},
            "names": self.labels.names,
            "colours": palette(len(self.labels.names)).tolist(),
            "fractions": self.shares,
            "nothing": 255 if len(self.labels.names) <= 255 else 65535,
            "frames": count,
            "rate": float(source.rate),
            "cuts": cuts,
            "meta": {**meta, "video": own},
            "warnings": list(self.warnings),
        }


class Cuts:
    """Detect sudden changes: called with frames in order, it returns whether a new scene starts."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._recent: list[float] = []

    def __call__(self, rgb: np.ndarray) -> bool:
        """Check the next frame, uint8 (H, W, 3)."""
        step = max(1, min(rgb.shape[:2]) // (4 * THUMBNAIL))
        few = rgb[::step, ::step].astype(np.float32)
        rows, cols = (np.linspace(0, side, THUMBNAIL, endpoint=False).astype(int) for side in few.shape[:2])
        heights, widths = (np.diff([*at, side]).clip(1) for at, side in zip((rows, cols), few.shape[:2], strict=True))
        sums = np.add.reduceat(np.add.reduceat(few, rows, axis=0), cols, axis=1)
        small = sums / (heights[:, None] * widths)[..., None]
        if self._last is None or self._last.shape != small.shape:
            self._last = small
            return False
        differs = float(np.abs(small - self._last).mean())
        usual = float(np.mean(self._recent)) if self._recent else 0.0
        self._last, cut = small, differs > CUT and differs > SUDDEN * usual
        self._recent = [] if cut else [*self._recent[1 - RECENT :], differs]
        return cut


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two frames are equal, so that the scores of one can be used for the other."""
    return np.array_equal(one, other)
