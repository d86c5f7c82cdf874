"""Benchmarks of people's own: class lists of other tools, void numbers, colours, photos turned by EXIF, odd files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from case import Case, Ran, cases, run
from PIL import Image

from densevl.errors import DensevlError
from densevl.evaluation import Experiment, evaluate, open_dataset
from densevl.evaluation.benchmarks.look import Look, look
from tests.evaluation.region_miniatures import make_instances, make_panoptic

CLASSES = ("background", "penguin", "pizza")
SIDE = 12


def _stripes(*values: int) -> npt.NDArray[np.uint8]:
    """A label map whose rows take the values in turn."""
    return np.array(values, np.uint8)[np.arange(SIDE) % len(values)][:, None].repeat(SIDE + 4, 1)


def _set(
    folder: Path,
    *labels: npt.NDArray[Any],
    classes: str | None = "\n".join(CLASSES),
    end: str = ".png",
    **says: Any,
) -> Path:
    """A folder with images/, labels/, classes.txt, and a dataset.json where it says anything."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, label in enumerate(labels or (_stripes(0, 1, 2),) * 2):
        picture = rng.integers(0, 256, (*label.shape[:2], 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"images/{number}.png")
        Image.fromarray(label).save(folder / f"labels/{number}{end}")
    if classes is not None:
        (folder / "classes.txt").write_text(classes)
    if says:
        (folder / "dataset.json").write_text(json.dumps(says))
    return folder


def _look(folder: Path, **rules: Any) -> Look:
    return look(open_dataset("folder", folder, rules=rules))


def _truth(folder: Path, **rules: Any) -> list[int]:
    """The rows of the first label map, class indices."""
    dataset = open_dataset("folder", folder, rules=rules)
    look(dataset)
    return [int(row[0]) for row in dataset[0].truth[:6]]


def _named(name: str, content: str) -> Callable[[Path], Any]:
    """The classes and the first truth of a folder whose class list is of another tool."""

    def made(folder: Path) -> Any:
        (_set(folder, classes=None) / name).write_text(content)
        return open_dataset("folder", folder).names, _truth(folder)

    return made


def _right(found: Any) -> bool:
    return bool(found == (CLASSES, [0, 1, 2, 0, 1, 2]))


LISTS = tuple(
    Case(
        f"classes are read from {name}: {content[:24]!r}",
        "a class list of another tool",
        _named(name, content),
        right=_right,
    )
    for name, content in (
        ("classes.txt", "background\npenguin\npizza\n"),
        ("names.txt", "0 background\n1 penguin\n2 pizza\n"),
        ("labels.txt", "background\r\npenguin\r\npizza\r\n"),
        ("classes.names", "background\npenguin\npizza"),
        ("voc.names", "background\npenguin\npizza"),
        ("data.yaml", "path: ../x\nnc: 3\nnames: [background, penguin, pizza]\n"),
        ("data.yaml", "names:\n  0: background\n  1: penguin\n  2: pizza\n"),
        ("id2label.json", '{"0": "background", "1": "penguin", "2": "pizza"}'),
        ("dataset.json", '{"labels": {"background": 0, "penguin": 1, "pizza": 2}, "numTraining": 2}'),
        ("dataset.json", '{"classes": ["background", "penguin", "pizza"]}'),
        (
            "dataset.json",
            '{"categories": 1, "names": [{"id": 0, "name": "background"}, {"id": 1, "name": "penguin"}, '
            '{"id": 2, "name": "pizza"}]}',
        ),
    )
)
CITY = {"7": "background", "11": "penguin", "26": "pizza"}
MEANINGS = (
    Case(
        "a void number is told",
        "CamVid: 11 is not scored",
        lambda folder: _truth(_set(folder, _stripes(0, 1, 11)), ignore=[11]),
        right=lambda rows: rows[:3] == [0, 1, -1],
    ),
    Case(
        "a void number stands in dataset.json",
        "rules beside a class list",
        lambda folder: _truth(_set(folder, _stripes(0, 1, 11), ignore=11)),
        right=lambda rows: rows[:3] == [0, 1, -1],
    ),
    Case(
        "ignore_index is a void number",
        "the key of other frameworks",
        lambda folder: _truth(_set(folder, _stripes(0, 1, 11), ignore_index=11)),
        right=lambda rows: rows[:3] == [0, 1, -1],
    ),
    Case(
        "a number that nobody told of is no class",
        "CamVid without its void number",
        lambda folder: _truth(_set(folder, _stripes(0, 1, 11))),
        refused=r"holds label 11 at \d+ pixels: .*--ignore",
    ),
    Case(
        "numbers are mapped to classes by name",
        "Cityscapes ids to train ids",
        lambda folder: _truth(_set(folder, _stripes(7, 11, 26, 3), label_map=CITY, ignore="others")),
        right=lambda rows: rows[:4] == [0, 1, 2, -1],
    ),
    Case(
        "numbers are mapped to numbers, 255 and -1 not scored",
        "a table id2trainId",
        lambda folder: _truth(
            _set(folder, _stripes(7, 11, 26, 3), label_map={"7": 0, "11": 1, "26": 2, "3": 255, "4": -1, "5": None})
        ),
        right=lambda rows: rows[:4] == [0, 1, 2, -1],
    ),
    Case(
        "a number left out of a label map is no class by accident",
        "id2trainId that forgets 0",
        lambda folder: _truth(_set(folder, _stripes(0, 7, 11), label_map={"7": 0, "11": 1})),
        refused="holds label 0 at",
    ),
    Case(
        "a label map to a class that is not there",
        "a mistyped class",
        lambda folder: _truth(_set(folder, label_map={"1": "pengiun"})),
        refused="'label_map' maps 1 to 'pengiun' .*closest: penguin",
    ),
    Case(
        "zero is not scored where classes begin at 1",
        "ADE20K's reduce_zero_label",
        lambda folder: _truth(_set(folder, _stripes(0, 1, 3), classes="sea\npenguin\npizza"), reduce_zero_label=True),
        right=lambda rows: rows[:3] == [-1, 0, 2],
    ),
    Case(
        "the background is named",
        "a background called otherwise, and last",
        lambda folder: (
            open_dataset("folder", _set(folder, classes="penguin\npizza\nvoid", background="void")).names,
            _truth(folder),
        ),
        right=lambda found: found == (CLASSES, [1, 2, 0, 1, 2, 0]),
    ),
    Case(
        "a background that is no class",
        "a mistyped background",
        lambda folder: _look(_set(folder, background="sky")),
        refused="'background' is a class or false, not 'sky'",
    ),
    Case(
        "colours have classes",
        "label maps as colour pictures, as CamVid and CVAT have them",
        lambda folder: _truth(
            _set(
                folder,
                np.array([(0, 0, 0), (128, 64, 128), (1, 2, 3)], np.uint8)[np.arange(12) % 3][:, None].repeat(12, 1),
                colours={"#000000": "background", "128,64,128": "penguin", "#010203": None},
            )
        ),
        right=lambda rows: rows[:3] == [0, 1, -1],
    ),
    *(
        Case(
            f"label maps of one number in {kind}",
            "numbers that a program saved as a grey picture",
            lambda folder, channels=channels: _truth(_set(folder, np.dstack([_stripes(0, 1, 2)] * 3 + channels))),
            right=lambda rows: rows[:3] == [0, 1, 2],
        )
        for kind, channels in (("RGB", []), ("RGBA", [np.full((SIDE, SIDE + 4), 255, np.uint8)]))
    ),
    Case(
        "high bytes of 16-bit numbers in three channels",
        "16-bit RGB, of which Pillow keeps the high bytes",
        lambda folder: (
            _set(folder),
            cv2.imwrite(str(folder / "labels/0.png"), np.dstack([_stripes(0, 1, 2).astype(np.uint16)] * 3)),
            _look(folder),
        ),
        refused="not a label map",
    ),
    Case(
        "numbers below transparency",
        "a grey picture that is partly transparent: what is hidden is no label",
        lambda folder: _look(_set(folder, np.dstack([_stripes(0, 1, 2)] * 4))),
        refused="not a label map",
    ),
    Case(
        "two photos of one label map",
        "0.png and its JPEG in one folder: one of them was taken in silence",
        lambda folder: (
            _set(folder),
            Image.new("RGB", (16, 12)).save(folder / "images/0.jpg"),
            _look(folder),
        ),
        refused=r"0\.jpg.* and 0\.png beside it share one label map",
    ),
    Case(
        "an ending of a camera",
        "0.JPG",
        lambda folder: (
            _set(folder),
            (folder / "images/0.png").unlink(),
            Image.new("RGB", (16, 12)).save(folder / "images/0.JpG"),
            _truth(folder),
        )[-1],
        right=lambda rows: rows[:3] == [0, 1, 2],
    ),
    Case(
        "label maps with a mark behind their name",
        "x_mask.png for x.png",
        lambda folder: (_set(folder), (folder / "labels/0.png").rename(folder / "labels/0_mask.png"), _look(folder)),
        refused=r"0\.png.* was looked for; 0_mask\.png is there",
    ),
    Case(
        "label maps in a folder of another name",
        "masks/ in place of labels/",
        lambda folder: ((_set(folder) / "labels").rename(folder / "masks"), _look(folder)),
        refused=r"labels' is missing \(there: masks\)",
    ),
    Case(
        "a colour that nobody told of",
        "an edge smoothed by resizing",
        lambda folder: _look(_set(folder, np.full((6, 6, 3), 9, np.uint8), colours={"#000000": "penguin"})),
        refused="holds the colour '#090909' at 36 pixels",
    ),
    Case(
        "labelmap.txt of CVAT",
        "an export for segmentation masks",
        lambda folder: (
            _set(folder, np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 9, np.uint8), classes=None),
            (folder / "labelmap.txt").write_text(
                "# label:color_rgb:parts:actions\nbackground:0,0,0::\npizza:9,9,9::\n"
            ),
            open_dataset("folder", folder).names,
            _truth(folder),
        )[2:],
        right=lambda found: found == (("background", "pizza"), [0] * 6),
    ),
    *(
        Case(
            f"colours of {name}",
            "CamVid's lists of colours",
            lambda folder, name=name, text=text: (
                _set(folder, np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 9, np.uint8), classes=None),
                (folder / name).write_text(text),
                open_dataset("folder", folder).names,
                _truth(folder),
            )[2:],
            right=lambda found: found == (("sky", "road side"), [0] * 6),
        )
        for name, text in (
            ("class_dict.csv", "name,r,g,b\nsky,0,0,0\nroad side,9,9,9\n"),
            ("label_colors.txt", "0 0 0\tsky\n9 9 9\t\troad side\n"),
        )
    ),
    Case(
        "what is not scored is said where nobody said it",
        "labels with 255",
        lambda folder: _look(_set(folder, _stripes(0, 1, 2, 255))).text,
        right=lambda text: "255 and 65535 (as usual; nothing else was said)" in text,
    ),
    Case(
        "a rule for a published benchmark",
        "--ignore with ade150",
        lambda folder: (
            (folder / "images/validation").mkdir(parents=True),
            run(
                "eval", "run", "ade150", "--root", folder, "--ignore", "11", "--model", "mini", "--out", folder / "out"
            ),
        )[1],
        refused="'ignore' is not for it",
    ),
    Case(
        "a mistyped key of dataset.json",
        "ingore for ignore",
        lambda folder: _look(_set(folder, ingore=11)),
        warned="'ingore' .*closest: ignore.* is not read",
    ),
    Case(
        "two lists of classes that differ",
        "an old classes.txt left behind",
        lambda folder: ((_set(folder) / "names.txt").write_text("cat\ndog\n"), _look(folder)),
        refused="names.txt' has 2 classes and classes.txt beside it 3",
    ),
)


