"""Every launch that the kernels can make, recorded from the launching functions instead of written down twice.

A recorder replaces each kernel while the launching function runs on small CPU tensors. So each compilation gets the
arguments, the alignment and the tile of the real launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch

from densevl.inference import WindowGrid
from densevl.kernels.triton import affinity, attention, configs, decode, mix, neighbours

ARCHITECTURES = (80, 90)
MODULES = {
    "decode": (decode, "decode_kernel"),
    "attention": (attention, "attention_kernel"),
    "affinity": (affinity, "affinity_kernel"),
    "mix": (mix, "mix_kernel"),
    "nearest": (neighbours, "nearest_kernel"),
}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
GRIDS = {" narrow": (8, 28), " wide": (8, 64)}
# Tokens a tile of pixels touches: side of the image, crop, size of the output; windows step by 112.
GEOMETRIES: dict[int, tuple[int, int | None, tuple[int, int]]] = {
    16: (448, 224, (448, 448)),
    32: (896, 224, (448, 448)),
    64: (672, 336, (672, 672)),
    128: (672, 336, (672, 448)),
}
UNALIGNED = " unaligned"  # suffix of launches whose inputs are slices of other tensors
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


@dataclass(frozen=True)
class Launch:
    """One compilation.

    Attributes:
        name: kernel and variant, such as "attention gaussian wide d64 fp16"; arch: 80 or 90.
        kernel: the jitted function; args: by name, as launched; options: warps and stages.
        entries: results per program and step of its main loop, 0 if that is meaningless.
    """

    name: str
    arch: int
    kernel: Any
    args: dict[str, Any]
    options: dict[str, int]
    entries: int

    def signature(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """Return types, constants and divisibility of the arguments, as Triton's own launcher derives them."""
        types, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value, name = self.args[parameter.name], parameter.name
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                types[name], constants[name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                types[name], multiple = POINTERS[value.dtype], value.data_ptr() % 16 == 0
            elif isinstance(value, int):
                types[name], multiple = "i32", value % 16 == 0
            else:
                types[name], multiple = "fp32", False
            if multiple:
                attributes[place,] = [["tt.divisibility", 16]]
        return types, constants, attributes


class _Recorder:
    def __init__(self, kernel: Any, seen: list[tuple[Any, dict[str, Any], dict[str, int]]]) -> None:
        self._kernel, self._seen = kernel, seen

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **keywords: Any) -> None:
            options = {key: keywords.pop(key) for key in ("num_warps", "num_stages")}
            by_name = dict(zip(self._kernel.arg_names, args, strict=False)) | keywords
            self._seen.append((self._kernel, by_name, options))

        return launch


class _Keeper:
    """Launches a kernel and keeps its compiled form; nothing is compiled in the interpreter."""

    def __init__(self, kernel: Any, seen: list[Any]) -> None:
        self._kernel, self._seen = kernel, seen

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **keywords: self._seen.append(self._kernel[grid](*args, **keywords))


@contextmanager
def _stood_in_for(stand_in: Callable[[Any, list[Any]], Any]) -> Iterator[dict[str, list[Any]]]:
    """Replace every kernel, and record the calls of each."""
    seen: dict[str, list[Any]] = {name: [] for name in MODULES}
    with ExitStack() as stack:
        for name, (module, function) in MODULES.items():
            stack.enter_context(mock.patch.object(module, function, stand_in(getattr(module, function), seen[name])))
        yield seen


def record(kernel: str, arch: int, run: Callable[[], Any]) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """Return the last launch of a kernel that `run` makes with the tiles of an architecture."""
    with _stood_in_for(_Recorder) as seen, mock.patch.object(configs, "architecture", return_value=arch):
        run()
    return seen[kernel][-1]


def compiled(kernel: str, run: Callable[[], Any]) -> Any:
    """Return Triton's compilation of the last launch of a kernel by `run` on its device; None in the interpreter."""
    with _stood_in_for(_Keeper) as seen:
        run()
    return seen[kernel][-1]


Lay = Callable[[torch.Tensor], torch.Tensor]  # layout of an input in memory


