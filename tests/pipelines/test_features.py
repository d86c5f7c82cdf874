"""Dense features on a grid: against loops in float64 and the papers' sliding protocol, in files, in folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import PHOTOS, close, random_clip, wrap
from densevl import DenseMap, FeatureExtractor, load_backbone
from densevl.backbones import InferenceProtocol
from densevl.cli import app
from densevl.errors import DensevlError, ImageError, ModelError, OptionError, OutputError, RecipeError
from densevl.images import find_images, read_image
from densevl.inference import WindowGrid, slide
from densevl.pipelines.features import extractor
from densevl.pipelines.feeding import feed
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import Extracting
from densevl.recipes import get

SCENE = PHOTOS.parent / "scenes" / "wood.png"
WHOLE = InferenceProtocol(short_side=48, crop=None)


@pytest.fixture(scope="module")
def tiny():
    return wrap(random_clip())


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, C) at another size, place by place, float64; pixels are centred at halves, borders repeated."""
    found = np.zeros((*size, values.shape[2]))
    for row in range(size[0]):
        for col in range(size[1]):
            y = min(max((row + 0.5) * values.shape[0] / size[0] - 0.5, 0), values.shape[0] - 1)
            x = min(max((col + 0.5) * values.shape[1] / size[1] - 0.5, 0), values.shape[1] - 1)
            for i in (int(y), int(y) + 1):
                for j in (int(x), int(x) + 1):
                    share = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                    if share:
                        found[row, col] += share * values[i, j]
    return found


def test_cells_are_unit_features_interpolated_at_their_centres(tiny) -> None:
    found = FeatureExtractor(tiny, "maskclip", stride=50, dtype="float32", protocol=WHOLE)(SCENE)
    pixels, _ = feed(read_image(SCENE), tiny, WHOLE)
    with torch.no_grad():
        unit = F.normalize(tiny.encode_dense(pixels, "maskclip").features[0].double(), dim=0).permute(1, 2, 0).numpy()
    want = bilinear(bilinear(unit, tuple(pixels.shape[2:])), (4, 4))
    close(found.features, want)
    assert found.pitch == (48.0, 48.0)
    assert found.grid()["first_centre"] == {"x": 24.0, "y": 24.0}


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 2e-6), ("float16", 1e-3)])
def test_words_score_as_by_the_sliding_protocol(tiny, dtype, bar) -> None:
    protocol = InferenceProtocol(short_side=None, crop=32, stride=16)
    rgb = read_image(SCENE)[:56, :72]
    extract = FeatureExtractor(tiny, "sclip", size=(14, 18), dtype=dtype, protocol=protocol)
    pixels, _ = feed(rgb, tiny, protocol)
    words = ["a cat", "a dog"]
    want = slide(tiny, pixels, words, recipe="sclip", crop=32, stride=16, size=(14, 18))[0]
    text = F.normalize(tiny.encode_text(words).float(), dim=-1)
    got = extract(rgb).features.astype(np.float32) @ text.numpy().T
    close(np.moveaxis(got, 2, 0), want, tolerance=bar, why="the bar that the page states")


def test_a_label_has_the_score_of_its_best_word(tiny) -> None:
    found = FeatureExtractor(tiny, "maskclip", size=3, protocol=WHOLE)(SCENE)
    one, two, both = (found.score(asked)[0] for asked in ("cat", "dog", ["cat | dog"]))
    close(both, np.maximum(one, two))


def test_a_layer_is_the_tokens_that_leave_its_block(tiny) -> None:
    pixels, _ = feed(read_image(SCENE), tiny, WHOLE)
    blocks = tiny.tower
    with torch.no_grad():
        x = blocks.embed(pixels, get("vanilla").position_rule)
        kept = [x] + [x := blocks.run(index, x, (6, 6)) for index in range(blocks.depth)]
    for layer, want in ((0, kept[0]), (3, kept[3]), (-1, kept[7]), (7, kept[7]), (-7, kept[1])):
        found = FeatureExtractor(tiny, layer=layer, size=6, dtype="float32", protocol=WHOLE)(SCENE)
        close(found.features, want[0, 1:].unflatten(0, (6, 6)))
    with pytest.raises(ModelError, match="cannot be compared with words"):
        found.score("cat")


