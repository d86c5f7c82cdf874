"""Points in space: where cameras see them, a coloured cube by six cameras, a posed picture, clouds and their files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import PHOTOS, close
from densevl import DenseMap, FeatureExtractor, PointLabeller, View
from densevl.cli import app
from densevl.errors import DatasetError, DensevlError, ImageError, ModelError, OptionError
from densevl.images import read_image
from densevl.pipelines.points import labeller
from densevl.pipelines.points.cameras import read_views
from densevl.pipelines.points.clouds import read_cloud

SIDE = 48
MATRIX = np.array([[60.0, 0, SIDE / 2], [0, 60.0, SIDE / 2], [0, 0, 1]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])
AXES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
SCENE = PHOTOS.parent / "scenes" / "wood.png"


def looking(axis: np.ndarray, convention: str) -> np.ndarray:
    """Camera to world of a camera at 3 on an axis, looking at the origin."""
    ahead = -axis.astype(float)
    right = np.cross(ahead, [0.0, 0, 1] if axis[2] == 0 else [0.0, 1, 0])
    up = np.cross(right, ahead)
    columns = [right, up, -ahead] if convention == "opengl" else [right, -up, ahead]
    return np.column_stack([*columns, 3.0 * axis])


def cube_view(axis: np.ndarray, convention: str = "opengl", **depth: object) -> View:
    """Colours and depth of the cube -1..1 by rays through pixel centres, from the box's own equations."""
    pose = looking(axis, "opencv")
    rgb, far = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE))
    for row in range(SIDE):
        for col in range(SIDE):
            ray = pose[:, :3] @ [(col + 0.5 - SIDE / 2) / 60, (row + 0.5 - SIDE / 2) / 60, 1.0]
            with np.errstate(divide="ignore"):
                ends = np.sort(np.stack([(-1 - pose[:, 3]) / ray, (1 - pose[:, 3]) / ray]), axis=0)
            enter = int(ends[0].argmax())
            if ends[0].max() < ends[1].min():
                face = 2 * enter + int(ray[enter] > 0)
                rgb[row, col], far[row, col] = COLOURS[face], ends[0].max()  # rays have z = 1: their length is depth
    return View(rgb, MATRIX, looking(axis, convention), convention, **{"depth": far, **depth})


def plain(rgb: object) -> DenseMap:
    """A map whose features are the colours."""
    return DenseMap(np.asarray(rgb, np.float32) / 255, (SIDE, SIDE), {"layer": None})


def gather(points: np.ndarray, views: list[View]) -> tuple[np.ndarray, np.ndarray]:
    class Colours(SimpleNamespace):
        def __call__(self, image: object) -> DenseMap:
            return plain(image)

    return PointLabeller(Colours(layer=None, width=3)).gather(points, views)


