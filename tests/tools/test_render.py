"""The renderer without npm or a network: sprites are plain discs and boxes handed to `SpriteBook`."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

cv2 = pytest.importorskip("cv2", reason="OpenCV cannot be imported (apt-get install libgl1)", exc_type=ImportError)

from densevl.errors import DensevlError, OutputError
from tools.render import art, augment, benchmark, captions, grounds, materials
from tools.render.__main__ import main
from tools.render.nouns import BENCHMARK_NOUNS, all_nouns, is_held_out, listed, with_article
from tools.render.scenes import OVERLAP_CAP, Scene, SceneMaker, place
from tools.render.sprites import SpriteBook, level_for, mipmaps
from tools.render.surfaces import TRAIN_DEFECTS, SurfaceMaker, damage, solid_textures
from tools.render.textures import UNNAMED, TextureBook, all_textures, make_variant
from tools.unseen_materials import PATTERNS

ART = Path(os.environ.get("DENSEVL_CACHE") or Path.home() / ".cache" / "densevl") / "art"
TINY = benchmark.Plan(size=32, scenes=4, single=1, references=1, flawless=1, damaged=1, seed=7)


def colour_of(noun: int) -> np.ndarray:
    """A colour for each noun: uint8 (3,)."""
    return np.random.default_rng(noun).integers(30, 226, 3).astype(np.uint8)


def disc_or_box(noun: int, side: int = 40) -> np.ndarray:
    """One opaque shape of one colour: discs for even nouns, boxes for odd ones."""
    mask = np.zeros((side, side), np.uint8)
    if noun % 2:
        mask[side // 8 : -side // 8] = 255
    else:
        cv2.circle(mask, (side // 2, side // 2), side // 2 - 1, 255, -1)
    return np.concatenate([(mask[..., None] > 0) * colour_of(noun), mask[..., None]], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def book() -> SpriteBook:
    return SpriteBook({(noun, style): [disc_or_box(noun)] for noun in range(24) for style in ("a", "b")})


def maker(book: SpriteBook, **changes: object) -> SceneMaker:
    return SceneMaker(32, **{"styles": book, "seed": 3, "augment": False} | changes)


def same(first: Scene, second: Scene) -> bool:
    arrays = ("image", "objects", "instances")
    return first.caption == second.caption and all(
        np.array_equal(getattr(first, a), getattr(second, a)) for a in arrays
    )


def held_out(scene: Scene) -> bool:
    """Whether a scene shows a held-out pair."""
    nouns = sorted({all_nouns()[n].name for n in scene.nouns})
    ground = [all_textures()[scene.texture].name] if scene.texture != UNNAMED else []
    pairs = [(a, b) for a in nouns for b in [*nouns, *ground] if a != b]
    return any(is_held_out(a, b) for a, b in pairs)


# Scenes


@pytest.mark.parametrize("changed", [{}, {"augment": True}, {"tiles": 2}], ids=str)
def test_the_seed_alone_decides_the_pixels(book: SpriteBook, changed: dict) -> None:
    first, again, other = (maker(book, seed=s, **changed) for s in (3, 3, 4))
    assert all(same(first.scene(), again.scene()) for _ in range(4))
    assert not same(first.scene(), other.scene())


def test_a_saved_generator_resumes_where_it_stopped(book: SpriteBook) -> None:
    first, fresh = maker(book, augment=True), maker(book, augment=True)
    for _ in range(3):
        first.scene()
    fresh.rng.bit_generator.state = first.rng.bit_generator.state
    assert same(first.scene(), fresh.scene())


@pytest.mark.parametrize(("wanted", "expected"), [(False, {False}), (True, {True}), (None, {False, True})])
def test_held_out_pairs_never_reach_training_and_always_reach_their_test(
    book: SpriteBook, wanted: bool | None, expected: set[bool]
) -> None:
    scenes = maker(book, held_out=wanted)
    assert {held_out(scenes.scene()) for _ in range(120)} == expected


def test_a_tenth_of_all_pairs_is_held_out_in_either_order() -> None:
    names = [n.name for n in all_nouns()]
    pairs = [is_held_out(a, b) for a in names for b in names if a < b]
    assert 0.06 < np.mean(pairs) < 0.14
    assert all(is_held_out(a, b) == is_held_out(b, a) for a in names[:9] for b in names[:9])


@pytest.mark.parametrize("changed", [{}, {"augment": True}, {"tiles": 2}], ids=str)
def test_the_three_descriptions_of_a_scene_agree(book: SpriteBook, changed: dict) -> None:
    scenes = maker(book, **changed)
    for _ in range(12):
        s = scenes.scene()
        side = 32 * scenes.tiles
        assert s.image.shape == (side, side, 3)
        assert s.image.dtype == np.uint8
        assert s.objects.dtype == s.instances.dtype == np.int16
        inside = s.instances >= 0
        assert np.array_equal(s.objects, np.where(inside, np.array([*s.nouns, -1])[s.instances], -1))
        assert set(np.unique(s.instances[inside])) == set(range(len(s.nouns)))
        assert s.defect is None


def test_masks_lie_on_the_pixels_of_their_object(book: SpriteBook) -> None:
    scenes = maker(book)
    for _ in range(20):
        s = scenes.scene()
        for number, noun in enumerate(s.nouns):
            mask = (s.instances == number).astype(np.uint8)
            inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
            assert np.abs(s.image[inner].astype(int) - colour_of(noun)).max(initial=0) <= 2


def test_background_pixels_are_the_texture_untouched(book: SpriteBook) -> None:
    scenes = maker(book, objects=(1, 1))
    scenes.textures.crop = lambda *_: np.full((32, 32, 3), 200, np.uint8)  # type: ignore[method-assign]
    s = scenes.scene()
    near = cv2.dilate((s.instances >= 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert (s.image[~near] == 200).all()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_boxes_stay_inside_and_under_the_overlap_cap(count: int) -> None:
    rng = np.random.default_rng(count)
    placed = 0
    for _ in range(60):
        boxes = rng.integers(10, 30, (count, 2))
        corners = place(rng, 64, [tuple(b) for b in boxes])
        if corners is None:
            continue
        placed += 1
        ends = corners + boxes
        assert corners.min() >= 0
        assert ends.max() <= 64
        for i in range(count):
            for j in range(i):
                shared = np.clip(np.minimum(ends[i], ends[j]) - np.maximum(corners[i], corners[j]), 0, None).prod()
                assert shared <= OVERLAP_CAP * min(boxes[i].prod(), boxes[j].prod())
    assert placed >= 10


def test_large_scenes_hold_four_times_the_objects_at_the_same_size(book: SpriteBook) -> None:
    counts, sizes = {}, {}
    for tiles in (1, 2):
        scenes = maker(book, tiles=tiles, objects=(2, 2), held_out=None)
        made = [scenes.scene() for _ in range(12)]
        counts[tiles] = {len(s.nouns) for s in made}
        sizes[tiles] = np.mean([np.count_nonzero(s.instances >= 0) / len(s.nouns) for s in made])
    assert counts == {1: {2}, 2: {8}}
    assert sizes[2] == pytest.approx(sizes[1], rel=0.2)


def test_a_single_object_is_the_one_asked_for(book: SpriteBook) -> None:
    assert all(maker(book).single(n).nouns == (n,) for n in range(20))


def test_no_objects_means_a_bare_texture(book: SpriteBook) -> None:
    s = maker(book, objects=(0, 0)).scene()
    assert (s.objects == -1).all()
    assert s.nouns == ()


def test_drawings_that_show_nothing_are_an_error_not_an_endless_loop() -> None:
    empty = SpriteBook({(0, "a"): [np.zeros((8, 8, 4), np.uint8)]})
    with pytest.raises(DensevlError, match="dog"):
        maker(empty, objects=(1, 1)).scene()


# Drawings and their changes


def test_restyled_sprites_stay_premultiplied(book: SpriteBook) -> None:
    rng = np.random.default_rng(0)
    for noun in range(20):
        for _ in range(10):
            tile = augment.restyle(augment.warp(book.draw(noun, rng), rng, 30, True), rng)
            assert tile.min() >= -1e-3
            assert (tile[..., :3] <= tile[..., 3:] + 1e-2).all()
            assert tile[..., 3].max() <= 255


@pytest.mark.parametrize(("longest", "expected"), [(100, 40), (40, 40), (21, 40), (20, 20), (3, 20)])
def test_a_sprite_is_never_enlarged_from_a_mipmap_below_it(longest: int, expected: int) -> None:
    assert max(level_for(mipmaps(disc_or_box(1)), longest).shape[:2]) == expected


@pytest.mark.parametrize("texture", range(len(all_textures())), ids=[t.name for t in all_textures()])
def test_textures_are_repeatable_various_and_not_flat(texture: int) -> None:
    first, again, other = (make_variant(texture, seed, 48, 1.0) for seed in (1, 1, 2))
    assert first.shape == (48, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std((0, 1)).max() > 1


@pytest.mark.parametrize("name", [s.__name__ for s in grounds.STRUCTURES])
@pytest.mark.parametrize("unit", [1.0, 1.5])
def test_a_structure_without_a_name_is_various_and_stays_near_its_range(name: str, unit: float) -> None:
    drawn = [getattr(grounds, name)(np.random.default_rng(seed), 48, unit) for seed in range(12)]
    assert all(one.shape == (48, 48) and np.isfinite(one).all() for one in drawn)
    assert np.percentile(drawn, [2, 98]) == pytest.approx([0, 1], abs=0.35)
    assert len({one.tobytes() for one in drawn}) == 12


def test_textures_without_a_name_are_repeatable_and_of_many_colours() -> None:
    drawn = [make_variant(UNNAMED, seed, 48, 1.0) for seed in range(40)]
    assert np.array_equal(drawn[3], make_variant(UNNAMED, 3, 48, 1.0))
    means = np.array([one.mean((0, 1)) for one in drawn])
    assert means.std(0).min() > 30
    assert np.ptp(means.max(1) - means.min(1)) > 60, "grey ones and strong ones"


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_for_the_test_are_like_no_texture_of_training(name: str) -> None:
    make = PATTERNS[name]
    trained = [t.make for t in all_textures()] + [getattr(grounds, s.__name__) for s in grounds.STRUCTURES]
    assert make not in trained
    assert make.__name__ not in {*vars(materials), *vars(grounds)}
    first, again, other = (make(np.random.default_rng(seed), 64, 1.0) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.clip(first, 0, 1).std((0, 1)).max() > 0.01


def test_scenes_without_a_named_texture_say_no_place_and_others_stay_as_they_were(book: SpriteBook) -> None:
    scenes = maker(book, unnamed=0.5, objects=(1, 2))
    made = [scenes.scene() for _ in range(60)]
    places = [place for texture in all_textures() for place in texture.places]
    for scene in made:
        assert (scene.texture == UNNAMED) == (not scene.caption.endswith(tuple(places)))
        assert scene.caption == scene.caption.strip()
        assert not held_out(scene)
    assert 15 < sum(scene.texture == UNNAMED for scene in made) < 45
    surfaces = SurfaceMaker(32, seed=0, unnamed=1.0)
    assert {surfaces.surface().texture for _ in range(5)} == {UNNAMED}
    assert "surface" in surfaces.of(UNNAMED, "hole").caption


def test_a_twin_on_another_texture_has_its_objects_at_the_same_places(book: SpriteBook) -> None:
    first, second = maker(book), maker(book)
    second.textures = TextureBook(32, 1, free=PATTERNS["rings"])
    for number in range(8):
        first.rng, second.rng = np.random.default_rng(number), np.random.default_rng(number)
        one, other = first.of([2, 5], 4), second.of([2, 5], UNNAMED)
        assert np.array_equal(one.instances, other.instances)
        assert not np.array_equal(one.image, other.image)


def test_a_crop_never_writes_into_its_texture() -> None:
    textures = TextureBook(32, 0, variants=1)
    before = textures.variant(0, 0).copy()
    textures.crop(0, np.random.default_rng(0), 32)[:] = 0
    assert np.array_equal(textures.variant(0, 0), before)


# Words


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("ice cream", "an ice cream"),
        ("unicycle", "a unicycle"),
        ("undamaged brick wall", "an undamaged brick wall"),
        ("pair of scissors", "a pair of scissors"),
        ("cherries", "cherries"),
        ("bus", "a bus"),
        ("the moon", "the moon"),
    ],
)
def test_articles(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected


def test_lists_read_like_english() -> None:
    assert [listed(["x", "y", "z"][:n]) for n in (1, 2, 3)] == ["x", "x and y", "x, y and z"]


def test_every_word_of_a_caption_is_in_the_phrase_list(book: SpriteBook) -> None:
    known = {w.strip(",") for phrase in captions.all_phrases() for w in phrase.split()}
    scenes, surfaces = maker(book, objects=(0, 3)), SurfaceMaker(32, seed=0, defects=captions.DEFECTS)
    said = [scenes.scene().caption for _ in range(150)] + [surfaces.surface().caption for _ in range(80)]
    assert {w.strip(",") for caption in said for w in caption.split()} <= known


def test_no_two_nouns_or_textures_share_a_name() -> None:
    names = [x for n in all_nouns() for x in (n.name, *n.synonyms)] + [t.name for t in all_textures()]
    assert len(names) == len(set(names))
    assert BENCHMARK_NOUNS == 20
    assert 40 <= len(all_nouns()) <= 60
    assert all(n.icons for n in all_nouns())


# Surfaces


@pytest.mark.parametrize("kind", captions.DEFECTS)
def test_the_mask_holds_what_was_damaged_and_only_that(kind: str) -> None:
    for seed, texture in enumerate(solid_textures()):
        before = make_variant(texture, seed, 64, 1.0)
        after, mask = damage(before, kind, np.random.default_rng(seed))
        changed = np.abs(after.astype(int) - before).max(-1)
        assert mask.dtype == bool
        assert 8 <= mask.sum() < 0.25 * mask.size
        assert (changed[mask] > 5).mean() > 0.6
        near = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert (changed[~near] == 0).all()


def test_training_never_sees_a_crack() -> None:
    assert "crack" not in TRAIN_DEFECTS
    surfaces = SurfaceMaker(24, seed=0, share=1.0)
    assert not any("crack" in surfaces.surface().caption for _ in range(60))


def test_flawless_surfaces_have_an_empty_mask() -> None:
    scene = SurfaceMaker(24, seed=0, share=0.0).surface()
    assert not scene.defect.any()
    assert scene.nouns == ()


def test_an_unknown_damage_names_the_closest() -> None:
    with pytest.raises(DensevlError, match="scratch"):
        damage(np.zeros((32, 32, 3), np.uint8), "scratched", np.random.default_rng(0))


# Benchmark


@pytest.fixture(scope="module")
def written(book: SpriteBook, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "new"
    benchmark.write(root, book, TINY)
    return root


def test_the_checksum_is_that_of_the_seed(book: SpriteBook, written: Path, tmp_path: Path) -> None:
    first = json.loads((written / "manifest.json").read_text())
    again = benchmark.write(tmp_path / "again", book, TINY)
    other = benchmark.write(tmp_path / "other", book, benchmark.Plan(**vars(TINY) | {"seed": 8}))
    assert again["sha256"] == first["sha256"] != other["sha256"]
    assert first["files"] == len(list(written.rglob("*.png")))


@pytest.mark.parametrize(("folder", "side"), [("scenes", 32), ("scenes2x", 64)])
def test_labels_instances_and_panoptic_tell_the_same(written: Path, folder: str, side: int) -> None:
    panoptic, instances = (json.loads((written / folder / f"{n}.json").read_text()) for n in ("panoptic", "instances"))
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    assert things == {c["id"] for c in instances["categories"]} == set(range(1, BENCHMARK_NOUNS + 1))
    assert len(panoptic["annotations"]) == len(panoptic["images"]) == TINY.scenes
    for entry in panoptic["annotations"]:
        labels = np.asarray(Image.open(written / folder / "labels" / entry["file_name"]))
        ids = np.asarray(Image.open(written / folder / "panoptic" / entry["file_name"])) @ np.array((1, 256, 65536))
        assert labels.shape == ids.shape == (side, side)
        assert {s["id"] for s in entry["segments_info"]} == set(np.unique(ids)) <= {*range(1, 256)}  # none is void
        for segment in entry["segments_info"]:
            assert labels[ids == segment["id"]].tolist() == [segment["category_id"]] * segment["area"]
            y, x = np.nonzero(ids == segment["id"])
            assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        painted = np.zeros((side, side), int)
        segments = [s for s in entry["segments_info"] if s["category_id"] in things]
        found = [a for a in instances["annotations"] if a["image_id"] == entry["image_id"]]
        for instance, segment in zip(found, segments, strict=True):
            assert all(instance[key] == segment[key] for key in ("category_id", "area", "bbox", "iscrowd"))
            mask = coco_mask.decode(instance["segmentation"])
            assert np.array_equal(mask, ids == segment["id"])
            painted += mask * instance["category_id"]
        assert np.array_equal(painted, labels), "the masks of the instances add up to the labels"
    assert len({a["id"] for a in instances["annotations"]}) == len(instances["annotations"])


def test_seen_and_held_out_scenes_have_the_same_numbers_of_objects(written: Path) -> None:
    panoptic = json.loads((written / "scenes" / "panoptic.json").read_text())
    counts: dict[str, list[int]] = {"seen": [], "held-out": []}
    for image, entry in zip(panoptic["images"], panoptic["annotations"], strict=True):
        counts[image["pairs"]].append(len(entry["segments_info"]))
    assert counts["seen"] == counts["held-out"]


def test_surfaces_follow_the_layout_of_mvtec(written: Path) -> None:
    materials = sorted((written / "anomaly").iterdir())
    assert len(materials) == len(solid_textures())
    for material in materials:
        assert (material / "train" / "good" / "000.png").exists()
        assert {p.name for p in (material / "test").iterdir()} == {"good", *captions.DEFECTS}
        for mask in (material / "ground_truth").rglob("*.png"):
            assert set(np.unique(np.asarray(Image.open(mask)))) == {0, 255}
            assert (material / "test" / mask.parent.name / mask.name.replace("_mask", "")).exists()


def test_a_benchmark_never_mixes_with_what_a_folder_holds(book: SpriteBook, written: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        benchmark.write(written, book, TINY)


# Art


def tarball(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """Write a .tgz; None as content makes a link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content or b""))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [],
        [("package/icons.json", None)],
        [("../package/icons.json", b"{}")],
        [("/package/icons.json", b"{}")],
    ],
    ids=["absent", "link", "above", "absolute"],
)
def test_only_a_plain_member_of_the_exact_name_is_read(tmp_path: Path, members: list) -> None:
    with pytest.raises(art.ArtError, match=r"no plain package/icons\.json"):
        art.read_icons(tarball(tmp_path / "a.tgz", members))


