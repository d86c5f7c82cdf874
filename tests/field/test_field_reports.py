"""Small inputs rebuilt from public reports about tools of this field, and what each asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from case import Case, Ran, cases, run
from PIL import Image

from conftest import random_clip, wrap
from densevl import LabelSet, RegionClassifier, Segmenter
from densevl.images import read_image

SCENE = Path(__file__).parents[2] / "demo/scenes/wood.png"
LABELS = ["penguin", "pizza"]
SIDE = (32, 48)


def _own(
    folder: Path, rows: list[int], names: str, *, palette: list[int] | None = None, colours: bool = False, **files: str
) -> Ran:
    """Two photos of one's own with label maps whose rows have these numbers, evaluated."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(2):
        photo = np.random.default_rng(number).integers(0, 255, (*SIDE, 3), dtype=np.uint8)
        Image.fromarray(photo).save(folder / f"images/{number}.png")
        truth = np.array(rows, np.uint8)[np.arange(SIDE[0]) * len(rows) // SIDE[0]][:, None].repeat(SIDE[1], 1)
        image = Image.fromarray(truth)
        if palette is not None:
            image.putpalette(palette)
        (image.convert("RGB") if colours else image).save(folder / f"labels/{number}.png")
    (folder / "names.txt").write_text(names)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return run("eval", "run", "folder", "--root", folder, "--model", "mini", "--out", folder / "out", "--quiet")


def _regions(**given: object) -> object:
    return RegionClassifier("mini", proposals=None)(SCENE, LABELS, **given)


def _written(folder: Path, name: str, pixels: np.ndarray) -> object:
    Image.fromarray(pixels).save(folder / name)
    return read_image(folder / name)


def _classes(folder: Path) -> dict[str, dict]:
    return {row["class"]: row for row in json.loads((folder / "out/results.json").read_text())["classes"]}


def _permuted(folder: Path) -> bool:
    """Whether the words keep their pixels when they are asked for in another order."""
    words, segment = ["penguin", "pizza", "dog", "house"], Segmenter("mini")
    one, other = segment(SCENE, words), segment(SCENE, words[::-1])
    names = np.array([*words, "nothing"]), np.array([*words[::-1], "nothing"])
    return bool((names[0][one.labels] == names[1][other.labels]).all())


def _coco(folder: Path, category: int = 1, size: tuple[int, int] = (32, 48)) -> Ran:
    (folder / "images").mkdir()
    Image.open(SCENE).resize((48, 32)).save(folder / "images/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "penguin"}, {"id": 2, "name": "pizza"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": category, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
            | {"segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]]}
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    command = ("eval", "run", "folder", "--task", "instance", "--root", folder, "--model", "mini")
    return run(*command, "--proposals", "grid", "--out", folder / "out", "--quiet")


def _parts(folder: Path, *, masks: bool = True, sound: int = 2) -> Ran:
    def draw(name: str, value: int) -> None:
        path = folder / "cup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), value, np.uint8)).save(path)

    for number in range(2):
        draw(f"train/good/{number}.png", 90)
        draw(f"test/crack/{number}.png", 120)
        if masks:
            draw(f"ground_truth/crack/{number}_mask.png", 255)
    for number in range(sound):
        draw(f"test/good/{number}.png", 90)
    command = ("eval", "run", "mvtec", "--root", folder, "--model", "mini", "--shots", 1)
    return run(*command, "--out", folder / "out", "--quiet")


TABLE = (
    Case(  # open-mmlab/mmsegmentation 855
        "eight numbers for seven names",
        "label maps whose 0 is void, beside a list of names that starts at 1",
        lambda folder: _own(folder, list(range(8)), "\n".join("abcdefg")),
        refused=r"label 7 .*7 classes, stored as 0 to 6",
    ),
    Case(  # open-mmlab/mmsegmentation 2245, 964
        "a class that counts as 0 because it is never there",
        "own data in which one class does not occur",
        lambda folder: _own(folder, [0, 1], "penguin\npizza\ncar"),
        warned="occur nowhere in the truth: car",
    ),
    Case(  # open-mmlab/mmsegmentation 1609
        "two classes stored as 0 and 255",
        "masks as image editors write them",
        lambda folder: _own(folder, [0, 255], "penguin\npizza"),
        warned="255",
    ),
    Case(  # open-mmlab/mmsegmentation 3732
        "an ignored number that is also a class",
        "own data with a void number",
        lambda folder: _own(
            folder, [0, 1, 2], "", dataset=json.dumps({"names": ["void", "penguin", "pizza"], "ignore": [0]})
        ),
        right=lambda done: done.code in (0, 2),
    ),
    Case(  # divamgupta/image-segmentation-keras 117
        "class numbers read as colours",
        "label maps with a palette, as labelme writes them",
        lambda folder: (
            _own(folder, [0, 1], "penguin\npizza", palette=[0, 0, 0, 128, 0, 0] + [0] * 762),
            _classes(folder)["pizza"]["share"],
        ),
        right=lambda got: got[0].code == 0 and got[1] == 0.5,
    ),
    Case(  # cvat-ai/cvat 1736, 2032
        "colours taken for class numbers",
        "label maps in colours, as annotation tools export them",
        lambda folder: _own(folder, [0, 1], "penguin\npizza", palette=[0, 0, 0, 128, 0, 0] + [0] * 762, colours=True),
        refused="colour",
    ),
    Case(  # mlfoundations/open_clip 193, openai/CLIP 224
        "100 % of the only label",
        "one label and nothing to compare it with",
        lambda folder: Segmenter("mini")(SCENE, ["penguin"], background="none"),
        warned="only word",
    ),
    Case(  # IDEA-Research/GroundingDINO 26
        "words that find something else in another order",
        "the order of labels",
        _permuted,
        right=bool,
    ),
    Case(  # sarahpratt/CuPL 2
        "a class that is never predicted as another has its name",
        "class lists in which two classes have one name",
        lambda folder: LabelSet.parse(["missile", "crane", "Crane"]),
        refused="(?i)crane.*twice",
    ),
    Case(  # IDEA-Research/Grounded-Segment-Anything 465, openai/CLIP 192
        "words of another language taken for nonsense in silence",
        "labels in a script that the model was not trained on",
        lambda folder: Segmenter(wrap(random_clip()), protocol={"short_side": 32, "crop": 32, "stride": 32})(
            SCENE, ["猫", "собака", "dog"]
        ),
        warned="猫.*собака|English",
    ),
    Case(  # roboflow/supervision 254
        "masks of width by height read crosswise",
        "masks with their sides exchanged",
        lambda folder: RegionClassifier("mini", proposals=None)(
            np.zeros((32, 48, 3), np.uint8), LABELS, regions=np.ones((1, 48, 32), bool)
        ),
        refused=r"48.*32",
    ),
    Case(  # Pointcept/OpenIns3D 6
        "three labels read as one",
        "a list with semicolons",
        lambda folder: LabelSet.parse("floor; wall; beam"),
        warned=";",
        right=lambda labels: labels.names == ("floor", "wall", "beam"),
    ),
    Case(  # facebookresearch/segment-anything 489
        "x, y, width, height taken for corners",
        "boxes of another layout",
        lambda folder: _regions(boxes=[[152, 152, 30, 30]]),
        refused="width",
    ),
    Case(  # ultralytics/ultralytics 2005
        "boxes in shares of the image taken for pixels",
        "normalised boxes",
        lambda folder: _regions(boxes=[[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 1.0, 1.0]]),
        refused="0.*1|normalised",
    ),
    Case(  # facebookresearch/detr 28
        "a verdict on a box without area",
        "degenerate boxes",
        lambda folder: _regions(boxes=[[10, 10, 60, 60], [10, 10, 10, 40]]),
        refused="box 1 .*area",
    ),
    Case(  # openai/CLIP 187, ultralytics/ultralytics 22647
        "a text cut at 77 tokens",
        "captions in the place of labels",
        lambda folder: Segmenter("mini")(SCENE, ["penguin", "a man with a helmet and red trousers " * 20]),
        right=lambda result: len(result.names) == 2,
    ),
    Case(  # ivadomed/ivadomed 1313
        "grey with transparency, two channels, taken for something else",
        "arrays with an unusual number of channels",
        lambda folder: read_image(np.zeros((8, 8, 2), np.uint8)),
        refused=r"\(H, W, 3\)",
    ),
    Case(  # ivadomed/ivadomed 1313
        "a grey PNG with transparency refused",
        "files with an unusual number of channels",
        lambda folder: _written(
            folder, "a.png", np.dstack([np.full((4, 4), 90, np.uint8), np.full((4, 4), 255, "u1")])
        ),
        right=lambda rgb: rgb.shape == (4, 4, 3) and (rgb == 90).all(),
    ),
    Case(  # photoprism/photoprism 3705, MrGee53/HeicToJpg 1
        "photos of phones passed over in silence",
        "a folder in which some photos cannot be read",
        lambda folder: (
            (folder / "IMG_1259.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
            Image.open(SCENE).save(folder / "a.png"),
            run("segment", folder, "--labels", "penguin", "--model", "mini", "--out", folder / "out"),
        )[-1],
        warned="(?i)heic",
    ),
    Case(  # python-pillow/Pillow 2610, open-edge-platform/geti 6388
        "ten bits of sixteen come out black",
        "pictures of industrial cameras",
        lambda folder: (
            Image.fromarray(np.random.default_rng(0).integers(49, 1023, (64, 64)).astype(np.uint16)).save(
                folder / "a.tif"
            ),
            Segmenter("mini")(folder / "a.tif", LABELS),
        )[-1],
        warned="16",
    ),
    Case(  # cocodataset/cocoapi 546, WongKinYiu/yolov7 1701
        "categories off by one",
        "a COCO listing whose annotations name categories that it does not list",
        lambda folder: _coco(folder, category=3),
        refused="categor",
    ),
    Case(  # facebookresearch/detectron2 863
        "boxes of the upright picture on stored pixels",
        "a COCO listing whose sizes are those of a turned picture",
        lambda folder: _coco(folder, size=(48, 32)),
        refused="48.*32|32.*48",
    ),
    Case(  # open-edge-platform/anomalib 463, 1259
        "pixel measures without masks",
        "anomaly pictures whose defects nobody has drawn",
        lambda folder: _parts(folder, masks=False),
        refused="mask",
    ),
    Case(  # caoyunkang/AdaCLIP 4, TArdelean/AnomalyLocalizationFCA 2
        "an image AUROC of 0 where all pictures are damaged",
        "anomaly pictures of one kind only",
        lambda folder: _parts(folder, sound=0),
        warned="AUROC|sound|normal",
    ),
)


@cases(*TABLE)
def test_a_report_about_another_tool_is_none_about_this_one(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