def cube_points(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Points on the faces, away from the edges, and the face of each."""
    faces = np.random.default_rng(0).integers(0, 6, count)
    points = np.random.default_rng(1).uniform(-0.8, 0.8, (count, 3))
    points[np.arange(count), faces // 2] = np.where(faces % 2, -1, 1)
    return points, faces


@pytest.mark.parametrize("convention", ["opengl", "opencv"])
def test_a_cube_has_the_colours_of_its_faces(convention) -> None:
    points, faces = cube_points()
    sums, seen = gather(points, [cube_view(axis, convention) for axis in AXES])
    assert (seen == 1).all(), "each face is seen by one camera, the others see it edge on or from behind"
    close(sums, (COLOURS[faces] / 255).astype(np.float32))


def test_what_is_hidden_is_not_seen() -> None:
    points, faces = cube_points()
    sums, seen = gather(points, [cube_view(AXES[0])])
    assert (seen == (faces == 0)).all()
    assert not sums[faces != 0].any()
    _, everywhere = gather(points, [cube_view(AXES[0], depth=None)])
    assert everywhere[faces == 1].all(), "without depth the far side is seen through the near one"


def test_depth_in_millimetres_and_at_half_the_size_is_read() -> None:
    points, faces = cube_points()
    far = np.round(cube_view(AXES[0]).depth * 1000).astype(np.uint16)
    for depth, scale in ((far, None), (far[::2, ::2], None), (far.astype(np.float32), 1e-3)):
        _, seen = gather(points, [cube_view(AXES[0], depth=depth, depth_scale=scale)])
        assert (seen == (faces == 0)).mean() > 0.99
    assert not gather(points, [cube_view(AXES[0], depth=far.astype(np.float32))])[1].any(), "the wrong unit"


def test_a_lens_moves_points_as_opencv_does() -> None:
    cv2 = pytest.importorskip("cv2")
    points = np.random.default_rng(0).uniform((-0.5, -0.5, 2), (0.5, 0.5, 4), (50, 3))
    lens = (0.1, -0.03, 0.002, -0.001, 0.01)
    view = View(None, MATRIX, np.eye(4), "opencv", distortion=lens)
    places, z, _ = view.project(points, (SIDE, SIDE))
    want, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), MATRIX, np.array(lens))
    close(places, want[:, 0])
    close(z, points[:, 2])
    short = View(None, MATRIX, np.eye(4), "opencv", distortion=np.array(lens[:4])[:, None])
    close(
        short.project(points, (SIDE, SIDE))[0],
        cv2.projectPoints(points, np.zeros(3), np.zeros(3), MATRIX, np.array(lens[:4]))[0][:, 0],
    )
    folded = View(None, MATRIX, np.eye(4), "opencv", distortion=(-0.5, 0, 0, 0, 0))
    assert not folded.project(np.array([[1.4, 0, 1.0]]), (SIDE, SIDE))[2].any(), "beyond its rim the model folds back"


@pytest.fixture
def posed(tmp_path):
    """A picture standing at depth 2 before one camera, a point a pixel of it, and the files that say so."""
    rgb = read_image(SCENE)
    height, width = rgb.shape[:2]
    Image.fromarray(rgb).save(tmp_path / "r_0.png")
    np.save(tmp_path / "depth.npy", np.full((height, width), 2.0, np.float32))
    frame = {"file_path": "./r_0", "depth_file_path": "depth.npy", "transform_matrix": np.eye(4).tolist()}
    content = {"camera_angle_x": 2 * np.arctan(0.5 * width / 150), "frames": [frame]}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    rows, cols = np.mgrid[4:height:8, 4:width:8].reshape(2, -1) + 0.5
    points = np.stack([(cols - width / 2) / 75, -(rows - height / 2) / 75, np.full(len(rows), -2.0)], axis=1)
    behind = points[:1] * 1.5
    np.save(tmp_path / "cloud.npy", np.concatenate([points, behind]))
    return tmp_path, np.stack([cols, rows], axis=1)


def test_points_of_a_picture_have_its_labels(posed) -> None:
    folder, places = posed
    extract = FeatureExtractor("mini", stride=4, dtype="float32")
    asked = ["penguin", "mushroom", "aeroplane"]
    found = PointLabeller(extract)(folder / "cloud.npy", read_views(folder), asked)
    scores = extract(SCENE).at(places) @ extract(SCENE).text.encode(labeller.LabelSet.parse(asked)).vectors.numpy().T
    assert (found.labels[:-1] == scores.argmax(axis=1)).all()
    assert set(found.labels[:-1]) == {0, 1, 2}
    assert (found.labels[-1], found.seen[-1], found.confidence[-1]) == (-1, 0, 0)
    assert found.warnings == ()


def test_the_command_writes_points_with_labels_and_leaves_the_cloud(posed) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
    folder, _ = posed
    cloud = folder / "cloud.ply"
    where = np.load(folder / "cloud.npy")
    trimesh.PointCloud(where).export(cloud)
    before = cloud.read_bytes()
    given = ["points", str(cloud), "--views", str(folder), "--labels", "penguin,mushroom", "--model", "mini"]
    done = CliRunner().invoke(app, [*given, "--features", "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert cloud.read_bytes() == before
    written = read_cloud(folder / "out" / "cloud.ply")
    close(written, where.astype(np.float32), tolerance=1e-6, why="the cloud itself has float32")
    told = json.loads((folder / "out" / "cloud.json").read_text())
    assert (told["points"], told["seen"], told["counts"]["nothing"]) == (len(where), len(where) - 1, 1)
    assert np.load(folder / "out" / "cloud.npy").shape == (len(where), 128)
    done = CliRunner().invoke(app, [*given, "--overwrite", "--out", str(folder)])
    assert (done.exit_code, "one of the inputs" in done.stderr) == (4, True)
    assert cloud.read_bytes() == before


def test_a_mesh_keeps_its_vertices_as_they_stand(tmp_path) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    rows = ["0 0 0", "1 0 0", "0 1 0", "0 0 0", "5 5 5"]
    head = "ply\nformat ascii 1.0\nelement vertex 5\nproperty double x\nproperty double y\nproperty double z\n"
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "mesh.ply").write_text(head + faces + "\n".join([*rows, "3 0 1 2"]) + "\n")
    want = np.array([row.split() for row in rows], float)
    assert (read_cloud(tmp_path / "mesh.ply") == want).all(), "neither merged nor dropped"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"matrix": np.eye(4)}, OptionError, "camera matrix"),
        ({"pose": np.eye(2)}, OptionError, "a pose must be"),
        ({"pose": np.eye(4) * 2}, OptionError, "must be a rotation"),
        ({"convention": "colmap"}, OptionError, "opengl, opencv"),
        ({"matrix": "x"}, OptionError, "camera matrix"),
        ({"matrix": MATRIX.T}, OptionError, "camera matrix"),
        ({"pose": [["a"] * 4] * 4}, OptionError, "a pose"),
        ({"distortion": (np.nan, 0, 0, 0, 0)}, OptionError, "distortion is"),
        ({"distortion": (0.1,) * 8}, OptionError, "other lenses"),
        ({"distortion": "x"}, OptionError, "distortion"),
        ({"depth_scale": 0}, OptionError, "above 0"),
        ({"depth_scale": -1}, OptionError, "above 0"),
        ({"depth_scale": np.nan}, OptionError, "above 0"),
        ({"depth_scale": "0.1"}, OptionError, "above 0"),
        ({"size": (0, 3)}, OptionError, "size is"),
        ({"size": 5}, OptionError, "size is"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(change, error, said) -> None:
    with pytest.raises(error, match=said):
        View(**{"image": None, "matrix": MATRIX, "pose": np.eye(4), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "undistort"),
        ({"frames": []}, "no frames"),
        ({"frames": [{}]}, "damaged"),
        ({"frames": [{"file_path": "gone", "transform_matrix": np.eye(4).tolist()}], "w": 8, "h": 8}, "not there"),
        ({"depth_unit_scale_factor": -1}, "above 0"),
        ({"w": 0, "h": 0}, "both above 0"),
        ({"k4": 0.5}, "k4"),
        ({"k6": "0.5"}, "k6"),
    ],
)
def test_a_file_of_views_that_cannot_be_used_is_one_line(posed, change, said) -> None:
    folder, _ = posed
    content = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(DensevlError, match=said):
        read_views(folder / "transforms.json")


def test_a_photo_that_was_turned_is_not_that_of_its_camera() -> None:
    with pytest.raises(ImageError, match="turned or cropped"):
        View("a.jpg", MATRIX, np.eye(4), size=(30, 40)).project(np.zeros((1, 3)), (40, 30))


@pytest.mark.parametrize(
    ("cloud", "said"),
    [
        (np.zeros((0, 3)), "at least one"),
        (np.zeros((3, 2)), r"\(N, 3\)"),
        (np.full((2, 3), np.nan), "2 points"),
        (np.zeros((192, 192)), "not a depth map"),
        (np.zeros((3, 500)), "transpose"),
    ],
)
def test_clouds_that_cannot_be_used_are_refused(cloud, said) -> None:
    with pytest.raises(DatasetError, match=said):
        read_cloud(cloud)


def test_more_points_than_fit_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(labeller, "LARGEST", 100)
    with pytest.raises(DatasetError, match="thin the cloud to 8 points"):
        gather(np.zeros((9, 3)), [])


def test_layers_and_tolerances_that_cannot_be_are_refused() -> None:
    with pytest.raises(ModelError, match="leave layer out"):
        PointLabeller(SimpleNamespace(layer=3))
    for tolerance in (0, np.nan, "0.1"):
        with pytest.raises(OptionError, match="above 0"):
            PointLabeller(SimpleNamespace(layer=None), tolerance=tolerance)
    with pytest.raises(OptionError, match="a FeatureExtractor"):
        PointLabeller("mini")


def test_views_are_any_views_and_nothing_else(posed) -> None:
    folder, _ = posed
    label, views = PointLabeller(FeatureExtractor("mini", stride=48)), read_views(folder)
    cloud, asked = folder / "cloud.npy", ["penguin", "mushroom"]
    assert (label(cloud, (view for view in views), asked).labels == label(cloud, views, asked).labels).all()
    for odd, said in ((views[0], "one View"), ("transforms.json", "str"), (None, "NoneType"), ([1], "int")):
        with pytest.raises(OptionError, match=said):
            label(cloud, odd, asked)
    with pytest.raises(DatasetError, match="no views"):
        label(cloud, [], asked)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["file", "PIL"])
def test_a_camera_is_that_of_the_pixels_as_they_are_stored(tmp_path, turn, kind) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    photo = tmp_path / "a.png" if kind == "file" else Image.open(tmp_path / "a.png")
    assert (View(photo, MATRIX, np.eye(4)).photo() == rgb).all()
    assert (read_image(photo) == rgb).all() == (turn == 1), "elsewhere photos are turned upright"


def test_places_outside_the_mask_are_not_used(posed) -> None:
    folder, places = posed
    mask = np.full((96, 96), 255, np.uint8)
    mask[:, :48] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][0] |= {"mask_path": "mask.png", "depth_file_path": ""}
    (folder / "transforms.json").write_text(json.dumps(content))
    view = read_views(folder)[0]
    assert view.depth is None, "an empty name is none"
    assert (view.usable(places, (192, 192)) == (places[:, 0] >= 96)).all()
    found = PointLabeller(FeatureExtractor("mini", stride=48))(folder / "cloud.npy", [view], "penguin")
    assert (found.seen[:-1] == (places[:, 0] >= 96)).all()
    (folder / "mask.png").unlink()
    with pytest.raises(DatasetError, match="mask cannot be read"):
        view.usable(places, (192, 192))


def test_depth_in_floats_of_a_tiff_is_read(tmp_path) -> None:
    far = np.random.default_rng(0).uniform(1, 3, (5, 4)).astype(np.float32)
    Image.fromarray(far).save(tmp_path / "far.tiff")
    places = np.stack(np.meshgrid(np.arange(4) + 0.5, np.arange(5) + 0.5), axis=-1).reshape(-1, 2)
    close(View(None, MATRIX, np.eye(4), depth=tmp_path / "far.tiff").depths(places, (5, 4)), far.ravel())


def test_labels_of_another_run_are_not_replaced(posed) -> None:
    folder, _ = posed
    given = ["points", str(folder / "cloud.npy"), "--views", str(folder), "--model", "mini", "--stride", "48"]
    given += ["--out", str(folder / "out"), "--labels"]

    def run(*more: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*given, *more])
        return done.exit_code, done.stderr

    assert run("penguin,mushroom")[0] == 0
    before = (folder / "out" / "cloud.ply").read_bytes()
    assert run("penguin,mushroom") == (0, ""), "the same run again"
    for more, said in ((["zebra"], "labels"), (["penguin,mushroom", "--tolerance", "0.2"], "tolerance 0.05 -> 0.2")):
        code, told = run(*more)
        assert (code, said in told, "another run" in told) == (4, True, True), told
    np.save(folder / "cloud.npy", np.load(folder / "cloud.npy")[:9])
    assert run("penguin,mushroom")[0] == 4, "another cloud of the name"
    assert (folder / "out" / "cloud.ply").read_bytes() == before
    assert run("zebra", "--overwrite")[0] == 0