def _turned(tag: int, stored: bool, square: bool = False, **rules: Any) -> Callable[[Path], Any]:
    """A photo turned by its tag, labels of the pixels as stored or of the upright picture; whether the truth fits."""

    def made(folder: Path) -> Any:
        upright = np.zeros((8, 8 if square else 12), np.uint8)
        upright[:3, :5] = 1
        back = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a), 8: lambda a: np.rot90(a, -1)}[tag]
        _set(folder, upright)
        (folder / "images/0.png").unlink()
        exif = Image.Exif()
        exif[0x0112] = tag
        picture = np.repeat(upright[..., None] * 200, 3, 2).astype(np.uint8)
        Image.fromarray(np.ascontiguousarray(back(picture))).save(folder / "images/0.jpg", exif=exif)
        Image.fromarray(np.ascontiguousarray(back(upright)) if stored else upright).save(folder / "labels/0.png")
        dataset = open_dataset("folder", folder, rules=rules)
        seen = look(dataset)
        sample = dataset[0]
        fits = ((sample.image[..., 0] > 100) == (sample.truth == 1)).mean() > 0.9
        return Seen(seen.warnings, bool(fits))

    return made


class Seen:
    """Warnings, and whether the truth lies where the picture shows it."""

    def __init__(self, warnings: tuple[str, ...], fits: bool) -> None:
        self.warnings, self.fits = warnings, fits


