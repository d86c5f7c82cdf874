"""Write graphs to files: ONNX, torch's own format, and OpenVINO, each with the facts that a program needs."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from densevl.errors import MissingExtraError, OptionError, RecipeError, one_of
from densevl.exporting.graph import SCORES, as_texts, first_line, quiet
from densevl.files import atomic_write_all

FORMATS = {"onnx": (".onnx",), "torch": (".pt2",), "openvino": (".xml", ".bin")}
"""File extensions of each format; the first is that of the given path."""
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "openvino": ("onnx", "onnxscript", "openvino")}
OPSET = 20
EXTRA_FILE = "densevl.json"  # holds the facts in torch's file
Run = Callable[..., np.ndarray]
"""Runs a file: from inputs in the graph's order, (B, 3, H, W), (T, D) and perhaps (T,), to scores (B, h, w, T)."""


def path_of(out: str | Path, kind: str) -> Path:
    """Return the path of a file in a format, with its extension appended if missing.

    Raises:
        OptionError: If there is no such format, or the extension belongs to another.
    """
    one_of(kind, FORMATS, "format", OptionError)
    path, ending = Path(out), FORMATS[kind][0]
    others = {ends[0]: name for name, ends in FORMATS.items()}
    if others.get(path.suffix.lower(), kind) != kind:
        raise OptionError(f"a file in format {kind} must end in {ending}, but '{path.name}' does not; rename it")
    return path if path.suffix.lower() == ending else path.with_name(path.name + ending)


def require(kind: str) -> None:
    """Refuse a format whose packages are missing.

    Raises:
        MissingExtraError: With the install command.
    """
    for package in NEEDS[kind]:
        if not find_spec(package):
            raise MissingExtraError(package, "openvino" if package == "openvino" else "export", f"format {kind}")


def save(program: ExportedProgram, kind: str, path: Path, content: dict[str, Any]) -> list[Path]:
    """Write a graph completely or not at all.

    Args:
        kind: a key of `FORMATS`. content: from `graph.facts`.

    Returns:
        The files written.

    Raises:
        RecipeError: If the format cannot store the graph.
        OutputError: If it cannot be written.
    """
    require(kind)
    if kind == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(content)})
        return atomic_write_all({path: buffer.getvalue()})
    model = _onnx(program, content)
    if kind == "onnx":
        return atomic_write_all({path: model})
    return atomic_write_all(
        {path.with_suffix(ending): data for ending, data in zip(FORMATS[kind], _openvino(model, content), strict=True)}
    )


def _onnx(program: ExportedProgram, content: dict[str, Any]) -> bytes:
    try:
        with quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, output_names=[SCORES], verbose=False, optimize=True
            )
    except Exception as error:  # torch's converter may raise anything
        cause = error.__cause__ or error
        raise RecipeError(f"ONNX has no operators for this graph ({first_line(cause)}); take format torch") from error
    model = made.model_proto  # type: ignore[union-attr]
    if any(not axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]):
        raise RecipeError("ONNX's converter fixes the sizes of this graph; take format torch")
    for key, value in as_texts(content).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name, model.producer_version = "densevl", content["densevl"]
    return model.SerializeToString()


def _openvino(model: bytes, content: dict[str, Any]) -> tuple[bytes, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "model.onnx"), Path(folder, "model.xml")
        source.write_bytes(model)
        converted = openvino.convert_model(source)
        for key, value in as_texts(content).items():
            converted.set_rt_info(value, ["densevl", key])
        openvino.save_model(converted, target, compress_to_fp16=False)
        return target.read_bytes(), target.with_suffix(".bin").read_bytes()


def runner(path: Path, kind: str) -> Run:
    """Return a function that runs a file of `save` on the CPU, with as many threads as torch has."""
    if kind == "torch":
        program = torch.export.load(path).module()

        def by_torch(*inputs: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return program(*map(torch.from_numpy, inputs)).numpy()

        return by_torch
    if kind == "openvino":
        import openvino

        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", threads)
        return lambda *inputs: next(iter(compiled(list(inputs)).values()))
    from densevl.backbones.exported import session

    opened = session(path)
    names = [entry.name for entry in opened.get_inputs()]
    return lambda *inputs: opened.run(None, dict(zip(names, inputs, strict=True)))[0]
