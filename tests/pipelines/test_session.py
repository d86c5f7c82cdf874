"""`LabelSession`: corrections that stand, teach, are taken back, and come back from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

import densevl
from densevl import LabelSession, Segmenter, load_backbone
from densevl.errors import DensevlError, ImageError, LabelError, OptionError, ProposalError
from densevl.images import read_image
from densevl.pipelines.fewshot.likeness import named

PAGE = Path(densevl.__file__).parent / "serving" / "page" / "examples"
NAMES = ["elephant", "fish", "sailboat | boat"]
HOUSE = (10, 130, 60, 190)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("mini", device="cpu")


@pytest.fixture
def session(backbone) -> LabelSession:
    made = LabelSession(backbone, NAMES, proposals=None)
    for name in ("water.png", "wood.png"):
        made.add(PAGE / name)
    return made


def boxed(box=HOUSE, size=(192, 192)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def seen(result, x: int, y: int) -> str:
    return ([*result.names, "nothing"])[result.labels[y, x]]


def test_before_a_correction_it_is_the_segmenter(session, backbone) -> None:
    for name in session.photos:
        got, want = session.result(name), Segmenter(backbone)(PAGE / name, NAMES)
        assert np.array_equal(got.labels, want.labels)
        assert np.array_equal(got.confidence, want.confidence)


def mirrored(backbone, labels, photo="water.png", **options) -> LabelSession:
    """A session of a photo and its mirror image."""
    session, rgb = LabelSession(backbone, labels, **options), read_image(PAGE / photo)
    session.add(rgb, "one")
    session.add(np.ascontiguousarray(rgb[:, ::-1]), "mirrored")
    return session


def test_one_example_teaches_regions_of_other_photos_that_look_like_it(backbone) -> None:
    session = mirrored(backbone, ["fish"])
    assert seen(session.result("mirrored"), 148, 145) == "nothing"
    session.correct("one", "mammoth", point=(43, 145))  # the house
    assert session.taught == ["mammoth"]
    found = session.result("mirrored")
    assert seen(found, 148, 145) == "mammoth"
    assert seen(found, 36, 80) == "nothing", "the sunflower is not like it"
    assert 0.5 < found.confidence[145, 148] < 1, "nobody said so there"
    assert session.order()[0][0] == "mirrored", "words did not know it"
    session.undo()
    assert session.taught == []
    assert seen(session.result("mirrored"), 79, 120) == "nothing"


def test_how_like_is_the_callers_choice(backbone) -> None:
    session = mirrored(backbone, ["fish"], like=0.99)
    session.correct("one", "mammoth", point=(112, 120))
    assert seen(session.result("one"), 112, 120) == "mammoth"
    assert seen(session.result("mirrored"), 79, 120) == "nothing"


def test_what_is_called_nothing_teaches_too(backbone) -> None:
    session = mirrored(backbone, ["penguin", "pizza"], "wood.png")
    assert seen(session.result("mirrored"), 151, 150) == "penguin"
    session.correct("one", "nothing", point=(40, 150))
    assert seen(session.result("mirrored"), 151, 150) == "nothing"


@pytest.mark.parametrize(
    ("cosines", "owner"),
    [([0.9, 0.1], 0), ([0.3, 0.5], 1), ([0.3, 0.2], -1), ([-1.0, -1.0], -1)],
    ids=["the first", "the second", "neither", "the opposite of both"],
)
def test_a_region_is_what_its_likest_example_is_if_it_is_like_enough(cosines, owner) -> None:
    basis = torch.eye(3)
    rest = max(0.0, 1 - sum(c * c for c in cosines)) ** 0.5
    region = torch.tensor([[*cosines, rest]])
    found = named(region, torch.zeros(3), basis[:2], [0, 1], 0.45)
    chances = np.exp(20 * np.array([0.45, *F.normalize(region, dim=1)[0, :2]]))
    assert found.owners.tolist() == [owner]
    assert found.chances[0] == pytest.approx((chances / chances.sum())[owner + 1], rel=1e-5)


def test_what_was_said_stands(session) -> None:
    session.correct("water.png", "house", box=HOUSE)
    session.correct("water.png", "nothing", mask=boxed((0, 0, 192, 20)))
    water = session.result("water.png")
    assert water.names == ("elephant", "fish", "sailboat", "house")
    assert (water.labels[boxed()] == 3).all()
    assert (water.labels[:20] == -1).all()
    assert (water.confidence[boxed()] == 1).all()
    assert water.meta["corrections"] == 2


def test_a_later_correction_has_the_last_word_on_a_pixel(session) -> None:
    session.correct("water.png", "house", box=HOUSE)
    session.correct("water.png", "boat", mask=boxed((10, 130, 60, 150)))  # a synonym is its class
    labels = session.result("water.png").labels
    assert session.labels.names == ("elephant", "fish", "sailboat", "house")
    assert (labels[130:150, 10:60] == 2).all()
    assert (labels[150:190, 10:60] == 3).all()


def test_a_click_takes_a_region_whatever_its_label(backbone) -> None:
    """Things that words miss are nothing, as the background is; a click must not take both."""
    session = LabelSession(backbone, ["fish"])
    session.add(PAGE / "water.png")
    labels, units = session.result("water.png").labels, session.units("water.png")
    assert labels[120, 112] == labels[5, 5] == -1
    made = session.correct("water.png", "elephant", point=(112, 120))
    assert np.array_equal(made.mask, units == units[120, 112])
    assert 0.02 < made.mask.mean() < 0.1
    assert not made.mask[5, 5]
    session.correct("water.png", "tail", mask=boxed((85, 92, 112, 152)))
    parts = np.unique(session.units("water.png")[made.mask])
    assert len(parts) == 2, "what was said of a part stays apart"


def test_without_a_proposer_a_click_takes_the_connected_pixels_of_one_label(session) -> None:
    labels = session.result("water.png").labels
    y, x = (int(n) for n in np.argwhere(labels == 0)[40])
    pieces, _ = ndimage.label(labels == 0)
    made = session.correct("water.png", "mammoth", point=(x, y))
    assert np.array_equal(made.mask, pieces == pieces[y, x])


def test_undo_takes_back_words_and_all(session) -> None:
    before = session.result("wood.png").labels
    session.correct("water.png", "house", box=HOUSE)
    once = session.result("wood.png").labels
    session.correct("wood.png", "penguin", box=(14, 120, 70, 182))
    assert [one.name for one in session.undo()] == ["penguin"]
    assert session.labels.names[-1] == "house"
    assert np.array_equal(session.result("wood.png").labels, once)
    session.undo()
    assert session.labels.names == ("elephant", "fish", "sailboat")
    assert np.array_equal(session.result("wood.png").labels, before)
    assert session.undo() == []


def test_a_photo_that_is_confirmed_keeps_its_labels_and_comes_last(session) -> None:
    session.correct("water.png", "house", box=HOUSE)
    shown = session.result("wood.png").labels
    session.confirm("wood.png")
    assert np.array_equal(session.result("wood.png").labels, shown)
    assert session.order()[-1] == ("wood.png", 0.0)
    assert len(session.undo()) >= len(np.unique(shown))
    assert len(session.corrections) == 1


def test_a_thing_of_a_few_pixels_holds_for_itself(session) -> None:
    session.correct("water.png", "dot", mask=boxed((50, 50, 52, 52)))
    assert (session.result("water.png").labels[50:52, 50:52] == 3).all()


def test_a_session_is_saved_as_coco_and_comes_back(session, backbone, tmp_path) -> None:
    session.correct("water.png", "house", box=HOUSE)
    session.correct("water.png", "mammoth", box=(85, 92, 140, 152))
    session.correct("water.png", "nothing", mask=boxed((0, 0, 192, 20)))
    session.correct("wood.png", "fish", mask=boxed((10, 130, 60, 150)))
    content = json.loads(session.save(tmp_path / "session.json").read_text())
    assert [row["name"] for row in content["categories"]] == [
        "elephant",
        "fish",
        "sailboat",
        "house",
        "mammoth",
        "nothing",
    ]
    assert [row["id"] for row in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    again = LabelSession.load(tmp_path / "session.json", PAGE, backbone, proposals=None)
    assert again.labels == session.labels
    for name in session.photos:
        assert np.array_equal(again.result(name).labels, session.result(name).labels)


def test_coco_holds_each_pixel_once_but_where_a_correction_was_corrected(session) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    session.correct("water.png", "house", box=HOUSE)
    content, count = session.to_coco(), np.zeros((192, 192), int)
    for row in content["annotations"]:
        if row["image_id"] == 0:
            count += masks.decode(row["segmentation"])
    assert np.array_equal(count, (session.result("water.png").labels >= 0).astype(int))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.correct("water.png", "x"), OptionError, "give one of mask=, box= and point="),
        (lambda s: s.correct("water.png", "x", box=HOUSE, point=(1, 1)), OptionError, "give one of"),
        (lambda s: s.correct("woter.png", "x", box=HOUSE), OptionError, "no photo is called 'woter.png'"),
        (lambda s: s.correct("water.png", "x", point=(192, 0)), ProposalError, "outside the photo of 192 x 192"),
        (lambda s: s.correct("water.png", "x", mask=boxed(size=(9, 9))), ProposalError, r"mask is bool \(9, 9\)"),
        (lambda s: s.correct("water.png", "x", mask=np.ones((192, 192))), ProposalError, "mask is float64"),
        (lambda s: s.correct("water.png", "x", mask=~boxed((0, 0, 192, 192))), ProposalError, "no pixels"),
        (lambda s: s.correct("water.png", " ", box=HOUSE), LabelError, "empty label"),
        (lambda s: s.add(PAGE / "water.png"), OptionError, "a photo 'water.png' is already in the session"),
        (lambda s: s.add("none.png"), ImageError, "none.png"),
        (lambda s: s.restore({"images": 3}), LabelError, "labelling session"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(session, call, error, message) -> None:
    with pytest.raises(error, match=message) as raised:
        call(session)
    assert "\n" not in str(raised.value)
    assert (session.corrections, session.photos) == ([], ["water.png", "wood.png"])
    assert session.labels.names == ("elephant", "fish", "sailboat")


def test_memory_is_bounded(backbone) -> None:
    session = LabelSession(backbone, ["cat"], most=1, proposals=None)
    session.add(np.zeros((200, 200, 3), np.uint8))
    with pytest.raises(OptionError, match="2 photos and their features take more than 1 MB"):
        session.add(np.zeros((1000, 1000, 3), np.uint8))


def test_what_a_session_cannot_be_is_said(backbone) -> None:
    with pytest.raises(DensevlError):
        LabelSession(backbone)
    with pytest.raises(OptionError, match="like is 2"):
        LabelSession(backbone, ["cat"], like=2)
