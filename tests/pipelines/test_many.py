"""`many`: in order, equal to calls one by one, and one bad image does not end a run that does not want it."""

from __future__ import annotations

import io
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from conftest import PHOTOS
from densevl import AnomalyDetector, Ensemble, FeatureExtractor, FewShot, RegionClassifier, Segmenter
from densevl.errors import ImageError, LabelError, OptionError
from densevl.images import read_image, resize
from densevl.pipelines.many import many

SMALL = {"short_side": 48, "crop": 32, "stride": 16}
LABELS = ["cat", "dog | puppy", "sky"]
SIZES = [(96, 128), (96, 128), (128, 96), (96, 128), (64, 200), (96, 128)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("photos")
    sources = [read_image(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    paths = [folder / f"{number}.png" for number in range(len(SIZES))]
    for number, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        Image.fromarray(resize(sources[number % len(sources)], size)).save(path)
    return paths


@pytest.fixture(scope="module")
def bad(photos):
    path = photos[0].with_name("bad.png")
    path.write_bytes(b"no image")
    return path


@pytest.mark.parametrize("batch", [None, 1, 13, 64])
@pytest.mark.parametrize("model", ["mini", "photo", "tiny"])
def test_segmenting_many_equals_one_by_one(model, batch, photos, tiny) -> None:
    given = {"protocol": SMALL} if model == "tiny" else {"protocol": {"short_side": 96}} if model == "photo" else {}
    segment = Segmenter(tiny if model == "tiny" else model, templates="photo", background="none", **given)
    found = list(segment.many(photos, LABELS, batch=batch))
    assert len(found) == len(photos)
    for path, result in zip(photos, found, strict=True):
        alone = segment(path, LABELS)
        assert result.meta["image"] == str(path)
        scale = max(1.0, float(np.abs(alone.scores).max()))  # photo scores by logarithms, which are larger than 1
        assert np.abs(result.scores - alone.scores).max() <= 1e-6 * scale
        assert np.abs(result.confidence - alone.confidence).max() <= 1e-5
        assert (result.labels != alone.labels).mean() < 1e-3


@pytest.mark.parametrize("settings", [{"recipe": "proxyclip", "proxy": "mini-sam"}, {"views": "flip"}])
def test_what_belongs_to_its_photo_is_run_alone(settings, photos, tiny) -> None:
    segment = Segmenter(tiny, templates="photo", protocol=SMALL, **settings)
    for path, result in zip(photos, segment.many(photos, LABELS, batch=64), strict=True):
        assert np.array_equal(result.labels, segment(path, LABELS).labels)


def test_an_ensemble_of_many_equals_one_by_one(photos, tiny) -> None:
    members = [Segmenter(tiny, recipe, templates="photo", protocol=SMALL) for recipe in ("sclip", "vanilla")]
    both = Ensemble([(members[0], 1.0), (members[1], 2.0)], background="none")
    for path, result in zip(photos, both.many(photos, LABELS, batch=64), strict=True):
        alone = both(path, LABELS)
        assert np.abs(result.scores - alone.scores).max() <= 1e-6
        assert result.meta["ensemble"] == alone.meta["ensemble"]


def test_regions_of_many_equal_one_by_one(photos, tiny) -> None:
    classify = RegionClassifier(tiny, proposals="grid", templates="photo", protocol=SMALL)
    for path, result in zip(photos, classify.many(photos, LABELS), strict=True):
        assert np.array_equal(result.scores, classify(path, LABELS).scores)
        assert result.meta["image"] == str(path)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_anomalies_of_many_equal_one_by_one(batch, photos, tiny) -> None:
    detect = AnomalyDetector(tiny).fit(photos[:2])
    for path, result in zip(photos, detect.many(photos, batch=batch), strict=True):
        alone = detect(path)
        assert np.abs(result.grid - alone.grid).max() <= 1e-6
        assert result.meta["image"] == str(path)


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_few_shot_of_many_equals_one_by_one(level, photos, tiny) -> None:
    shown = np.zeros(SIZES[0], np.int64)
    shown[:, 64:] = 1
    examples = {"a": photos[:2], "b": photos[2:4]} if level == "image" else [(photos[0], shown, ["a", "b"])]
    name = FewShot(tiny, "nearest", level=level, templates="photo", protocol=SMALL).fit(examples)
    for path, result in zip(photos, name.many(photos, batch=4), strict=True):
        alone = name(path)
        if level == "image":
            assert np.abs(result.probabilities - alone.probabilities).max() <= 1e-6
        else:
            assert np.array_equal(result.labels, alone.labels)


def calls(tiny):
    settings = {"templates": "photo", "protocol": SMALL}
    segment = Segmenter(tiny, **settings)
    classify = RegionClassifier(tiny, proposals="grid", **settings)
    detect = AnomalyDetector(tiny)
    yield lambda images, **given: segment.many(images, LABELS, **given)
    yield lambda images, **given: Ensemble([(segment, 1.0)]).many(images, LABELS, **given)
    yield lambda images, **given: classify.many(images, LABELS, **given)
    yield detect.many


@pytest.mark.parametrize("which", range(4))
def test_a_bad_image_is_an_error_in_its_place(which, photos, bad, tiny) -> None:
    images, call = [*photos[:2], bad, photos[3], 3], list(calls(tiny))[which]
    found, errors = [], []
    for result in call(images, on_error=lambda image, error: errors.append((image, len(found)))):
        found.append(result.meta["image"])
    assert found == [str(photos[0]), str(photos[1]), str(photos[3])]
    assert errors == [(bad, 2), (3, 3)]
    run = call(images)
    assert [next(run).meta["image"], next(run).meta["image"]] == found[:2]
    with pytest.raises(ImageError, match=r"bad\.png"):
        next(run)


def test_mistakes_are_told_at_once(photos, tiny) -> None:
    for call in calls(tiny):
        for batch in (0, -1, 2.5, "8", True):
            with pytest.raises(OptionError, match="batch is"):
                call(photos, batch=batch)
    with pytest.raises(LabelError):
        Segmenter(tiny).many(photos, [])
    for one in ("photo.png", Path("photo.png"), np.zeros((9, 9, 3), np.uint8), None, 5):
        with pytest.raises(OptionError, match="images are one"):
            list(many(one, lambda image: image, list))


def test_images_are_taken_as_they_are_needed_and_the_thread_ends() -> None:
    taken = []

    def images():
        for number in range(1000):
            taken.append(number)
            yield number

    before = threading.active_count()
    run = many(images(), lambda image: image, lambda few: [own for _, own in few], share=lambda image: 0.5)
    assert [next(run) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) < 50
    run.close()
    assert threading.active_count() == before


def test_reading_ahead_waits_while_much_is_read_and_not_used(monkeypatch) -> None:
    monkeypatch.setattr("densevl.pipelines.many.HELD", 1000)
    read, most = [], []

    def reading(image: int) -> np.ndarray:
        read.append(image)
        return np.zeros(600, np.uint8)

    for number in many(range(40), reading, lambda few: [image for image, _ in few]):
        threading.Event().wait(0.002)  # the thread reads what it may
        most.append(len(read) - number)
    assert read == list(range(40))
    assert max(most) <= 4  # two that are held, one that is used and one that goes next


def test_windows_go_through_the_tower_in_passes_of_like_size(photos, tiny, monkeypatch) -> None:
    segment = Segmenter(tiny, templates="photo", protocol=SMALL, background="none")
    count, sizes = len(segment.prepare(photos[0]).windows), []
    run = segment.run
    monkeypatch.setattr(segment, "run", lambda parts: sizes.append(len(parts)) or run(parts))
    list(segment.many(photos[:1], LABELS, batch=count - 1))
    assert sizes == [-(-count // 2), count // 2]


def test_a_photo_in_a_pass_of_several_has_the_same_int8_scores(photos, tiny) -> None:
    segment = Segmenter("mini", background="none", precision="int8")
    for path, result in zip(photos, segment.many(photos, LABELS, batch=64), strict=True):
        assert (
            np.abs(result.scores - segment(path, LABELS).scores).max() <= 1e-6
        )  # one scale for a pass would move them a thousandfold


def arrays():
    held = np.zeros((4, 6, 3), np.uint8)
    for value in range(8):
        held[:] = value
        yield held


def tensors():
    held = torch.zeros((3, 4, 6), dtype=torch.uint8)
    for value in range(8):
        yield held.fill_(value)


def pictures():
    held = Image.new("RGB", (6, 4))
    for value in range(8):
        held.paste((value,) * 3, (0, 0, 6, 4))
        yield held


def contents(kind):
    for value in range(8):
        file = io.BytesIO()
        Image.new("RGB", (6, 4), (value,) * 3).save(file, "bmp")
        held = bytearray(file.getvalue())
        yield {bytearray: held, memoryview: memoryview(held)}[kind]
        held[-72:] = bytes(72)  # the pixels


def files(opener):
    for value in range(8):
        file = io.BytesIO()
        Image.new("RGB", (6, 4), (value,) * 3).save(file, "png")
        with opener(file) as held:
            yield held


def frames():
    file = io.BytesIO()
    still = [Image.new("RGB", (6, 4), (value,) * 3) for value in range(8)]
    still[0].save(file, "tiff", save_all=True, append_images=still[1:])
    yield from ImageSequence.Iterator(Image.open(file))


@pytest.mark.parametrize(
    "images",
    [
        *(arrays, tensors, pictures, partial(contents, bytearray), partial(contents, memoryview)),
        *(partial(files, lambda file: file), partial(files, Image.open), frames),
    ],
    ids=["array", "tensor", "pil", "bytearray", "memoryview", "file", "opened-pil", "frames"],
)
@pytest.mark.filterwarnings("ignore::densevl.images.notes.ImageWarning")
def test_an_iterator_may_use_its_memory_again(images) -> None:
    results = many(images(), lambda image: read_image(image), lambda few: [rgb for _, rgb in few])
    assert [int(rgb[0, 0, 0]) for rgb in results] == list(range(8))


def test_every_many_takes_a_buffer_that_is_used_again(tiny) -> None:
    segment, anomaly = Segmenter(tiny, protocol=SMALL), AnomalyDetector(tiny, "winclip", size=32)
    regions = RegionClassifier(tiny, proposals="grid")
    features, names = FeatureExtractor(tiny, protocol=SMALL), FewShot(tiny)

    def calls(kept):
        held, noise = np.zeros((32, 32, 3), np.uint8), np.random.default_rng(0)
        for _ in range(3):
            held[:] = noise.integers(0, 255, (32, 32, 3))
            yield held.copy() if kept else held

    for run in (
        lambda images: [result.scores for result in segment.many(images, LABELS)],
        lambda images: [result.grid for result in anomaly.many(images)],
        lambda images: [result.confidence for result in regions.many(images, LABELS)],
        lambda images: [result.features for result in features.many(images)],
        lambda images: [result.probabilities for result in names.many(images, LABELS)],
    ):
        for own, other in zip(run(calls(True)), run(calls(False)), strict=True):
            np.testing.assert_array_equal(own, other)