def _plainly(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same, but its rows neither start on 16 bytes nor are a multiple of 16 entries apart."""
    return torch.nn.functional.pad(tensor, (1, 0))[..., 1:]


def _decode(
    on: str, image: int, crop: int | None, size: tuple[int, int], scale: float | None, lay: Lay = _plainly
) -> Callable[[], Any]:
    plan = WindowGrid.place(image, image, crop, 112, 16).plan(*size)
    scores = lay(torch.rand(1, plan.rows.matrix.shape[1], plan.cols.matrix.shape[1], 64, device=on))
    return lambda: decode.dense_decode(scores, plan.rows.matrix, plan.cols.matrix, scale)


def _attention(
    on: str, bias: str, grid: tuple[int, int], width: int, lse: bool, dtype: torch.dtype, lay: Lay = _plainly
) -> Callable[[], Any]:
    prefix = 0 if bias == "rel" else 5
    total = prefix + grid[0] * grid[1]
    q, k, v = map(lay, torch.zeros(1, total, 3, 2, width, dtype=dtype, device=on).permute(2, 0, 3, 1, 4).unbind(0))
    rel = lay(torch.zeros(2, total, sum(grid), dtype=dtype, device=on)) if bias == "rel" else None
    std = 5.0 if bias == "gaussian" else None
    return lambda: attention.grid_attention(q, k, v, grid, prefix, std, None, rel, lse)


def _affinity(
    on: str,
    dtype: torch.dtype,
    width: int,
    lay: Lay = _plainly,
    cut: bool = False,
    floor: float | None = None,
    linear: bool = False,
) -> Callable[[], Any]:
    threshold = torch.zeros(1, device=on) if cut else None
    x, v = (lay(torch.zeros(1, 160, each, dtype=dtype, device=on)) for each in (width, 64))
    return lambda: affinity.affinity_apply(x, v, threshold, 3.0, floor, linear)


def _mix(on: str, dtype: torch.dtype, width: int, relative: bool, lay: Lay = _plainly) -> Callable[[], Any]:
    q, k, v = map(lay, torch.zeros(1, 1024, 3, 2, width, dtype=dtype, device=on).permute(2, 0, 3, 1, 4).unbind(0))
    rel = lay(torch.zeros(2, 1024, 64, dtype=dtype, device=on)) if relative else None
    x = torch.zeros(1, 32 * 24, 32, dtype=dtype, device=on)
    return lambda: mix.affinity_mix(q, k, v, x, (32, 32), (32, 24), rel, 1.2, 0.9, None)


def _nearest(on: str, dtype: torch.dtype, width: int, lay: Lay = _plainly) -> Callable[[], Any]:
    x, bank = (lay(torch.zeros(160, width, dtype=dtype, device=on)) for _ in range(2))
    return lambda: neighbours.nearest(x, bank)


def cases(on: str = "cpu") -> Iterator[tuple[str, str, Callable[[], Callable[[], Any]]]]:
    """Yield (kernel, variant, a function that makes its tensors on a device and returns the launch)."""
    for taps, geometry in GEOMETRIES.items():
        for what, scale in {"best": None, "lse": 50.0}.items():
            yield "decode", f"{what} {taps} taps", partial(_decode, on, *geometry, scale)
    for label, dtype in TYPES.items():
        for bias, shapes in {"plain": {"": (8, 28)}, "gaussian": GRIDS, "rel": GRIDS}.items():
            for shape, grid in shapes.items():
                for width in (16, 32, 64, 80) if bias == "rel" else (16, 32, 64, 80, 128):
                    yield (
                        "attention",
                        f"{bias}{shape} d{width} lse {label}",
                        partial(_attention, on, bias, grid, width, True, dtype),
                    )
                yield "attention", f"{bias}{shape} d64 {label}", partial(_attention, on, bias, grid, 64, False, dtype)
        rules: dict[str, Any] = {"cut": {"cut": True}, "cut floor": {"cut": True, "floor": 0.1}, "softmax": {}}
        for rule, keywords in (rules | {"linear": {"linear": True, "floor": 0.1}}).items():
            yield "affinity", f"{rule} {label}", partial(_affinity, on, dtype, 768, **keywords)
        for width in (16, 32, 64, 80):
            yield "mix", f"rel d{width} {label}", partial(_mix, on, dtype, width, True)
        for width in (64, 128):
            yield "mix", f"plain d{width} {label}", partial(_mix, on, dtype, width, False)
        yield "nearest", f"D=768 {label}", partial(_nearest, on, dtype, 768)
    half = torch.float16
    yield "decode", f"lse 64 taps{UNALIGNED}", partial(_decode, on, *GEOMETRIES[64], 50.0, unaligned)
    yield (
        "attention",
        "gaussian wide d64 lse fp16" + UNALIGNED,
        partial(_attention, on, "gaussian", (9, 63), 64, True, half, unaligned),
    )
    yield (
        "attention",
        "rel wide d64 lse fp16" + UNALIGNED,
        partial(_attention, on, "rel", (9, 63), 64, True, half, unaligned),
    )
    yield "affinity", f"cut fp16{UNALIGNED}", partial(_affinity, on, half, 765, unaligned, cut=True)
    yield "mix", f"rel d64 fp16{UNALIGNED}", partial(_mix, on, half, 64, True, unaligned)
    yield "nearest", f"D=768 fp16{UNALIGNED}", partial(_nearest, on, half, 768, unaligned)


def _entries(kernel: str, args: dict[str, Any]) -> int:
    if kernel == "decode" and args["WANT_LSE"]:
        return args["TY"] * args["TX"] * args["BLOCK"]
    if kernel == "attention":
        return args["QUERIES"] * args["ROWS"] * args["COLUMNS"]
    return args["QUERIES"] * args["COLUMNS"] if kernel == "mix" else 0


def launches(only: Callable[[str], bool] = lambda name: True) -> Iterator[Launch]:
    """Return all launches whose name `only` accepts, for both architectures."""
    for kernel, variant, make in cases():
        name = f"{kernel} {variant}"
        for arch in ARCHITECTURES:
            if only(name):
                function, args, options = record(kernel, arch, make())
                yield Launch(name, arch, function, args, options, _entries(kernel, args))
