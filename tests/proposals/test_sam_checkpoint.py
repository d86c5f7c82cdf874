"""Checkpoints of SAM: which size a file holds, what is no SAM, and a download that is checked before it is kept."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

segment_anything = pytest.importorskip("segment_anything", reason="SAM needs the extra 'sam'")

from densevl.cache import cache_dir
from densevl.errors import ModelError, WeightsError
from densevl.proposals.sam import checkpoint as sam_checkpoint
from densevl.proposals.sam.checkpoint import OFFICIAL, Official, download, load_sam
from densevl.proposals.sam.mini_sam import WEIGHTS, SamConfig, build_sam
from densevl.shipped import is_shipped, shipped_file

WIDTH = "image_encoder.patch_embed.proj.weight"
CONTENT = b"weights" * 1000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of ViT-B, a model of seconds: width 16."""
    config = SamConfig(image=32, patch=8, width=16, depth=1, channels=16, decoder_mlp=16, mask_channels=4, iou_width=8)
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: build_sam(config))
    monkeypatch.setitem(OFFICIAL, "vit_b", OFFICIAL["vit_b"]._replace(width=16))
    return build_sam(config)


def test_the_size_is_read_from_the_file(small, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "any_name.pth")
    loaded = load_sam(tmp_path / "any_name.pth")
    assert not loaded.training
    for key, value in small.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)


@pytest.mark.skipif(not is_shipped(WEIGHTS), reason="this checkout holds no mini-sam")
def test_a_mini_sam_is_a_checkpoint_too() -> None:
    from densevl.proposals.sam.mini_sam import SHA256

    assert load_sam(shipped_file(WEIGHTS, SHA256, "mini-sam", "")).image_encoder.img_size == SamConfig().image


def _without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {"a": torch.ones(1)}, "is not a SAM: it holds no image_encoder"),
        (lambda state: [1, 2], "holds a list, not a dict"),
        (
            lambda state: {**state, "image_encoder.patch_embed.proj.weight": torch.ones(99, 3, 8, 8)},
            "width 99: SAM has",
        ),
        (lambda state: _without(state, "mask_decoder.iou_token.weight"), "does not fit SAM vit_b.*iou_token"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_sam_is_one_line(small, tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "x.pth"
    if change is None:
        path.write_bytes(b"nothing of the kind")
    else:
        torch.save(change(small.state_dict()), path)
    with pytest.raises(WeightsError, match=said) as caught:
        load_sam(path)
    assert "\n" not in str(caught.value)


def _serve(monkeypatch: pytest.MonkeyPatch, content: bytes | Exception) -> list[str]:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(sam_checkpoint.urllib.request, "urlopen", answer)
    monkeypatch.setitem(OFFICIAL, "test", Official("sam_test.pth", hashlib.sha256(CONTENT).hexdigest(), 1, 1))
    (cache_dir() / "sam_test.pth").unlink(missing_ok=True)
    return asked


def test_a_download_is_kept_once_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _serve(monkeypatch, CONTENT)
    assert download("test").read_bytes() == CONTENT
    assert download("test").read_bytes() == CONTENT
    assert asked == ["https://dl.fbaipublicfiles.com/segment_anything/sam_test.pth"]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (CONTENT[:-1], WeightsError, "is not the published .* nothing was kept"),
        (urllib.error.URLError("no route"), ModelError, "cannot be downloaded .no route.*name the file as checkpoint"),
        (TimeoutError("timed out"), ModelError, "timed out.*mini-sam"),
    ],
)
def test_nothing_is_kept_of_a_bad_download(monkeypatch: pytest.MonkeyPatch, content, error, said: str) -> None:
    _serve(monkeypatch, content)
    with pytest.raises(error, match=said):
        download("test")
    assert not list(cache_dir().glob("*sam_test*"))


def test_published_digests_are_whole() -> None:
    for official in OFFICIAL.values():
        assert len(official.sha256) == 64
        assert official.file.endswith(".pth")