def test_cells_of_a_patch_are_the_tokens_of_open_clip_itself(tmp_path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    sizes = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": sizes, "text_cfg": text}
    model = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**sizes), open_clip.CLIPTextCfg(**text)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    how = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": how}))
    save_file(
        {name: weights.contiguous() for name, weights in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    kept: list[torch.Tensor] = []
    for part in (model.visual.ln_pre, *model.visual.transformer.resblocks):
        part.register_forward_hook(lambda _, given, found: kept.append(found))
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        model.visual((pixels - 0.5) / 0.25)
        last = F.normalize(model.visual.ln_post(kept[-1][:, 1:]) @ model.visual.proj, dim=-1)
    build = {"dtype": "float32", "protocol": {"short_side": 32, "crop": 32}}
    for layer, want in enumerate(kept):
        found = FeatureExtractor(f"local-dir:{tmp_path}", layer=layer, **build)(rgb).features
        close(found, want[0, 1:].unflatten(0, (4, 4)), tolerance=1e-5, why="two programs' order of sums")
    found = FeatureExtractor(f"local-dir:{tmp_path}", "vanilla", **build)(rgb).features
    close(found, last[0].unflatten(0, (4, 4)), tolerance=1e-5, why="two programs' order of sums")
    close(np.linalg.norm(found, axis=-1), np.ones((4, 4)), tolerance=1e-5, why="float32")


@pytest.mark.parametrize("blend", ["pixel", "patch"])
@pytest.mark.parametrize("cells", [5, 9, 40])
def test_cells_are_read_at_their_centres_in_every_window_that_holds_them(tiny, blend, cells) -> None:
    windows = WindowGrid.place(40, 40, 16, 8, 8, blend)
    matrix = windows.plan(cells, cells, centres=True).rows.matrix.double().numpy()
    starts = windows.rows.starts
    for cell in range(cells):
        place = (cell + 0.5) * 40 / cells
        if blend == "pixel":  # a window ends where the next pixel's centre would be
            held = [i for i, start in enumerate(starts) if start <= max(place - 0.5, 0) < start + 16]
            want = np.zeros((len(starts), 2))
            for i in held:
                at = min(max((place - starts[i]) / 8 - 0.5, 0), 1)
                want[i] = np.array([1 - at, at]) / len(held)
        else:
            at = min(max(place / 8 - 0.5, 0), 4)
            tokens = np.array([max(0, 1 - abs(at - token)) for token in range(5)])
            holding = np.array([sum(start <= token * 8 < start + 16 for start in starts) for token in range(5)])
            want = np.array([[tokens[start // 8 + k] / holding[start // 8 + k] for k in (0, 1)] for start in starts])
        close(matrix[cell], want.ravel(), tolerance=1e-6, why="the plan is float32")


def test_scales_are_averaged(tiny) -> None:
    one, half, both = (
        FeatureExtractor(tiny, "maskclip", size=6, scales=scales, dtype="float32", protocol=WHOLE)(SCENE).features
        for scales in ((1,), (0.5,), (1, 0.5))
    )
    close(both.mean(axis=(0, 1)), ((one + half) / 2).mean(axis=(0, 1)), tolerance=0.05, why="read at tokens first")
    assert np.abs(both - one).max() > 0.01


def test_places_are_read_between_cells(tiny) -> None:
    found = FeatureExtractor(tiny, "maskclip", size=(3, 4), dtype="float32", protocol=WHOLE)(SCENE)
    down, across = found.pitch
    centres = np.array([[(j + 0.5) * across, (i + 0.5) * down] for i in range(3) for j in range(4)])
    close(found.at(centres), found.features.reshape(12, -1))
    close(found.at([[across, down]])[0], found.features[:2, :2].mean(axis=(0, 1)))
    close(found.at([[-9, -9], [1e4, 1e4]]), found.features[[0, 2], [0, 3]])
    assert found.at(np.zeros((0, 2))).shape == (0, 24)
    for odd in ([[np.nan, 1]], [[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4], np.zeros((2, 2, 2)), "x", [["a", "b"]], None):
        with pytest.raises(OptionError, match="places are"):
            found.at(odd)


@pytest.mark.parametrize("ending", ["npy", "safetensors", "zip"])
def test_files_hold_the_map(tiny, tmp_path, ending) -> None:
    if ending == "zip":
        pytest.importorskip("zarr", reason="zarr is not installed")
    found = FeatureExtractor(tiny, "maskclip", stride=64, protocol=WHOLE)(SCENE)
    paths = found.save(tmp_path / f"x.{ending}")
    assert [path.name for path in paths] == [f"x.{ending}", "x.json"]
    again = DenseMap.load(paths[0])
    assert (again.features.dtype, again.size) == (np.float16, (192, 192))
    assert (again.features == found.features).all()
    close(again.score("cat", model=tiny), found.score("cat"))
    with pytest.raises(ModelError, match="weights other than those of 'other'"):
        again.score("cat", model=wrap(random_clip(1), "other"))
    facts = json.loads(paths[1].read_text())
    facts["grid"]["rows"] += 1
    paths[1].write_text(json.dumps(facts))
    with pytest.raises(DensevlError, match="not what its JSON says"):
        DenseMap.load(paths[0])
    for change, said in (
        ({"dtype": "float32"}, "not what its JSON says"),
        ({"sha256": "0" * 64}, "match the checksum"),
    ):
        paths[1].write_text(json.dumps({**facts, "grid": found.grid(), **change}))
        with pytest.raises(DensevlError, match=said):
            DenseMap.load(paths[0])
    for name in (f".{ending}", f"{tmp_path}/.{ending}"):
        with pytest.raises(OutputError, match="give a name"):
            found.save(name)


def test_a_map_over_the_limit_names_the_stride_that_fits(tiny, monkeypatch) -> None:
    monkeypatch.setattr(extractor, "LARGEST", 20 * 20 * 24 * 2)
    with pytest.raises(ImageError, match=r"64x64 cells of 24 numbers .*take stride=10 \(--stride 10\)"):
        FeatureExtractor(tiny, "maskclip", stride=3)(SCENE)
    assert FeatureExtractor(tiny, "maskclip", stride=10)(SCENE).features.shape == (19, 19, 24)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"stride": 0}, OptionError, "a number of pixels of at least 1, or 'patch'"),
        ({"stride": 4, "size": 8}, OptionError, "both say how many"),
        ({"size": (0, 3)}, OptionError, "must be the number of cells"),
        ({"layer": 8}, OptionError, "7 blocks: 0 to 7"),
        ({"layer": True}, OptionError, "7 blocks"),
        ({"layer": 3, "recipe": "sclip"}, OptionError, "leave recipe out"),
        ({"layer": 3, "proxy": "mini-sam"}, OptionError, "leave proxy out"),
        ({"stride": np.float64(8)}, OptionError, "a number of pixels"),
        ({"size": np.int64(0)}, OptionError, "must be the number of cells"),
        ({"recipe": "cliper"}, RecipeError, "no features of its own"),
        ({"dtype": "int8"}, OptionError, "dtype is 'int8'"),
        ({"scales": (9,)}, DensevlError, "within 0.25..4"),
        ({"scales": 1}, OptionError, "scales"),
    ],
)
def test_what_cannot_be_is_refused(tiny, settings, error, said) -> None:
    with pytest.raises(error, match=said):
        FeatureExtractor(tiny, **settings)


def test_numbers_of_numpy_are_numbers(tiny) -> None:
    facts = FeatureExtractor(tiny, stride=np.int64(16), protocol=WHOLE).facts()
    assert (facts["stride"], type(facts["stride"])) == (16, int)
    assert FeatureExtractor(tiny, size=np.int32(3), protocol=WHOLE).facts()["size"] == [3, 3]
    assert FeatureExtractor(tiny, layer=np.int64(-1), protocol=WHOLE).facts()["layer"] == 7


def test_a_folder_goes_on_where_it_stopped(tmp_path) -> None:
    work = Extracting({"model": load_backbone("mini"), "stride": 48})
    found = find_images(SCENE.parent)
    report = to_files(work.task(), found, tmp_path / "out")
    assert (len(report.done), report.fresh, report.errors) == (3, 3, {})
    (tmp_path / "out" / "wood.npy").unlink()
    before = (tmp_path / "out" / "snow.npy").stat().st_mtime_ns
    assert to_files(work.task(), found, tmp_path / "out").fresh == 1
    assert (tmp_path / "out" / "snow.npy").stat().st_mtime_ns == before
    with pytest.raises(DensevlError, match=r"another run .*stride 48 -> 64"):
        to_files(Extracting({"model": load_backbone("mini"), "stride": 64}).task(), found, tmp_path / "out")


def test_the_command_writes_arrays_and_their_grid(tmp_path) -> None:
    given = ["features", str(SCENE), "--model", "mini", "--size", "4x6", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*given, "--format", "safetensors"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout.splitlines()[0])
    assert (row["grid"]["rows"], row["grid"]["columns"], row["grid"]["pitch"]) == (4, 6, {"x": 32.0, "y": 48.0})
    assert DenseMap.load(row["outputs"][1]).features.shape == (4, 6, 128)
