"""`Inspector` on separable pictures: verdicts, calibration, regions and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import close
from densevl.errors import ImageError, ModelError
from densevl.fewshot.exemplars import Exemplars
from densevl.pipelines.fewshot.inspection import Inspector, by_folder

COLOURS = {"red": (200, 30, 30), "blue": (30, 60, 200), "dark": (20, 20, 20)}


def pictures(name: str, count: int) -> list[np.ndarray]:
    return [
        np.clip(COLOURS[name] + np.random.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def inspector(tiny):
    return Inspector(tiny).fit({name: pictures(name, 3) for name in COLOURS})


def test_like_images_get_their_class_and_probabilities_sum_to_one(inspector) -> None:
    for name in COLOURS:
        verdict = inspector(pictures(name, 1)[0])
        assert verdict.name == name
        assert abs(sum(verdict.probabilities.values()) - 1) < 1e-5
        assert verdict.plausible is None


@pytest.mark.parametrize("held_out", [True, False])
def test_calibrated_sets_hold_the_true_class(tiny, held_out) -> None:
    inspect = Inspector(tiny).fit({name: pictures(name, 4) for name in COLOURS})
    inspect.calibrate({name: pictures(name, 10) for name in COLOURS} if held_out else None, alpha=0.2)
    hits = [name in inspect(image).plausible for name in COLOURS for image in pictures(name, 5)]
    assert np.mean(hits) >= 0.7


def test_calibration_recovers_a_known_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    known = Exemplars(rows, torch.arange(4), ("a", "b", "c", "d"), sharpness=8.0)
    features = torch.randn(4000, 6, generator=generator)
    p = (known.closeness(features) / 2.5).softmax(dim=-1)
    classes = torch.multinomial(p, 1, generator=generator)[:, 0]
    fitted = known.calibrated(features, classes, 0.1)
    assert abs(fitted.temperature / 2.5 - 1) < 0.15
    inside = (1 - fitted.probabilities(features).gather(1, classes[:, None])) <= fitted.margin
    assert 0.89 < inside.float().mean() < 0.92


def test_leaving_out_equals_a_memory_without_the_exemplar() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 6), dim=-1)
    classes = torch.tensor([0, 0, 1, 1, 1])
    whole = Exemplars(rows, classes, ("a", "b")).closeness(rows, leave_out=True)
    for left in range(5):
        kept = torch.arange(5) != left
        alone = Exemplars(rows[kept], classes[kept], ("a", "b")).closeness(rows[left : left + 1])
        close(whole[left], alone[0])


def test_regions_are_judged_for_themselves(inspector) -> None:
    both = np.concatenate([pictures("red", 1)[0], pictures("blue", 1)[0]], axis=1)
    verdict = inspector(both, regions=[(0, 0, 24, 24), (24, 0, 48, 24)])
    assert [region.name for region in verdict.regions] == ["red", "blue"]
    with pytest.raises(ImageError, match="no pixel"):
        inspector(both, regions=[(50, 0, 60, 24)])


def test_refusals_are_one_clear_line(tiny, inspector, tmp_path) -> None:
    with pytest.raises(ModelError, match="call fit"):
        Inspector(tiny)(pictures("red", 1)[0])
    with pytest.raises(ModelError, match="no classes"):
        Inspector(tiny).fit({})
    with pytest.raises(ImageError, match="'a' has no images"):
        Inspector(tiny).fit({"a": []})
    with pytest.raises(ModelError, match="two exemplars"):
        Inspector(tiny).fit({"a": pictures("red", 1), "b": pictures("blue", 2)}).calibrate()
    with pytest.raises(ModelError, match="'green' was not fitted"):
        inspector.calibrate({"green": pictures("red", 1)})
    with pytest.raises(ModelError, match="between 0 and 1"):
        inspector.calibrate(alpha=0)
    with pytest.raises(ModelError, match="above 0"):
        Inspector(tiny, sharpness=0)
    with pytest.raises(ImageError, match="no folders"):
        by_folder(tmp_path)
    (tmp_path / "red").mkdir()
    Image.fromarray(pictures("red", 1)[0]).save(tmp_path / "red" / "0.png")
    assert [path.name for path in by_folder(tmp_path)["red"]] == ["0.png"]
