"""Videos frame by frame: times, sound, turned and odd frames, cuts, averages over time, and what is broken."""

from __future__ import annotations

import io
import itertools
import json
import struct
import sys
import time
import zipfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from densevl import Segmenter
from densevl.cli import app
from densevl.errors import ImageError, OptionError, OutputError
from densevl.images import read_image, read_labels, resize
from densevl.pipelines.video.reading import Camera, VideoFile, find_videos
from densevl.pipelines.video.result import Cuts, VideoSegmenter

av = pytest.importorskip("av", reason="needs the extra video")

DEMO = Path(__file__).parents[2] / "demo"
LABELS = "dog, elephant, penguin"


def scene(name: str, height: int = 48, width: int = 64) -> np.ndarray:
    return resize(read_image(DEMO / "scenes" / f"{name}.png"), (height, width))


def movie(path: Path, frames: list[np.ndarray], times: list[int] | None = None, sound: str = "", **how: Any) -> Path:
    """Write frames at times in thousandths of a second, every 40 of them if none are given."""
    codec = how.get("codec", "libx264")
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options={"crf": "1"} if codec == "libx264" else {})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = how.get("pixels", "yuv444p")
        video.time_base = video.codec_context.time_base = Fraction(1, 25 if codec == "mpeg4" else 1000)
        heard = out.add_stream(sound, rate=16000) if sound else None
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = number if codec == "mpeg4" else times[number] if times else 40 * number
            frame.time_base = video.time_base
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if heard is not None:
            noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 16000)).astype(np.float32)
            planes = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            planes.sample_rate = 16000
            layout = heard.codec_context.format.name
            for part in av.AudioResampler(layout, "mono", 16000, 1024).resample(planes):
                out.mux(heard.encode(part))
            out.mux(heard.encode())
    return path


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """A copy whose display matrix is another, as phones write it."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 16
    unit = 1 << 16
    values = [matrix[0] * unit, matrix[1] * unit, 0, matrix[2] * unit, matrix[3] * unit, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *values)
    other = path.with_name(f"turned-{path.name}")
    other.write_bytes(data)
    return other


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [frame.time for frame in file.decode(video=0)]


@pytest.fixture(scope="module")
def segment() -> VideoSegmenter:
    return VideoSegmenter(Segmenter("mini"))


@pytest.fixture
def clip(tmp_path) -> Path:
    return movie(tmp_path / "clip.mp4", [scene("wood")] * 3 + [scene("snow")] * 3)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_files_are_written_and_say_the_same(segment, clip, tmp_path) -> None:
    written = segment(clip, LABELS).save(tmp_path / "out" / "clip.mp4")
    assert sorted(path.name for path in written) == [*("clip.json", "clip.mp4", "clip_frames.jsonl", "clip_labels.zip")]
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    expected = [segment.segmenter(frame.rgb, LABELS) for frame in VideoFile(clip).read()]
    with zipfile.ZipFile(tmp_path / "out" / "clip_labels.zip") as archive:
        maps = [read_labels(archive.read(name)) for name in sorted(archive.namelist())]
    assert len(maps) == len(expected) == 6
    for labels, result in zip(maps, expected, strict=True):
        assert np.array_equal(labels, result.labels.astype(np.uint8))
    lines = rows(tmp_path / "out" / "clip_frames.jsonl")
    assert [line["time"] for line in lines] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])
    key = json.loads((tmp_path / "out" / "clip.json").read_text())
    mean = np.mean([list(result.fractions().values()) for result in expected], axis=0)
    assert list(key["fractions"].values()) == pytest.approx(mean)
    assert (key["frames"], key["size"]) == (6, {"height": 48, "width": 64})


def test_frames_keep_their_times_where_the_rate_varies(segment, tmp_path) -> None:
    times = [0, 33, 70, 500, 510, 1700]
    clip = movie(tmp_path / "a.mkv", [scene("wood")] * 6, times)
    segment(clip, LABELS).save(tmp_path / "o.mp4")
    assert times_of(tmp_path / "o.mp4") == pytest.approx([time / 1000 for time in times], abs=1e-3)


@pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_frames_of_a_phone_are_turned_upright(matrix, quarters, segment, tmp_path) -> None:
    clip = movie(tmp_path / "a.mp4", [scene("wood")])
    (lying,) = VideoFile(clip).read()
    video = VideoFile(turned(clip, matrix))
    (upright,) = video.read()
    assert np.array_equal(upright.rgb, np.rot90(lying.rgb, quarters))


MIRRORED = {
    "left and right": ((-1, 0, 0, 1), lambda rgb: np.fliplr(rgb)),
    "top and bottom": ((1, 0, 0, -1), lambda rgb: np.flipud(rgb)),
    "a selfie held upright": ((0, 1, 1, 0), lambda rgb: np.fliplr(np.rot90(rgb, -1))),
    "a selfie held the other way": ((0, -1, -1, 0), lambda rgb: np.fliplr(np.rot90(rgb, 1))),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_mirrored_videos_are_shown_as_players_show_them(name, tmp_path) -> None:
    matrix, shown = MIRRORED[name]
    clip = movie(tmp_path / "a.mp4", [scene("wood")])
    (lying,) = VideoFile(clip).read()
    (upright,) = VideoFile(turned(clip, matrix)).read()
    assert np.array_equal(upright.rgb, shown(lying.rgb))


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 1), (2, 300)])
def test_odd_sizes_get_a_playable_overlay(height, width, segment, tmp_path) -> None:
    clip = movie(tmp_path / "a.mp4", [scene("wood", height, width)] * 2)
    segment(clip, LABELS).save(tmp_path / "o.mp4")
    assert len(times_of(tmp_path / "o.mp4")) == 2
    with zipfile.ZipFile(tmp_path / "o_labels.zip") as archive:
        assert Image.open(io.BytesIO(archive.read("000000.png"))).size == (width, height)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_is_copied(name, segment, tmp_path) -> None:
    clip = movie(tmp_path / name, [scene("wood")] * 5, sound="aac")
    segment(clip, LABELS).save(tmp_path / "o.mp4")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as file:
            return [bytes(packet) for packet in file.demux(audio=0) if packet.size]

    assert packets(tmp_path / "o.mp4") == packets(clip)


def test_sound_that_mp4_cannot_hold_is_told_of(segment, tmp_path) -> None:
    clip = movie(tmp_path / "a.mkv", [scene("wood")] * 2, sound="pcm_s16le")
    result = segment(clip, LABELS)
    result.save(tmp_path / "o.mp4")
    assert any("pcm_s16le" in text for text in result.warnings)


def test_a_cut_is_where_another_scene_begins_and_not_in_a_fast_pan() -> None:
    photos = [resize(read_image(path), (120, 160)) for path in sorted((DEMO / "images").glob("*.jpg"))[:3]]
    cuts = Cuts()
    assert [cuts(frame) for frame in [photos[0]] * 4 + [photos[1]] * 4 + [photos[2]]] == [
        *[False] * 4,
        *(True, False, False, False),
        True,
    ]
    wide = resize(read_image(DEMO / "images" / "astronaut.jpg"), (120, 320))
    cuts = Cuts()
    assert not any(cuts(wide[:, step : step + 160]) for step in range(0, 160, 8))


def test_scores_are_averaged_and_begin_anew_at_a_cut(clip) -> None:
    segmenter = Segmenter("mini", background="none")
    frames = [frame.rgb for frame in VideoFile(clip).read()]
    noisy = [frame ^ np.random.default_rng(n).integers(0, 32, frame.shape, np.uint8) for n, frame in enumerate(frames)]
    plain = [segmenter(frame, LABELS) for frame in noisy]

    class Given(VideoFile):
        def read(self, hear: Any = None) -> Any:
            for frame, rgb in zip(super().read(hear), noisy, strict=True):
                yield SimpleNamespace(rgb=rgb, pts=frame.pts)

    result = VideoSegmenter(segmenter, smooth=0.25)(clip, LABELS)
    found = list(result.frames(Given(clip)))
    assert [cut for *_, cut in found] == [False, False, False, True, False, False]
    scores: Any = None
    for number, (_, smoothed, cut) in enumerate(found):
        scores = plain[number].scores if cut or scores is None else 0.75 * plain[number].scores + 0.25 * scores
        np.testing.assert_allclose(smoothed.scores, scores, atol=1e-5)


def test_frames_between_keep_the_labels(clip) -> None:
    looks: list[int] = []
    segmenter = Segmenter("mini")
    look = segmenter.look
    segmenter.look = lambda *given: looks.append(1) or look(*given)  # type: ignore[method-assign]
    results = [result for _, result, _ in VideoSegmenter(segmenter, every=2)(clip, LABELS).frames()]
    assert len(looks) < 6
    assert np.array_equal(results[0].labels, results[1].labels)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_cut_copy_gives_what_is_there_or_one_line(ending, segment, tmp_path) -> None:
    rng = np.random.default_rng(0)
    codec = {"codec": "mpeg4", "pixels": "yuv420p"} if ending == "avi" else {}
    clip = movie(tmp_path / f"a.{ending}", [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(12)], **codec)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    if ending == "mp4":  # its index stands at the end
        with pytest.raises(ImageError, match="damaged"):
            segment(clip, LABELS)
        return
    result = segment(clip, LABELS)
    result.save(tmp_path / "o.mp4")
    assert 0 < len(rows(tmp_path / "o_frames.jsonl")) < 12


@pytest.mark.parametrize("name", ["text", "empty", "sound", "playlist", "absent", "folder", "address", "picture"])
def test_what_is_no_video_is_one_line(name, segment, tmp_path) -> None:
    path: Any = tmp_path / "x.mp4"
    if name == "text":
        path.write_text("no video")
    elif name == "picture":
        Image.fromarray(scene("wood")).save(path, format="png")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "folder":
        path.mkdir()
    elif name == "sound":
        with av.open(str(path), "w") as out:
            heard = out.add_stream("aac", rate=16000)
            planes = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            planes.sample_rate = 16000
            out.mux([*heard.encode(planes), *heard.encode()])
    elif name == "playlist":
        movie(tmp_path / "secret.mp4", [scene("wood")])
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    elif name == "address":
        path = "https://example.org/x.mp4"
    with pytest.raises(ImageError) as error:
        segment(path, LABELS)
    assert "\n" not in str(error.value)


def test_ctrl_c_leaves_no_file(segment, clip, tmp_path) -> None:
    result = segment(clip, LABELS)

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    result.progress = stop
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out" / "clip.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_file(segment, clip, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OutputError, match="No space left"):
        segment(clip, LABELS).save(tmp_path / "out" / "clip.mp4")
    assert list((tmp_path / "out").iterdir()) == []


class _FakeCamera:
    """What `cv2.VideoCapture` is: blue, green, red; it ends after some frames."""

    def __init__(self, number: int) -> None:
        self.left = 200 if number == 0 else 0

    def isOpened(self) -> bool:
        return self.left > 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return self.left > 0, scene("wood")[..., ::-1] if self.left > 0 else None

    def release(self) -> None:
        pass


@pytest.fixture
def camera(monkeypatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    monkeypatch.setattr(cv2, "VideoCapture", _FakeCamera)


def test_a_camera_gives_rgb_until_it_ends(camera, segment) -> None:
    frames = list(Camera(0).read())
    assert np.array_equal(frames[0].rgb, scene("wood"))
    assert all(late.pts > early.pts for early, late in itertools.pairwise(frames))
    with pytest.raises(ImageError, match="no camera 3"):
        Camera(3)


def test_ctrl_c_at_a_camera_leaves_a_playable_video(camera, segment, tmp_path, monkeypatch) -> None:
    look, looks = segment.segmenter.look, list[int]()

    def stopped(*given: Any) -> Any:
        if len(looks) == 2:
            raise KeyboardInterrupt
        looks.append(1)
        return look(*given)

    monkeypatch.setattr(segment.segmenter, "look", stopped)
    monkeypatch.setattr("densevl.pipelines.video.result.same", lambda *_: False)
    segment(0, LABELS).save(tmp_path / "c.mp4")
    assert len(times_of(tmp_path / "c.mp4")) == 2


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["video", *map(str, arguments), "--labels", LABELS, "--model", "mini"])


def test_the_command_does_a_folder_and_nothing_twice(clip, tmp_path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "below" / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "in" / "bad.mov").write_text("no video")
    (tmp_path / "in" / "notes.txt").write_text("no video")
    done = run(tmp_path / "in", "--out", tmp_path / "o")
    assert done.exit_code == 3, done.output
    assert {path.name for path in (tmp_path / "o").glob("a*")} == {
        *("a.json", "a.mp4", "a_frames.jsonl", "a_labels.zip")
    }
    before = (tmp_path / "o" / "a.mp4").stat().st_mtime_ns
    assert "1 of 2 images is done already" in run(tmp_path / "in", "--out", tmp_path / "o").stderr
    assert (tmp_path / "o" / "a.mp4").stat().st_mtime_ns == before


def test_the_command_takes_a_camera(camera, tmp_path) -> None:
    done = run("0", "--seconds", "0.2", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert len(times_of(tmp_path / "o" / "camera-0.mp4")) > 0


def test_a_video_is_not_written_over_itself(clip) -> None:
    done = run(clip, "--out", clip.parent)
    assert done.exit_code == 4
    assert "one of the inputs" in done.stderr


@pytest.mark.parametrize("given", [{"smooth": 1.0}, {"smooth": -0.1}, {"smooth": float("nan")}, {"every": 0}])
def test_settings_out_of_range_are_refused(given, segment) -> None:
    with pytest.raises(OptionError):
        VideoSegmenter(segment.segmenter, **given)


def test_what_segments_is_a_segmenter() -> None:
    with pytest.raises(OptionError, match=r"segmenter is a str; it must be a `Segmenter`"):
        VideoSegmenter("mini")


def test_hidden_files_and_results_are_no_videos_of_a_folder(tmp_path) -> None:
    for name in ("b.MP4", "a/c.mov", "._b.mp4", ".trash/x.mp4", "out/densevl.json", "out/b.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [Path(path).name for path in find_videos([str(tmp_path)])] == ["b.MP4", "c.mov"]


def test_a_folder_without_videos_says_what_they_are(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"\.mp4"):
        find_videos([str(tmp_path)])


def test_without_the_extra_the_line_names_it(clip, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    done = run(clip)
    assert done.exit_code == 2
    assert 'pip install "densevl[video]"' in done.stderr


def test_smoothing_that_does_nothing_is_told_of_and_the_time_is_that_of_all_frames(tmp_path) -> None:
    smoothed = VideoSegmenter(Segmenter("mini"), smooth=0.5)
    jumping = movie(tmp_path / "jumping.mp4", [scene("wood"), scene("snow")] * 3)
    steady = movie(tmp_path / "steady.mp4", [scene("wood")] * 6)
    told = {}
    for path in (jumping, steady):
        result = smoothed(path, LABELS)
        started = time.perf_counter()
        result.save(tmp_path / "out" / path.name)
        assert 0.5 * (time.perf_counter() - started) <= result.meta["seconds"]
        told[path.stem] = [text for text in result.warnings if "smoothing starts over" in text]
    assert told["jumping"] == ["5 of 6 frames are cuts, where smoothing starts over: it does little here"]
    assert told["steady"] == []