EXIF = (
    Case(
        "labels as stored of a photo on its side are turned with it",
        "annotated in a tool that ignores EXIF",
        _turned(6, stored=True),
        warned="1 image is turned by EXIF tags: labels are those of the pixels as stored, as their sizes say",
        right=lambda seen: seen.fits,
    ),
    Case(
        "labels of the upright picture stay as they are",
        "annotated in a tool that turns photos",
        _turned(8, stored=False),
        warned="are taken to be of the turned picture",
        right=lambda seen: seen.fits,
    ),
    Case(
        "labels as stored of a photo upside down, said so",
        "sizes cannot tell; exif=stored",
        _turned(3, stored=True, exif="stored"),
        warned="labels are those of the pixels as stored, and are turned with them",
        right=lambda seen: seen.fits,
    ),
    Case(
        "labels of a photo upside down, nothing said",
        "sizes cannot tell",
        _turned(3, stored=True),
        warned="are taken to be of the turned picture; if they are of the pixels as stored, say exif=stored",
    ),
    Case(
        "a square photo on its side",
        "sizes cannot tell",
        _turned(6, stored=True, square=True),
        warned="say exif=stored",
    ),
    Case(
        "an exif rule that is none",
        "a mistyped value",
        lambda folder: _look(_set(folder), exif="sideways"),
        refused="'exif' is 'sideways'",
    ),
)


