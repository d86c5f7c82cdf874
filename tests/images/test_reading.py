"""Arrays, label maps, folders and resizing; files themselves are in `attacks/`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attacks.pictures import encoded, grey_png, one_line, photo
from densevl.errors import DensevlError, ImageError
from densevl.images import encode_png, find_images, keep_ratio_size, list_images, read_image, read_labels, resize

# Arrays and tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "colour"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), (1, 2, 3, 255), np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), (1, 2, 3, 0), np.uint8), (255, 255, 255)),
        (np.full((2, 3), 65535, np.uint16), (255, 255, 255)),
        (np.full((2, 3), True), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5, np.float64), (128, 128, 128)),
        (np.full((2, 3, 3), 1.0005, np.float32), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5, np.float16), (128, 128, 128)),
        (np.full((4, 6, 3), 9, np.uint8)[::2, ::-2], (9, 9, 9)),
        (torch.full((3, 2, 3), 7, dtype=torch.uint8), (7, 7, 7)),
        (torch.full((1, 2, 3), 7, dtype=torch.uint8), (7, 7, 7)),
        (torch.full((2, 3), 0.5), (128, 128, 128)),
        (torch.full((3, 2, 3), 0.5, dtype=torch.bfloat16, requires_grad=True), (128, 128, 128)),
        (torch.ones((2, 3), dtype=torch.bool), (255, 255, 255)),
        (Image.new("RGB", (3, 2), (1, 2, 3)), (1, 2, 3)),
    ],
    ids=lambda given: str(getattr(given, "dtype", type(given).__name__)),
)
def test_arrays_tensors_and_pillow_images_are_taken(array: object, colour: tuple[int, int, int]) -> None:
    rgb = read_image(array)
    assert rgb.shape == (2, 3, 3)
    assert rgb.flags.c_contiguous
    assert (rgb == colour).all()


@pytest.mark.parametrize(
    ("source", "way_out"),
    [
        (np.zeros((2, 3, 3)) + 200.0, "divide by 255"),
        (np.zeros((2, 3, 3)) - 1.5, "normalisation"),
        (np.full((2, 3), np.nan), "NaN"),
        (np.full((2, 3), np.inf), "infinite"),
        (np.zeros((0, 3, 3), np.uint8), "at least one pixel"),
        (np.zeros((3, 20, 30), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((20, 30, 2), np.uint8), "(H, W, 3)"),
        (np.zeros((1, 20, 30, 3), np.uint8), "one by one"),
        (np.zeros(5, np.uint8), "(H, W)"),
        (np.zeros((), np.uint8), "(H, W)"),
        (np.zeros((2, 3, 3), np.int64), "astype"),
        (np.zeros((2, 3, 3), complex), "uint8"),
        (np.array([["a"]]), "uint8"),
        (torch.zeros(20, 30, 3), "permute(2, 0, 1)"),
        (torch.zeros(1, 3, 20, 30), "one by one"),
        (torch.zeros(3, 0, 30), "at least one pixel"),
        (torch.zeros(3, 2, 3, dtype=torch.complex64), "uint8"),
        ([np.zeros((2, 3, 3))], "one image at a time"),
        (None, "a path"),
        (3, "a path"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_wrong_array_is_refused_with_the_way_out(source: object, way_out: str) -> None:
    with pytest.raises(ImageError) as error:
        read_image(source)
    assert way_out in one_line(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # two of the kinds are deprecated or in prototype
@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda x: x.to_sparse(), "is sparse_coo: give a dense tensor"),
        (lambda x: x.to("meta"), "is meta"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), r"is quantized.*dequantize\(\)"),
        (lambda x: torch.nested.nested_tensor([x[0]]), "is nested"),
    ],
    ids=["sparse", "meta", "quantized", "nested"],
)
def test_a_tensor_without_plain_values_is_refused(make: Callable[[torch.Tensor], torch.Tensor], way_out: str) -> None:
    with pytest.raises(ImageError, match=way_out):
        read_image(make(torch.zeros(3, 2, 3)))


def test_the_result_shares_no_memory_with_a_video_buffer() -> None:
    buffer = photo()
    rgb = read_image(buffer)
    buffer[:] = 0
    assert rgb.max() > 0


def test_importing_the_reader_pulls_neither_torch_nor_opencv() -> None:
    code = "import sys, densevl.images, densevl.results; print({'torch', 'cv2', 'supervision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Label maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["P", "L", "I;16", "TIFF"])
def test_label_ids_survive(tmp_path: Path, kind: str) -> None:
    ids = np.arange(12).reshape(3, 4) * (20 if kind != "I;16" else 3000)
    picture = Image.fromarray(ids.astype(np.uint16 if kind == "I;16" else np.uint8))
    if kind == "P":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    path = tmp_path / "labels"
    picture.save(path, format="TIFF" if kind == "TIFF" else "PNG")
    labels = read_labels(path)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_ids_of_few_bits_are_not_stretched_to_grey(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "labels.png"
    packed = sum((index % 2**bits) << (8 - bits - index * bits) for index in range(8 // bits))
    path.write_bytes(grey_png(8 // bits, 1, bits, bytes([0, packed])))
    assert read_labels(path).tolist() == [[index % 2**bits for index in range(8 // bits)]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_is_no_label_map(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(photo(), kind))
    with pytest.raises(ImageError) as error:
        read_labels(path)
    assert "photo" in one_line(error)


# Folders -------------------------------------------------------------------------------------------------------------


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


def test_a_folder_gives_its_images_with_all_below_it_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("densevl.images.listing.reads_heif", lambda: False)
    names = ["b.JPG", "a.png", "._a.png", "notes.txt", "deep/c.png", "folder.png/x.jpg", ".hidden/y.jpg", "z.heic"]
    _touch(tmp_path, *names, "out/r.png", "old/r.png", "old/densevl.json")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for link in ("back", "again"):
        (tmp_path / "deep" / link).symlink_to(tmp_path)
    found = find_images(tmp_path, skip=tmp_path / "out")
    seen = [os.path.relpath(path, tmp_path) for path in found.paths]
    assert seen == ["a.png", "b.JPG", "deep/c.png", "folder.png/x.jpg"]
    assert found.folders == ("", "", "deep", "folder.png")
    told = (
        "1 .txt, 2 broken links, 1 folder of results, 1 hidden file, 1 hidden folder, 2 links to a folder that is taken"
    )
    assert found.told == f'{told}, 1 of HEIC (pip install "densevl[heif]")'
    for link in ("back", "again"):
        (tmp_path / "deep" / link).unlink()
    given = tmp_path / "odd.extension"
    assert list_images([given, tmp_path / "deep"]) == [given, tmp_path / "deep" / "c.png"]


def test_patterns_and_lists_name_images_and_a_photo_named_twice_is_taken_once(tmp_path: Path, monkeypatch) -> None:
    _touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/[3].jpg", "b/4.png")
    (tmp_path / "a" / "list.txt").write_text("1.jpg\n\nb/4.png\nnowhere.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert find_images("*/?.*").paths == ("a/1.jpg", "a/2.jpg", "b/4.png")
    assert find_images("a/[3].jpg").paths == ("a/[3].jpg",)
    assert find_images(["a/list.txt", tmp_path / "b" / "4.png"]).paths == ("a/1.jpg", "b/4.png", "nowhere.jpg")
    with pytest.raises(ImageError, match="no file matches"):
        find_images("*.jpg")
    (tmp_path / "latin.txt").write_bytes(b"\xe4.jpg")
    with pytest.raises(ImageError, match="list of paths"):
        find_images("latin.txt")


@pytest.mark.parametrize("paths", [[], ["."]], ids=["nothing given", "a folder without images"])
def test_no_images_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="no images in"):
        list_images(paths)


# Resizing ------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 70)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
def test_resize_agrees_with_torch(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = resize(rgb, (new_height, new_width))
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.interpolate(tensor, (new_height, new_width), mode="bilinear", align_corners=False)
    assert ours.shape == (new_height, new_width, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 0.51


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
def test_resize_agrees_with_opencv(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    theirs = cv2.resize(rgb, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(rgb, (new_height, new_width)).astype(int) - theirs).max() <= 1


def test_resize_of_a_large_photo_agrees_with_opencv_and_is_fast() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        small = resize(rgb, keep_ratio_size(2000, 3000, 336, 2048))
        seconds.append(time.perf_counter() - start)
    assert small.shape == (336, 504, 3)
    assert min(seconds) < 0.05
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    assert np.abs(small.astype(int) - cv2.resize(rgb, (504, 336))).max() <= 1


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (np.zeros((2, 2, 3), np.float32), (4, 4)),
        (np.zeros((2, 2), np.uint8), (4, 4)),
        (np.zeros((0, 2, 3), np.uint8), (4, 4)),
        (np.zeros((2, 2, 3), np.uint8), (0, 4)),
    ],
)
def test_resize_refuses_what_it_cannot_mean(array: np.ndarray, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError):
        resize(array, size)


@pytest.mark.parametrize(
    ("given_size", "box", "expected"),
    [
        ((375, 500), (336, 2048), (336, 448)),
        ((500, 375), (336, 2048), (448, 336)),
        ((1024, 2048), (560, 2048), (560, 1120)),
        ((100, 3000), (336, 2048), (68, 2048)),
        ((333, 500), (336, 2048), (336, 505)),
        ((1, 20_000), (336, 2048), (1, 2048)),
        ((1, 1), (336, 2048), (336, 336)),
    ],
)
def test_keep_ratio_size_follows_mmcv(given_size: tuple[int, int], box: tuple[int, int], expected: object) -> None:
    assert keep_ratio_size(*given_size, *box) == expected


def test_keep_ratio_size_refuses_an_empty_image() -> None:
    with pytest.raises(DensevlError):
        keep_ratio_size(0, 5, 336, 2048)


def test_encode_png_is_lossless() -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(photo())))), photo())
