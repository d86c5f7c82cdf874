"""What all tests share: seeds, tolerances, a tiny random CLIP built by open_clip, a cache folder of the tests' own."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Generator
from pathlib import Path
from zlib import crc32

import hypothesis
import numpy as np
import open_clip
import pytest
import torch
import typer.testing
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file

from densevl.backbones.open_clip_model import OpenClipBackbone

gc.set_threshold(20_000, 20, 20)  # as the command does; the usual one takes a quarter of the time of collecting tests

DATA = Path(__file__).parent / "data"
PHOTOS = Path(__file__).parents[1] / "demo" / "images"

TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 7, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""What rounding makes of equal numbers on any CPU, as a share of the largest of them, or of 1 if all are smaller."""

Array = torch.Tensor | np.ndarray


def close(got: Array, want: Array | float, *, tolerance: float | None = None, why: str = "") -> None:
    """Assert that an array holds the numbers of another, or one number, but for rounding, that of the coarser dtype.

    The bar goes with the largest number, not with each: a small sum of large terms is rounded as its terms are.

    Args:
        tolerance: in place of the table's, for reasons that `why` gives.
    """
    got = torch.as_tensor(got)
    want = torch.full_like(got, want) if isinstance(want, int | float) else torch.as_tensor(want)
    assert (tolerance is None) == (not why), "a tolerance of its own says why, and nothing else does"
    if tolerance is None:
        tolerance = max(TOLERANCE[got.dtype], TOLERANCE[want.dtype])
    largest = max([1.0, *want[want.isfinite()].abs().tolist()])
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance * largest, rtol=0, equal_nan=True)


def seed_by(name: str) -> None:
    """Seed whatever draws from a global generator."""
    number = crc32(name.encode())
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


hypothesis.settings.register_profile("same examples in every run", derandomize=True)
hypothesis.settings.load_profile("same examples in every run")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Each test draws numbers of its own, whichever ran before it."""
    seed_by(request.node.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Fixtures that several tests share draw the same numbers, whichever test asks first."""
    if fixturedef.scope != "function":
        seed_by(f"{request.node.nodeid} {fixturedef.argname}")
    return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run test files, and tests in each, in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("shuffle")) is None:
        return
    random.Random(seed).shuffle(items)
    turn = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: turn[item.path])  # files stay together: their fixtures are made once


def pytest_collection_finish() -> None:
    gc.freeze()  # what is there now stays to the end: a million objects need not be looked at again and again


@pytest.fixture(autouse=True, scope="session")
def own_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Keep tests out of the user's cache: one folder for a run and all its processes, so tables are made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "cache"  # a process of pytest-xdist
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DENSEVL_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def commands_made_once() -> Generator[None]:
    """Typer makes all commands of an app anew for each call of its runner, which takes longer than most calls do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def random_clip(seed: int = 0, config: dict | None = None) -> torch.nn.Module:
    """A CLIP with random weights in which every part has an effect (norms and biases are not at their defaults)."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**(config or TINY)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 and name != "logit_scale":
            parameter += 0.2 * torch.randn_like(parameter)
        elif "attn" in name or "embedding" in name:
            parameter.copy_(torch.randn_like(parameter) * (1.2 / parameter.shape[-1] ** 0.5))
    return model


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """Made once: it reads all words of CLIP."""
    return open_clip.SimpleTokenizer(context_length=TINY["text_cfg"]["context_length"])


def wrap(model: torch.nn.Module, name: str = "tiny") -> OpenClipBackbone:
    settings = PreprocessCfg(size=model.visual.image_size)
    return OpenClipBackbone(
        model,
        tokenizer(),
        image_transform_v2(settings, is_train=False),
        name=name,
        mean=settings.mean,
        std=settings.std,
    )


@pytest.fixture(scope="session")
def golden_clip() -> OpenClipBackbone:
    """The CLIP of the golden arrays: twelve blocks of width 128, two heads of 64, patch 16, image 224, random."""
    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 128, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},  # not used
    }
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    model.visual.load_state_dict(load_file(DATA / "golden" / "vision.safetensors"))
    return wrap(model)


@pytest.fixture(scope="session")
def tiny() -> OpenClipBackbone:
    """Seven blocks of width 32, two heads of 16, patch 8, image 32."""
    return wrap(random_clip())
