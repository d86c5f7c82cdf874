"""The steps of anomaly scoring, each against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close
from densevl.anomaly.evidence import margin
from densevl.anomaly.harmonic import EPSILON, mix_probabilities, soft_min, spread_distances, spread_windows
from densevl.anomaly.maps import peak, smooth, threshold, to_pixels
from densevl.anomaly.memory.nearest import NearestMemory, coreset
from densevl.anomaly.scoring import BY_NAME, Scoring, get_scoring
from densevl.anomaly.sizes import augmented, fit_size, shrink, varied
from densevl.anomaly.states import ANOMALOUS, NORMAL, TEMPLATES, States
from densevl.anomaly.tokens import layers_at, run
from densevl.anomaly.windows import window_embeddings, window_index
from densevl.errors import ModelError, OptionError, RecipeError


def textbook(p_windows: np.ndarray, side: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """The harmonic mean over the windows that cover each patch, by loops over them, in double precision."""
    total, count = np.zeros(grid), np.zeros(grid)
    for y in range(p_windows.shape[0]):
        for x in range(p_windows.shape[1]):
            total[y : y + side[0], x : x + side[1]] += 1 / p_windows[y, x]
            count[y : y + side[0], x : x + side[1]] += 1
    return count / total


GRIDS = [((5, 5), (2, 2)), ((5, 7), (3, 3)), ((4, 9), (1, 1)), ((6, 6), (6, 6)), ((1, 8), (1, 3)), ((3, 5), (3, 2))]


@pytest.mark.parametrize(("grid", "side"), GRIDS)
def test_windows_spread_as_the_textbook_harmonic_mean(grid, side) -> None:
    m = torch.randn(2, grid[0] - side[0] + 1, grid[1] - side[1] + 1, generator=torch.Generator().manual_seed(0)) * 4
    found = spread_windows(m, side).sigmoid().double().numpy()
    expected = [textbook(one.double().sigmoid().numpy(), side, grid) for one in m]
    assert np.abs(found - np.stack(expected)).max() < 1e-6


@pytest.mark.parametrize("level", [-120.0, 120.0, 1e4])
def test_order_survives_where_probabilities_underflow(level) -> None:
    m = level + torch.arange(16.0).view(1, 4, 4)
    spread = spread_windows(m, (1, 1))
    assert torch.equal(spread, m)
    assert torch.isfinite(spread_windows(m.half().float(), (2, 2))).all()
    lone = torch.full((1, 6, 6), 200.0)
    lone[0, 0, 0] = -200.0  # an extreme elsewhere must not flatten the rest
    lone[0, 5, 5] = 201.0
    far = spread_windows(lone, (1, 1))
    assert far[0, 5, 5] > far[0, 3, 3] > far[0, 0, 0]


def test_scales_mean_harmonically_and_layers_arithmetically() -> None:
    maps = [torch.randn(1, 3, 3) for _ in range(3)]
    p = torch.stack(maps).double().sigmoid()
    close(soft_min(maps).sigmoid(), 3 / (1 / p).sum(0))
    close(mix_probabilities(maps).sigmoid(), p.mean(0))
    d = torch.rand(1, 4, 4)
    assert (
        np.abs(spread_distances(d, (2, 2))[0].numpy() - textbook(d[0].numpy() + EPSILON, (2, 2), (5, 5))).max() < 1e-6
    )


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
@pytest.mark.parametrize("rows", [1, 7, 5000])
def test_nearest_equals_brute_force_exactly(metric, rows) -> None:
    generator = torch.Generator().manual_seed(rows)
    memory = NearestMemory.of(list(torch.randn(rows, 12, generator=generator).split(1300)), metric)
    queries = torch.randn(40, 12, generator=generator)
    unit = F.normalize(queries, dim=-1) if metric == "cosine" else queries
    apart = (unit[:, None] - memory.rows[None]).square().sum(-1)
    every = apart / 2 if metric == "cosine" else apart.sqrt()
    distance, index = memory.nearest(queries)
    expected = every.min(dim=1)
    assert torch.equal(distance, expected.values)
    assert torch.equal(index, expected.indices)


def test_large_means_do_not_blur_euclidean_distances() -> None:
    rows = 1000 + torch.randn(300, 8)
    distance, index = NearestMemory.of([rows], "euclid").nearest(rows)
    assert torch.equal(index, torch.arange(300))
    assert not distance.any()


@pytest.mark.parametrize("near", [0, 1, 9])
def test_places_are_compared_with_what_lay_near_them(near) -> None:
    grids = torch.randn(2, 4, 5, 6)
    cells = torch.ones(4, 5, dtype=torch.bool).nonzero()
    memory = NearestMemory.of([grid.flatten(0, 1) for grid in grids], "cosine", [cells, cells])
    query = torch.randn(3, 4, 6, 6)  # one column more than the memory has
    distance, index = memory.look_up(query, near)
    unit = F.normalize(query, dim=-1)
    for y, x in [(0, 0), (2, 3), (3, 5)]:
        apart = (unit[:, y, x][:, None] - memory.rows[None]).square().sum(-1) / 2
        far = (memory.place - torch.tensor([y, x])).abs().amax(1) > near
        apart[:, far if not far.all() else torch.zeros_like(far)] = torch.inf
        close(distance[:, y, x], apart.min(1).values)
        assert torch.equal(index[:, y, x], apart.argmin(1))
    assert torch.equal(memory.look_up(query, 9)[0], memory.look_up(query)[0])


def test_a_row_is_at_no_distance_from_itself_and_more_rows_never_increase_it() -> None:
    rows = torch.randn(60, 8)
    some, all_ = NearestMemory.of([rows[:30]]), NearestMemory.of([rows[:30], rows[30:]])
    assert torch.equal(all_.nearest(rows)[0], torch.zeros(60))
    assert (all_.nearest(rows)[0] <= some.nearest(rows)[0]).all()
    assert len(all_.without(0)) == 30
    twice = NearestMemory.of([rows, rows])
    assert torch.equal(twice.nearest(torch.ones(3, 8))[0], all_.nearest(torch.ones(3, 8))[0])


def test_coreset_covers_and_holds_its_first_row() -> None:
    rows = torch.cat([torch.zeros(50, 200), torch.ones(1, 200), -torch.ones(1, 200)]) + 1e-3 * torch.randn(52, 200)
    chosen = coreset(rows, 3)
    assert len(set(chosen.tolist())) == 3
    assert {50, 51} <= set(chosen.tolist())
    assert len(NearestMemory.of([rows]).compress(3)) == 3
    assert torch.equal(coreset(rows, 10), coreset(rows, 10))


def test_patchcore_weight_is_within_one_and_one_for_a_single_neighbour() -> None:
    memory = NearestMemory.of([torch.randn(30, 6)], "euclid")
    assert 0 < float(memory.weight(torch.randn(9, 6), 9)) < 1
    assert float(memory.weight(torch.randn(9, 6), 1)) == 1


def test_prompts_have_the_papers_counts_and_no_doubles() -> None:
    normal, anomalous = States().expand("metal nut")
    assert (len(NORMAL), len(ANOMALOUS), len(TEMPLATES)) == (7, 4, 22)
    assert (len(normal), len(anomalous)) == (154, 88)
    assert len(set(normal + anomalous)) == 242
    assert all("metal nut" in prompt for prompt in normal + anomalous)
    assert "a {} {0}" in States(templates=("{}",), normal=("a {}",)).expand("{} {0}")[0]


@pytest.mark.parametrize("average", ["norm_mean", "raw_mean"])
def test_prototypes_average_as_said(average) -> None:
    rows = torch.randn(3, 5) * torch.tensor([[1.0], [9.0], [3.0]])
    states = States(normal=("{}", "good {}"), anomalous=("bad {}",), templates=("{}",), average=average)
    found = states.prototypes(lambda texts: rows[: len(texts)], "tile")
    used = rows if average == "raw_mean" else F.normalize(rows, dim=-1)
    assert torch.allclose(found[0], F.normalize(used[:2].mean(0), dim=0))
    assert torch.allclose(margin(rows, found, 0.5), -margin(rows, found.flip(0), 0.5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"normal": []}, "no normal phrases"),
        ({"anomalous": ["broken"]}, "has no {}"),
        ({"directions": [[1.0, 0.0]]}, r"shape \(1, 2\)"),
        ({"directions": [[1.0], [1.0, 2.0]]}, "two vectors of numbers"),
        (torch.zeros(2, 4), "only zeros"),
        ({"nromal": ["{}"]}, "closest: normal"),
        ({"normal": "good {}"}, "one string"),
        ({"average": "median"}, "norm_mean or raw_mean"),
        (["good {}"], "give a dict"),
        ("no-such-file.json", "cannot be read"),
    ],
)
def test_bad_states_are_one_clear_line(spec, message) -> None:
    with pytest.raises(OptionError, match=message):
        States.parse(spec)


def test_a_phrase_that_stands_twice_weighs_double() -> None:
    rows = {"a tile": torch.tensor([1.0, 0.0]), "one tile": torch.tensor([0.0, 1.0]), "bad": torch.tensor([1.0, 1.0])}
    states = States(normal=("{}",), anomalous=("{}",), templates=("a {}", "a {}", "one {}"))
    found = states.prototypes(lambda texts: torch.stack([rows[text] for text in texts]), "tile")
    assert torch.allclose(found[0], F.normalize(torch.tensor([2.0, 1.0]), dim=0))


def test_vectors_stand_in_for_words() -> None:
    states = States.parse(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    found = states.prototypes(lambda texts: pytest.fail("words were encoded"))
    assert torch.equal(found, torch.eye(2))
    assert States.parse({"directions": states.directions}) == states
    assert states.digest() != States().digest()
    with pytest.raises(OptionError, match="2 wide, the model's space is 512"):
        states.require_width(512)


def test_states_from_a_file_keep_what_is_not_said(tmp_path) -> None:
    file = tmp_path / "states.json"
    file.write_text('{"anomalous": ["{} with a dent"]}')
    states = States.parse(file)
    assert states.anomalous == ("{} with a dent",)
    assert states.normal == NORMAL
    assert states.digest() != States().digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "words"}, "windows or dense or adapters or none"),
        ({"scales": ()}, "need scales"),
        ({"scales": (0,)}, "at least 1 patch"),
        ({"scales": (True,)}, "scales is"),
        ({"temperature": 0}, "above 0"),
        ({"memory": ("tokens",)}, "patch or windows"),
        ({"image": "max"}, "cls or map or both"),
        ({"top": 2}, "share"),
        ({"around": 2}, "odd"),
        ({"text": "none", "memory": ()}, "nothing would be scored"),
        ({"near": -1}, "from 0"),
        ({"near": 1, "augment": "flips"}, "copies lie elsewhere"),
        ({"foreground": True, "memory": ("windows",)}, "memory of 'patch'"),
        ({"smoth": 1}, "closest: smooth"),
    ],
)
def test_bad_scorings_are_one_clear_line(changes, message) -> None:
    with pytest.raises(RecipeError, match=message):
        get_scoring("winclip", **changes)


def test_an_unknown_scoring_names_the_closest() -> None:
    with pytest.raises(RecipeError, match="winclip"):
        get_scoring("win-clip")
    assert get_scoring(Scoring("own", image="map")).image == ("map", "map")
    assert all(name == entry.name for name, entry in BY_NAME.items())


def test_window_index_is_row_by_row() -> None:
    assert window_index((2, 3), (2, 2)).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5]]


def test_a_window_over_the_whole_grid_is_the_image(tiny) -> None:
    seen = run(tiny.tower, torch.randn(2, 3, 32, 32))
    whole = F.normalize(seen.image(), dim=-1)
    for way in ("exact", "shared"):
        window = F.normalize(window_embeddings(seen, 4, way), dim=-1)
        assert window.shape == (2, 1, 1, 24)
        assert torch.allclose(window[:, 0, 0], whole, atol=1e-5), way


def test_exact_windows_see_nothing_outside_and_do_not_depend_on_chunks(tiny, monkeypatch) -> None:
    pixels = torch.randn(1, 3, 32, 48)
    other = pixels.clone()
    other[:, :, :, 24:] = torch.randn(1, 3, 32, 24)  # beyond the first three columns of patches
    first, second = (window_embeddings(run(tiny.tower, p), 3) for p in (pixels, other))
    assert first.shape == (1, 2, 4, 24)
    close(first[:, :, 0], second[:, :, 0])
    assert not torch.allclose(first[:, :, 1], second[:, :, 1], atol=1e-3)
    monkeypatch.setattr("densevl.anomaly.windows.TOKENS", 1)
    monkeypatch.setattr("densevl.anomaly.windows.PAIRS", 1)
    seen = run(tiny.tower, pixels)
    close(window_embeddings(seen, 3), first)
    assert window_embeddings(seen, 3, "shared").shape == first.shape
    with pytest.raises(RecipeError, match="closest: exact"):
        window_embeddings(seen, 3, "exakt")


def test_a_pass_equals_the_tower_and_gives_streams_and_recipes(tiny) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    seen = run(tiny.tower, pixels)
    close(seen.image(), tiny.encode_image(pixels))
    from densevl.recipes import Recipe, SecondStream, SelfAttention, get

    for recipe in (
        get("sclip"),
        get("maskclip"),
        get("vanilla"),
        Recipe("vv", SelfAttention("vv"), blocks=SecondStream(3)),
    ):
        expected = tiny.encode_dense(pixels, recipe, position_rule="size").features
        assert torch.allclose(seen.rewired(recipe).features, expected, atol=1e-5), recipe.name
    stream = seen.value_streams(3, (5, 7))
    own = tiny.encode_dense(
        pixels, Recipe("vv", SelfAttention("vv"), blocks=SecondStream(3)), position_rule="size"
    ).features
    assert torch.allclose(stream[1], own, atol=1e-4)
    with pytest.raises(RecipeError, match="does not fit a tower of 7"):
        seen.value_streams(3, (4,))
    with pytest.raises(RecipeError, match="outside the tower's 7"):
        layers_at((8,), 7)
    assert layers_at((0.25, 0.5, 1.0, 7), 7) == (2, 4, 7)


@pytest.mark.parametrize(
    ("size", "fed"), [((1, 1), (32, 32)), ((64, 48), (40, 32)), ((10, 9000), (32, 128)), ((9000, 10), (128, 32))]
)
def test_images_of_any_ratio_are_fed_in_whole_patches(size, fed) -> None:
    assert fit_size(*size, 32, 8) == fed
    assert shrink(np.zeros((*size, 3), np.uint8), fed).shape == (*fed, 3)


def test_augmented_views_are_all_different() -> None:
    pixels = torch.arange(12.0).view(1, 1, 3, 4)
    assert [len(augmented(pixels, kind)) for kind in ("none", "flips", "rotations")] == [1, 4, 8]
    assert len({str(view.tolist()) for view in augmented(pixels, "rotations")}) == 8


@pytest.mark.parametrize("size", [(32, 32), (8, 24), (8, 8)])
def test_stand_ins_keep_the_size_and_are_all_different(size) -> None:
    pixels = torch.rand(1, 3, *size)
    views = varied(pixels, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 8)
    assert {tuple(view.shape) for view in views} == {tuple(pixels.shape)}
    assert len({float(view.sum()) for view in views}) == len(views) == 8
    black = torch.tensor([-2.5, -2.0, -1.5]).view(1, 3, 1, 1).expand_as(pixels)
    assert torch.allclose(varied(black, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 8)[0], black)


def test_smoothing_keeps_the_sum_and_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = torch.rand(2, 9, 5, dtype=torch.float64)
    expected = [ndimage.gaussian_filter(one.numpy(), 0.8, mode="reflect", truncate=4.0, radius=4) for one in grid]
    assert np.abs(smooth(grid, 0.8).numpy() - np.stack(expected)).max() < 1e-9
    assert torch.equal(smooth(grid, 0.0), grid)
    assert smooth(torch.rand(1, 1, 1), 3.0).shape == (1, 1, 1)


def test_peaks_thresholds_and_pixels() -> None:
    grid = torch.arange(100.0).view(1, 10, 10)
    assert float(peak(grid, 0)) == 99
    assert float(peak(grid, 0.02)) == 98.5
    assert to_pixels(grid[0], (1, 1)).shape == (1, 1)
    scores = torch.arange(1000.0)
    assert threshold(scores, 0.01) == 990
    assert (scores > threshold(scores, 0.01)).float().mean() <= 0.01
    assert threshold(torch.tensor([3.0, 5.0]), 0.01) == 5


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="at least one"):
        NearestMemory.of([])
    with pytest.raises(ModelError, match="cosine or euclid"):
        NearestMemory.of([torch.ones(1, 2)], "manhattan")
