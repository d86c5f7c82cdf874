"""The same image tower in the libraries that a user might take instead of densevl: `python tools/bench.py --peers`.

Needs the extra "bench". Each runs on one thread, all alternating in one process, with the same random weights.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl.backbones import Backbone
from densevl.backbones.lowered.probe import machine
from densevl.benchmarking.cases import Case, measure
from densevl.benchmarking.clock import costs
from densevl.benchmarking.random_model import random_model

ARCHES = ("ViT-B-16", "ViT-B-16-quickgelu")
WINDOWS = 6
SIZES = (336, 448), (560, 1008)
Run = Callable[[], torch.Tensor]


def peers(rounds: int) -> dict[str, Any]:
    """For each of `ARCHES`, the time of an image embedding of `WINDOWS` windows by each, and its relative error; then
    photos from pixels to labels, relative to open_clip's passes over the papers' windows."""
    import onnxruntime
    import openvino

    found: dict[str, Any] = {
        "machine": machine(torch.device("cpu")),
        "versions": {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__.split("-")[0]},
        "windows": WINDOWS,
        "rounds": rounds,
        "passes": [],
        "photos": [],
    }
    for arch in ARCHES:
        backbone = random_model(arch)
        found["passes"] += passes(backbone, rounds, WINDOWS)
        found["photos"] += [
            {"model": backbone.name} | measure(backbone, Case("sclip", "tiles", precision, *size, 21), rounds)
            for size in SIZES
            for precision in ("float32", "int8")
        ]
    return found


def passes(backbone: Backbone, rounds: int, windows: int) -> list[dict[str, Any]]:
    """Return the rows of one architecture."""
    side = backbone.tower.image_size  # type: ignore[attr-defined]
    pixels = torch.randn(windows, 3, *side, generator=torch.Generator().manual_seed(0))
    visual = backbone.model.visual  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {
            "open_clip float32": lambda: backbone.encode_image(pixels),
            "densevl float32": embedding(backbone, pixels),
            "densevl float32-packed": embedding(backbone.at_precision("float32-packed"), pixels),
            "OpenVINO float32": openvino_run(visual, pixels),
            "densevl int8": embedding(backbone.at_precision("int8"), pixels),
            "ONNX Runtime int8, dynamic": onnxruntime_run(visual, pixels, Path(folder)),
        }
        want = runs["open_clip float32"]()
        rows = []
        for name, cost in costs(runs, rounds, backbone.device).items():
            error = float((runs[name]() - want).norm() / want.norm())
            rows.append({"model": backbone.name, "by": name, **asdict(cost), "error": error})
    return rows


def embedding(backbone: Backbone, pixels: torch.Tensor) -> Run:
    """Return the tower's own image embedding by our engine."""
    tower: Any = backbone.tower  # type: ignore[attr-defined]
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size

    def run() -> torch.Tensor:
        x_BND = tower.embed(pixels, "size")
        for index in range(tower.depth):
            x_BND = tower.run(index, x_BND, grid)
        return tower.pool(x_BND)

    return torch.no_grad()(run)


def openvino_run(visual: torch.nn.Module, pixels: torch.Tensor) -> Run:
    """Return OpenVINO's embedding, converted from the torch module."""
    import openvino

    with quiet():
        model = openvino.convert_model(visual, example_input=pixels)
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    given = pixels.numpy()

    def run() -> torch.Tensor:
        return torch.from_numpy(np.array(next(iter(request.infer({0: given}).values()))))

    return run


def onnxruntime_run(visual: torch.nn.Module, pixels: torch.Tensor, folder: Path) -> Run:
    """Return ONNX Runtime's embedding, with matmul weights quantised to 8 bits and tokens dynamically."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, quantised = folder / "plain.onnx", folder / "int8.onnx"
    with quiet():
        torch.onnx.export(visual, (pixels,), str(plain), dynamo=True, external_data=False, verbose=False)
        quantize_dynamic(plain, quantised, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(quantised), options, providers=["CPUExecutionProvider"])
    name, given = session.get_inputs()[0].name, pixels.numpy()
    return lambda: torch.from_numpy(session.run(None, {name: given})[0])


@contextmanager
def quiet() -> Any:
    """Silence the converters; use plain operators for attention, which they know."""
    logging.disable(logging.WARNING)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.disable(logging.NOTSET)
