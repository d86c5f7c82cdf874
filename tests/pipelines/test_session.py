"""`LabelSession`: corrections that stand, teach, are taken back, and come back from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import densevl
from densevl import LabelSession, Segmenter, load_backbone
from densevl.errors import DensevlError, ImageError, LabelError, OptionError, ProposalError

PAGE = Path(densevl.__file__).parent / "serving" / "page" / "examples"
NAMES = ["elephant", "fish", "sailboat | boat"]
HOUSE = (10, 130, 60, 190)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("mini", device="cpu")


@pytest.fixture
def session(backbone) -> LabelSession:
    made = LabelSession(backbone, NAMES)
    for name in ("water.png", "wood.png"):
        made.add(PAGE / name)
    return made


def boxed(box=HOUSE, size=(192, 192)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_before_a_correction_it_is_the_segmenter(session, backbone) -> None:
    for name in session.photos:
        got, want = session.result(name), Segmenter(backbone)(PAGE / name, NAMES)
        assert np.array_equal(got.labels, want.labels)
        assert np.array_equal(got.confidence, want.confidence)


def taught(session) -> None:
    """Two classes corrected twice each."""
    for half in ((10, 130, 60, 160), (10, 160, 60, 190)):
        session.correct("water.png", "house", box=half)
    for half in ((85, 92, 140, 122), (85, 122, 140, 152)):
        session.correct("water.png", "mammoth", box=half)


def test_a_class_is_learned_from_its_second_correction_on(session) -> None:
    before = session.result("wood.png").labels
    session.correct("water.png", "house", box=HOUSE)
    session.correct("water.png", "mammoth", box=(85, 92, 140, 152))
    assert session.taught == []
    assert [doubt for _, doubt in session.order()] == [0, 0]
    session.undo()
    session.undo()
    taught(session)
    assert session.taught == ["house", "mammoth"]
    assert session.order()[0][1] > 0
    assert not np.array_equal(before, session.result("wood.png").labels)


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


def test_a_click_takes_the_connected_pixels_of_one_label(session) -> None:
    labels = session.result("water.png").labels
    y, x = (int(n) for n in np.argwhere(labels == 0)[40])
    pieces, _ = ndimage.label(labels == 0)
    made = session.correct("water.png", "mammoth", point=(x, y))
    assert np.array_equal(made.mask, pieces == pieces[y, x])


def test_undo_takes_back_words_and_all(session) -> None:
    before = session.result("wood.png").labels
    taught(session)
    once = session.result("wood.png").labels
    session.correct("wood.png", "penguin", box=(14, 120, 70, 182))
    assert [one.name for one in session.undo()] == ["penguin"]
    assert session.labels.names[-1] == "mammoth"
    assert np.array_equal(session.result("wood.png").labels, once)
    for _ in range(4):
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
    assert len(session.undo()) == len(np.unique(shown))
    assert len(session.corrections) == 1


def test_a_thing_too_small_to_learn_from_holds_for_itself(session) -> None:
    session.correct("water.png", "dot", mask=boxed((50, 50, 52, 52)))
    assert session.untaught == ["dot"]
    assert (session.result("water.png").labels[50:52, 50:52] == 3).all()


def test_a_session_is_saved_as_coco_and_comes_back(session, backbone, tmp_path) -> None:
    taught(session)
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
    again = LabelSession.load(tmp_path / "session.json", PAGE, backbone)
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
        (lambda s: s.add(PAGE / "water.png"), OptionError, "two photos are called 'water.png'"),
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
    session = LabelSession(backbone, ["cat"], most=1)
    session.add(np.zeros((200, 200, 3), np.uint8))
    with pytest.raises(OptionError, match="2 photos and their features take more than 1 MB"):
        session.add(np.zeros((1000, 1000, 3), np.uint8))


def test_labels_are_needed(backbone) -> None:
    with pytest.raises(DensevlError):
        LabelSession(backbone)