def _lose(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _shown(folder: Path) -> Any:
    seen = _look(folder)
    return Seen((*seen.warnings, *seen.of_sample), True)


LOOKS = (
    Case(
        "two classes stored as 0 and 255",
        "binary masks: all foreground would be ignored",
        lambda folder: _look(_set(folder, _stripes(0, 255), classes="background\npenguin")),
        refused=r"hold only 0 and 255.*\"ids\": \[0, 255\].*--ignore 255",
    ),
    Case(
        "two classes stored as 0 and 255, as they say",
        "binary masks with ids",
        lambda folder: _truth(_set(folder, _stripes(0, 255), classes="background\npenguin", ids=[0, 255])),
        right=lambda rows: rows[:2] == [0, 1],
    ),
    Case(
        "two classes stored as 0 and 255, mapped",
        "binary masks with a label map",
        lambda folder: _truth(_set(folder, _stripes(0, 255), classes="background\npenguin"), label_map={"255": 1}),
        right=lambda rows: rows[:2] == [0, 1],
    ),
    Case(
        "16-bit masks of 0 and 65535",
        "binary masks of ImageJ",
        lambda folder: _look(_set(folder, _stripes(0, 1).astype(np.uint16) * 65535, classes="background\npenguin")),
        refused="hold only 0 and 65535",
    ),
    Case(
        "0 and 255 where 255 is not scored, as they say",
        "one class and void",
        lambda folder: _shown(_set(folder, _stripes(0, 255), classes="background\npenguin", ignore=255)),
        warned="all that the truth scores is 'background', and 50% of its pixels are ignored",
    ),
    Case(
        "a class that occurs nowhere",
        "a class list of another dataset",
        lambda folder: _shown(_set(folder, _stripes(0, 1))),
        warned="1 of 3 classes occur nowhere in the truth: pizza",
    ),
    Case("nothing is said where nothing is wrong", "a sound folder", lambda folder: _shown(_set(folder)), warned=""),
    Case(
        "most of the truth is ignored",
        "sparse labels",
        lambda folder: _shown(_set(folder, _stripes(0, 1, 2, 255, 255, 255, 255, 255, 255, 255, 255, 255))),
        warned="75% of the pixels of the truth are ignored",
    ),
    Case(
        "all of the truth is ignored",
        "label maps of 255",
        lambda folder: _look(_set(folder, _stripes(255), _stripes(255))),
        refused="every pixel of all 2 label maps of 'folder' is ignored",
    ),
    Case(
        "label maps that hold one number",
        "blank exports",
        lambda folder: _shown(_set(folder, _stripes(1), _stripes(1))),
        warned="holds nothing but 1: are these label maps",
    ),
    Case(
        "labels of another size",
        "labels at half the size",
        lambda folder: (
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(_set(folder) / "labels/1.png"),
            _look(folder),
        ),
        refused="1 of 2 label maps differ from their image, the first is .*1.png', 8x6 for 16x12",
    ),
    Case(
        "numbers beyond the classes",
        "class numbers that begin at 1",
        lambda folder: _look(_set(folder, _stripes(1, 2, 3))),
        refused="holds label 3 at .*stored as 0 to 2",
    ),
    Case(
        "photos without labels",
        "half of the folder is annotated",
        lambda folder: _look(_lose(_set(folder), "labels/1.png")),
        refused="1 of 2 images have no labels, the first is .*images/1.png",
    ),
    Case(
        "labels without a photo",
        "photos lost",
        lambda folder: _shown(_lose(_set(folder), "images/1.png")),
        warned="labels without an image that can be read: 1",
    ),
    Case(
        "label maps as colour pictures",
        "labels exported for viewing",
        lambda folder: _look(_set(folder, np.arange(432, dtype=np.uint8).reshape(12, 12, 3))),
        refused="not a label map: it has colours.*",
    ),
    Case(
        "label maps as JPEG",
        "labels spoilt by compression",
        lambda folder: _look(_set(folder, end=".jpg")),
        refused="no labels in .*are JPEG.*save them as PNG",
    ),
    Case(
        "label maps as JPEG that are called PNG",
        "a renamed file",
        lambda folder: (
            Image.fromarray(_stripes(0, 1)).save(_set(folder) / "labels/1.png", "JPEG"),
            _look(folder),
        ),
        refused="is a JPEG file: allowed here are PNG, TIFF",
    ),
)


def _coco(change: Callable[[dict[str, Any]], Any], task: str = "instance") -> Callable[[Path], Any]:
    """A sound listing of two images, changed; what the first look says."""

    def made(folder: Path) -> Any:
        make_instances("folder", folder)
        make_panoptic("folder", folder)
        path = folder / ("instances.json" if task == "instance" else "panoptic.json")
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        dataset = open_dataset("folder", folder, task=task)
        seen = look(dataset)
        return Seen(seen.warnings, all(dataset[index] is not None for index in range(len(dataset))))

    return made


def _set_in(part: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data[part][0].update(values)


def _twice(part: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data[part].append({**data[part][0], **values})


LISTINGS = (
    Case("a sound listing says nothing", "COCO", _coco(lambda data: None), warned="", right=lambda seen: seen.fits),
    Case("two images of one id", "listings joined", _coco(_twice("images")), refused="has 2 images of id"),
    Case("two categories of one id", "listings joined", _coco(_twice("categories")), refused="has 2 categories of id"),
    Case(
        "annotations of one id",
        "listings joined",
        _coco(_twice("annotations")),
        warned="1 ids of annotations appear twice",
    ),
    Case(
        "a file that is listed twice",
        "listings joined",
        _coco(lambda data: [image.update(file_name="x.jpg") for image in data["images"]]),
        refused="images are missing",
    ),
    Case(
        "a crowd that is odd", "iscrowd as text", _coco(_set_in("annotations", iscrowd="no")), refused="iscrowd is 'no'"
    ),
    Case(
        "a crowd of 2", "iscrowd as a count", _coco(_set_in("annotations", iscrowd=2)), refused="iscrowd is 2: 0 or 1"
    ),
    Case(
        "annotations of images that are not listed",
        "a subset of images with all annotations",
        _coco(_twice("annotations", image_id=999, id=99)),
        warned="1 annotations are of images that it does not list, 999 first",
    ),
    Case(
        "annotations of no image that is listed",
        "ids of another split",
        _coco(lambda data: [entry.update(image_id=999) for entry in data["annotations"]]),
        refused="only annotations of images that it does not list, 999 first",
    ),
    Case(
        "a category that is not listed",
        "class 0 for the background",
        _coco(_set_in("annotations", category_id=0)),
        refused="has category 0 in image .*it lists 2 categories, 5 to 11",
    ),
    Case(
        "a box outside its image",
        "boxes of another size of image",
        _coco(_set_in("annotations", bbox=[20, 20, 100, 100])),
        warned="1 objects have boxes outside their image",
    ),
    Case(
        "polygons in shares of the image",
        "YOLO's coordinates",
        _coco(
            lambda data: [entry.update(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]]) for entry in data["annotations"]]
        ),
        refused="polygons in shares of the image, none over 0.9: give pixels",
    ),
    Case(
        "an image without a size",
        "a listing by hand",
        _coco(_set_in("images", height=0)),
        refused="a width and height of",
    ),
    Case(
        "a listing of another size than its images",
        "annotations of images before they were shrunk",
        _coco(lambda data: [image.update(height=48, width=64) for image in data["images"]]),
        refused="3 of 3 sizes of the listing differ from .* 64x48 for 32x24",
    ),
    Case(
        "two panoptic segments of one id",
        "COCO panoptic",
        _coco(
            lambda data: data["annotations"][0]["segments_info"].append(data["annotations"][0]["segments_info"][0]),
            "panoptic",
        ),
        refused="segments of image .* of id",
    ),
    Case(
        "a panoptic image without annotation",
        "COCO panoptic",
        _coco(lambda data: data["annotations"].pop(), "panoptic"),
        warned="1 of 3 images have no annotation; they are left out",
    ),
)


def _parts(*masks: npt.NDArray[np.uint8] | None, good: int = 2, end: str = "_mask") -> Callable[[Path], Any]:
    """Test images in MVTec's layout; what the first look says, and whether damage lies where it should."""

    def made(folder: Path) -> Any:
        root, picture = folder / "cup", np.zeros((SIDE, SIDE, 3), np.uint8)
        for place, count in (("train/good", 2), ("test/good", good), ("test/dent", len(masks))):
            for number in range(count):
                (root / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / place / f"{number}.png")
        for number, mask in enumerate(masks):
            (root / "ground_truth/dent").mkdir(parents=True, exist_ok=True)
            if mask is not None:
                Image.fromarray(mask).save(root / f"ground_truth/dent/{number}{end}.png")
        dataset = open_dataset("mvtec", folder)
        seen = look(dataset)
        damaged = [dataset.read(item).truth for item in dataset.items if item.damaged]
        return Seen(seen.warnings, all(truth[:4, :4].all() and truth.sum() == 16 for truth in damaged))

    return made


def _mask(value: int, soft: int = 0, side: int = SIDE) -> npt.NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[:4, :4], mask[4, :4] = value, soft
    return mask


ANOMALIES = (
    Case("masks of 0 and 255", "MVTec AD", _parts(_mask(255), _mask(255)), warned="", right=lambda seen: seen.fits),
    Case("masks of 0 and 1 are damage", "masks as booleans", _parts(_mask(1)), warned="", right=lambda seen: seen.fits),
    Case(
        "masks called like their image", "no _mask", _parts(_mask(255), end=""), warned="", right=lambda seen: seen.fits
    ),
    Case(
        "masks with soft edges",
        "masks resized smoothly",
        _parts(_mask(255, soft=90)),
        warned="1 masks have soft values: those over 127 count",
        right=lambda seen: seen.fits,
    ),
    Case(
        "masks under the limit",
        "masks as class numbers",
        _parts(_mask(100)),
        refused="1 masks hold nothing over the limit of 127",
    ),
    Case(
        "masks that mark nothing",
        "blank exports",
        _parts(_mask(0)),
        refused="no mask of a damaged image marks anything",
    ),
    Case(
        "one mask that marks nothing",
        "a blank export",
        _parts(_mask(255), _mask(0)),
        warned="1 masks of damaged images mark nothing, and these images count as flawless",
    ),
    Case(
        "masks of another size",
        "masks at the camera's size",
        _parts(_mask(255, side=24)),
        refused="differ from their image",
    ),
    Case(
        "a mask that is missing",
        "damage without a mask",
        _parts(_mask(255), None),
        refused="1 of 4 images have no labels",
    ),
    Case("no defect pictures", "flawless images alone", _parts(), refused="no test image of cup is damaged"),
    Case(
        "no flawless test images",
        "defects alone",
        _parts(_mask(255), good=0),
        warned="'cup' has no flawless test image: its measures of images are n/a",
    ),
)


@cases(*LISTINGS, *ANOMALIES)
def test_a_listing_is_sound_or_says_what_is_odd(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


@cases(*LISTS, *MEANINGS, *EXIF, *LOOKS)
def test_a_folder_of_ones_own_is_what_was_meant_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


def _mini(folder: Path, *more: object) -> tuple[Ran, dict[str, Any], str]:
    """A run of the shipped model; its results and its page."""
    told = run("eval", "run", "folder", "--root", folder, "--model", "mini", "--out", folder / "out", *more)
    results = folder / "out/results.json"
    page = folder / "out/report.html"
    return told, json.loads(results.read_text()), page.read_text()


def _asked(root: str) -> Experiment:
    return Experiment("folder", root=root, model="mini")


def test_what_was_seen_stands_on_stderr_in_results_and_on_the_page(tmp_path: Path) -> None:
    _set(tmp_path, _stripes(0, 1, 11), _stripes(0, 1, 11), classes="background\npenguin\npizza\nquokka")
    told, results, page = _mini(tmp_path, "--ignore", "11")
    assert told.code == 0
    assert sum("not scored: 11 and 255 and 65535" in line for line in told.warnings) == 1
    assert "not scored: 11 and 255 and 65535" in results["first_look"]["seen"]
    assert results["experiment"]["ignore"] == [11]
    assert any("model mini: small CLIP in the package" in line for line in told.warnings)
    assert "small CLIP in the package" in results["used"]["about"]
    assert "small CLIP in the package" in page
    for said in ("quokka", "2 of 4 classes occur nowhere in the truth: pizza, quokka"):
        assert any(said in line for line in told.warnings), told.warnings
        assert any(said in text for text in results["warnings"])
        assert said in page
    assert results["classes not in the truth"] == ["pizza", "quokka"]
    assert len(set(told.warnings)) == len(told.warnings), "each once"


def test_classes_that_were_never_found_are_named(tmp_path: Path) -> None:
    _set(tmp_path, _stripes(0, 1, 2))
    told, results, page = _mini(tmp_path)
    never = results["classes never found"]
    assert never
    assert any(f"never found: {never[0]}" in line or f", {never[0]}" in line for line in told.warnings), told.warnings
    assert "never found" in page


def test_a_fresh_dump_leaves_no_earlier_prediction(tmp_path: Path) -> None:
    _set(tmp_path)
    _mini(tmp_path, "--dump")
    assert len(list((tmp_path / "out/predictions").iterdir())) == 2
    _mini(tmp_path, "--dump", "--fresh", "--limit", "1")
    assert len(list((tmp_path / "out/predictions").iterdir())) == 1


def test_a_refused_resume_shows_no_progress(tmp_path: Path) -> None:
    _set(tmp_path)
    _mini(tmp_path)
    asked = ("folder", "--root", tmp_path, "--model", "mini", "--recipe", "naclip", "--out", tmp_path / "out")
    refused = run("eval", "run", *asked)
    assert refused.code == 2
    assert not any("0/?" in line for line in refused.warnings)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda root: Experiment("folder", root=root, boundary_ratio=0), "boundary_ratio .* 1e-06 to 1, not '0.0'"),
        (lambda root: evaluate(Experiment("folder", root=root, model="mini"), 5), "the work folder is a int"),
        (
            lambda root: evaluate(Experiment("folder", root=root, model="mini"), root, save_every="x"),
            "save_every is 'x'",
        ),
        (
            lambda root: evaluate(Experiment("folder", root=root, model="mini"), root, save_every=float("nan")),
            "save_every",
        ),
        (lambda root: Experiment("folder", root=root, ignore="x"), "ignore is numbers"),
        (lambda root: Experiment("folder", root=root, ignore=True), "ignore is numbers"),
    ],
)
def test_what_an_evaluation_cannot_do_is_one_line(asked: Any, message: str, tmp_path: Path) -> None:
    _set(tmp_path)
    with pytest.raises(DensevlError, match=message):
        asked(str(tmp_path))