def test_icons_are_read_from_memory(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a.tgz", [("package/index.js", b"boom"), ("package/icons.json", b'{"icons": {}}')])
    assert art.read_icons(path) == {"icons": {}}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize(
    "body", ['<image href="#a"/>', '<use href="file:///etc/passwd"/>', "<script/>", "<use xlink:href = 'http://x'/>"]
)
def test_drawings_that_reach_outside_are_refused(body: str) -> None:
    with pytest.raises(art.ArtError, match="outside"):
        art.svg_of({"icons": {"x": {"body": body}}}, "x")


@pytest.mark.parametrize(
    ("alias", "found"), [({"parent": "x"}, True), ({"parent": "x", "hFlip": True}, False), ({"parent": "y"}, False)]
)
def test_aliases_that_only_rename_are_followed(alias: dict, found: bool) -> None:
    icons = {"icons": {"x": {"body": "<g/>", "width": 33}}, "aliases": {"z": alias}, "height": 32}
    svg = art.svg_of(icons, "z")
    assert (svg is not None) == found
    assert not svg or 'viewBox="0 0 33 32"' in svg


@pytest.mark.parametrize("missing", ["npm", "resvg_py", "style", "pin"])
def test_what_is_missing_is_named_in_one_line(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"something else")
    calls = {
        "npm": lambda: art.load_style("twemoji", 16, tmp_path),
        "resvg_py": lambda: art.render("<svg/>", 16),
        "style": lambda: art.load_style("twemojy", 16, tmp_path),
        "pin": lambda: art.load_style("noto", 16, tmp_path),
    }
    expected = {"npm": "install npm", "resvg_py": "pip install resvg-py", "style": "twemoji", "pin": "delete it"}
    with pytest.raises(art.ArtError, match=expected[missing]) as caught:
        calls[missing]()
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").touch()
    assert main(["benchmark", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_evaluation_art_is_never_a_training_style() -> None:
    allowed = {"MIT", "Apache-2.0"}
    assert {art.STYLES[s].licence for s in art.TRAIN_STYLES} == allowed
    assert not any(s.train for s in art.STYLES.values() if s.licence not in allowed)


def test_every_benchmark_noun_is_drawn_in_every_style_at_hand() -> None:
    at_hand = [s for s in art.STYLES if art.kept_sprites(s, 96, ART).exists()]
    if not at_hand:
        pytest.skip(f"no rendered art in {ART}: python -m tools.render sheet --out sheet.png")
    real = SpriteBook.load(at_hand, 96, ART)
    assert [(n, s) for n in range(BENCHMARK_NOUNS) for s in at_hand if not real.drawings(n, s)] == []
    scene = SceneMaker(64, styles=real, seed=0).scene()
    assert (scene.objects >= 0).any()
