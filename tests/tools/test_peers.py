"""The comparison with other libraries compares the same thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import random_clip, wrap
from tools import peers, speed_page

PIXELS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    """A linear layer on pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels.flatten(2))


def test_our_embedding_is_that_of_the_library() -> None:
    backbone = wrap(random_clip())
    pixels = torch.randn(2, 3, *backbone.tower.image_size)
    torch.testing.assert_close(peers.embedding(backbone, pixels)(), backbone.encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_openvino_runs_the_module() -> None:
    pytest.importorskip("openvino")
    tiny = Tiny().eval()
    torch.testing.assert_close(peers.openvino_run(tiny, PIXELS)(), tiny(PIXELS).detach(), rtol=1e-4, atol=1e-5)


def test_onnxruntime_runs_the_module_in_8_bits(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    tiny = Tiny().eval()
    found, want = peers.onnxruntime_run(tiny, PIXELS, tmp_path)(), tiny(PIXELS).detach()
    assert 1e-5 < (found - want).norm() / want.norm() < 0.05


def test_the_page_shows_ratios_to_open_clip_of_the_same_architecture(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed_page, "JSON", tmp_path / "speed.json")
    monkeypatch.setattr(speed_page, "PAGE", tmp_path / "speed.md")
    cost = {"least": 1.0, "faults": None, "error": 0.0}
    passes = [
        {"model": model, "by": by, "seconds": seconds, **cost}
        for model, by, seconds in [
            ("a", "open_clip", 2.0),
            ("a", "densevl", 1.0),
            ("b", "open_clip", 4.0),
            ("b", "x", 1.0),
        ]
    ]
    photo = {"model": "a", "height": 336, "width": 448, "precision": "int8"}
    photos = [{**photo, "seconds": 0.5, "of_bare": 0.125, "faults": 3.0}]
    facts = {"machine": "A CPU", "versions": {"openvino": "1"}, "windows": 6, "rounds": 5}
    (tmp_path / "speed.json").write_text('{"kept": 1}')
    speed_page.update({"peers": {**facts, "passes": passes, "photos": photos}})
    page = (tmp_path / "speed.md").read_text()
    assert "| a | densevl | 1.00 | 1.00 | 0.50 | 1.00 |  | 0.0e+00 |" in page
    assert "| b | x | 1.00 | 1.00 | 0.25 | 1.00 |  | 0.0e+00 |" in page
    assert "| a | int8 | 336 x 448 | 0.50 | 0.12 | 3 |" in page
    assert "A CPU; openvino 1; one thread" in page
    assert json.loads((tmp_path / "speed.json").read_text())["kept"] == 1
