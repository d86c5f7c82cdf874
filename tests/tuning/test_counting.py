"""Candidates on pictures: what shares a pass of the tower is what each pipeline gives by itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from densevl.backbones import load_backbone
from densevl.errors import DensevlError
from densevl.evaluation.benchmarks.coco import Objects
from densevl.images import read_image
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.proposals import Proposals
from densevl.tuning.candidates import CLASSIFY, REGIONS, SEGMENT, space
from densevl.tuning.counting import ImageCounter, PixelCounter, RegionCounter
from densevl.tuning.guessing import BACKGROUNDS, AgreementCounter, majority
from densevl.tuning.pictures import Pictures
from densevl.vocabulary import LabelSet
from tests.conftest import close

SCENE = Path(__file__).parents[2] / "demo" / "scenes" / "wood.png"
LABELS = LabelSet.parse("penguin, pizza, football")


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini")


def crop() -> np.ndarray:
    return np.ascontiguousarray(read_image(SCENE)[90:190, 0:130])


def pictures(use: str, **more) -> Pictures:
    return Pictures(use, LABELS, (SCENE,), **more)


VALUES = {
    "recipe": ("naclip", "cliper"),
    "background": ("none", "0.3", "scenes:2"),
    "templates": ("name",),
    "plan": ("whole",),
}


def candidates(mini, use: str = SEGMENT, values=VALUES):
    found = space(use, mini, tries=values, only=tuple(values))
    return found.around(found.default, tuple(values))


def test_label_maps_that_share_a_pass_are_those_of_a_segmenter_alone(mini) -> None:
    """Of recipes that score a window by itself, and of cliper, which does not; by any background, words and windows."""
    counter, rgb = PixelCounter(mini, pictures(SEGMENT, background=True)), crop()
    some = candidates(mini)[::3]
    by_pass: dict[tuple, list] = {}
    for own in some:
        by_pass.setdefault(tuple(own[name] for name in counter.shares), []).append(own)
    assert len(by_pass) > 3
    assert max(map(len, by_pass.values())) > 1
    for together in by_pass.values():
        for own, (labels, seconds) in counter.maps(rgb, together).items():
            alone = Segmenter(
                mini, own["recipe"], templates=own["templates"], background=own["background"], protocol=own["plan"]
            )
            want = alone(rgb, LABELS).labels + 1
            assert (labels != want).mean() < 1e-3, own  # a pixel on the line may fall to either side
            assert seconds > 0


def test_counts_of_a_picture_are_those_of_its_label_map(mini) -> None:
    counter, rgb = PixelCounter(mini, pictures(SEGMENT, background=True)), crop()
    truth = np.random.default_rng(0).integers(-1, 4, rgb.shape[:2]).astype(np.int16)
    own = candidates(mini)[0]
    (counts, _), labels = counter.counted(rgb, truth, [own])[own], Segmenter(mini)(rgb, LABELS).labels + 1
    for number in range(4):
        scored = truth >= 0
        want = ((labels == number) & (truth == number)).sum(), (truth == number).sum(), (labels == number)[scored].sum()
        assert np.abs(counts[:, number] - want).max() <= 5


def test_regions_and_images_are_named_as_their_pipelines_name_them(mini) -> None:
    rgb, size = crop(), crop().shape[:2]
    boxes = np.array([[0, 0, 60, 60], [50, 30, 120, 100], [70, 10, 90, 90]])
    masks = Proposals.from_boxes(boxes, size)
    truth = Objects(np.array([0, 1, 2]), np.array([False, False, True]), tuple(masks.to_rle()))
    for own, (counts, _) in (
        RegionCounter(mini, pictures(REGIONS))
        .counted(rgb, truth, candidates(mini, REGIONS, {"operator": ("pool",), "templates": ("name",)})[-2:])
        .items()
    ):
        classify = RegionClassifier(mini, own["operator"], templates=own["templates"], background="none")
        found = classify(rgb, LABELS, boxes=boxes[:2]).labels  # the third is a crowd
        assert counts[1].tolist() == [1, 1, 0]
        assert counts[2].tolist() == np.bincount(found, minlength=3).tolist()
        assert counts[0].sum() == (found == [0, 1]).sum()
    for own, (counts, _) in (
        ImageCounter(mini, pictures(CLASSIFY))
        .counted(rgb, 1, candidates(mini, CLASSIFY, {"templates": ("name",)}))
        .items()
    ):
        name = FewShot(mini, templates=own["templates"])(rgb, LABELS).name
        assert counts[:, LABELS.names.index(name)].tolist() == [int(name == "pizza"), int(name == "pizza"), 1]


def test_the_majority_is_the_most_frequent_label_of_each_pixel() -> None:
    maps = np.random.default_rng(0).integers(0, 5, (7, 6, 8)).astype(np.int16)
    for y, x in np.ndindex(6, 8):
        votes = Counter(maps[:, y, x].tolist())
        assert majority(list(maps))[y, x] == min(votes, key=lambda label: (-votes[label], label))


def test_without_a_truth_candidates_are_counted_against_the_majority(mini) -> None:
    counter, own = AgreementCounter(mini, pictures(SEGMENT, background=True, labelled=False)), candidates(mini)[0]
    counter._jury = candidates(mini, values={"recipe": ("naclip", "sclip")})
    rgb = read_image(SCENE)
    most = majority([Segmenter(mini, juror["recipe"])(rgb, LABELS).labels + np.int16(1) for juror in counter.jury])
    labels = Segmenter(mini)(rgb, LABELS).labels + 1
    right, truth, found = counter.count(0, [own])[own][0]
    close(
        right.sum() / truth.sum(), float((labels == most).mean()), tolerance=1e-3, why="passes may differ in rounding"
    )
    close(np.float64(truth.sum()), np.float64(found.sum()))


def test_the_jury_is_of_all_recipes_that_run_with_several_backgrounds(mini) -> None:
    jury = AgreementCounter(mini, pictures(SEGMENT, background=True, labelled=False)).jury
    assert {"naclip", "gem", None} <= {juror["recipe"] for juror in jury}
    assert len({(juror["recipe"], juror["background"]) for juror in jury}) == len(jury)
    assert {juror["background"] for juror in jury} == {"auto", *BACKGROUNDS}
    assert {juror["templates"] for juror in jury} == {None}


@pytest.mark.parametrize(
    ("only", "tries", "told"),
    [
        (["recpe"], {}, "no setting 'recpe' to tune for segment.*closest: recipe"),
        ([], {"operator": ["pool"]}, "no setting 'operator' to tune for segment"),
        ([], {"recipe": ["sclap"]}, "sclap"),
        ([], {"background": ["1.5"]}, "1.5"),
        ([], {"plan": ["tile"]}, "plan 'tile' to try.*tiles"),
        ([], {"precision": ["int7"]}, "precision 'int7' to try.*int8"),
        ([], {"templates": ["opnai"]}, "opnai"),
        ([], {"guided": ["5"]}, "no setting 'guided' to tune for segment"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_measured(mini, only, tries, told) -> None:
    with pytest.raises(DensevlError, match=told):
        space(SEGMENT, mini, only=only, tries=tries)


def test_the_usual_values_leave_out_what_a_model_cannot_run(mini) -> None:
    """Recipes that borrow from models which nobody gave, the default's double, and backgrounds where there is none."""
    found = space(SEGMENT, mini, background=False)
    assert not {"proxyclip", "maskclip_value"} & set(found.values["recipe"])
    assert "proxyclip" in space(SEGMENT, mini, given=["proxy"]).values["recipe"]
    assert found.values["background"] == ("none",)
    assert all(found.values[name][0] == own for name, own in found.default.settings)
