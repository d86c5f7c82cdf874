"""The settings of a transformers image processor: each one that changes pixels is followed or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevl.errors import ModelError
from densevl.saved import Kind, read_json
from densevl.weights.facts import Fact, Facts

FILES = ("processor_config.json", "preprocessor_config.json")
"""In transformers' order of preference; the first holds the settings under "image_processor"."""
KIND = Kind("image processor", ModelError, "download it again, or remove it for the usual pixels of the model's type")
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names by Pillow's number."""
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
"""The supported steps; others that are switched on are refused."""


@dataclass(frozen=True)
class Processor:
    """The settings in a file, and the file's path."""

    settings: Mapping[str, Any]
    path: Path


def read_processor(folder: Path) -> Processor | None:
    """The settings in a model's folder; None if it has none.

    Raises:
        ModelError: the file cannot be read.
    """
    for path in (folder / name for name in FILES):
        if not path.is_file():
            continue
        settings: Any = read_json(path, KIND)
        if path.name == FILES[0]:
            settings = settings.get("image_processor")
            if settings is None:
                continue
            if not isinstance(settings, dict):
                raise KIND.bad(path, f"says {str(settings)[:40]!r} for image_processor, which is an object")
        return Processor(settings, path)
    return None


def followed(usual: Facts, processor: Processor | None, size: int) -> dict[str, Fact]:
    """Facts of pixels: those of the model's type, changed by its processor.

    Args:
        usual: mean, std, interpolation, resize_mode. size: of the model's input, in pixels.

    Returns:
        The same names, and "resize" if the short side is resized to more than the crop. Mean and deviation are for
        pixels of 0 to 1, whatever the processor's `rescale_factor`.

    Raises:
        ModelError: settings have a wrong type, or are not supported.
    """
    if processor is None:
        return dict(usual)
    settings, path = processor.settings, processor.path
    steps = {key: value for key, value in settings.items() if key.startswith("do_") and value is not None}
    if odd := next((key for key, value in steps.items() if not isinstance(value, bool)), None):
        raise KIND.bad(path, f"says {str(steps[odd])[:40]!r} for {odd}, which is true or false")
    if odd := next((key for key, value in steps.items() if value and key not in _STEPS), None):
        raise KIND.bad(path, f"says {odd[:40]}, which densevl does not do")
    mean, std = (
        _three(settings, key, usual[name].value, path) for key, name in (("image_mean", "mean"), ("image_std", "std"))
    )
    if steps.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = settings.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
        raise KIND.bad(path, f"says {str(factor)[:40]!r} for rescale_factor, which is a number above 0 and up to 1")
    scale = 255 * factor if steps.get("do_rescale", True) else 255.0
    values: dict[str, Any] = {
        "mean": tuple(x / scale for x in mean),
        "std": tuple(x / scale for x in std),
        "interpolation": _resample(settings, usual["interpolation"].value, path),
        **_sizes(settings, steps, usual["resize_mode"].value, size, path),
    }
    return {name: Fact(value, path.name) for name, value in values.items()}


def require_pixels(facts: Facts) -> None:
    """Check mean and deviation from any source.

    Raises:
        ModelError: they are not three numbers that pixels of 0 to 1 can have.
    """
    for name, least in (("mean", 0.0), ("std", 1e-6)):
        if name in facts and not _are_of_pixels(facts[name].value, least):
            raise ModelError(
                f"{facts[name].source}: {name} is {_shown(facts[name].value)} for pixels of 0 to 1; it is three "
                f"numbers of {'0' if name == 'mean' else 'above 0'} to 1: correct it there, or give {name} yourself"
            )


def _are_of_pixels(value: Any, least: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(x, int | float) and not isinstance(x, bool) and least <= x <= 1 for x in value)
    )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(x, float) for x in value):
        return ", ".join(f"{x:.6g}" for x in value)[:60]
    return str(value)[:60]


def _three(settings: Mapping[str, Any], key: str, usual: Any, path: Path) -> tuple[float, ...]:
    given = settings.get(key)
    if given is None:
        return tuple(usual)
    if isinstance(given, int | float) and not isinstance(given, bool):  # transformers takes one for all channels
        given = [given] * 3
    if not (isinstance(given, list) and len(given) == 3 and all(type(x) in (int, float) for x in given)):
        raise KIND.bad(path, f"says {str(given)[:40]!r} for {key}, which is three numbers")
    return tuple(map(float, given))


def _resample(settings: Mapping[str, Any], usual: str, path: Path) -> str:
    number = settings.get("resample")
    if number is None:
        return usual
    if type(number) is not int or not 0 <= number < len(RESAMPLE):
        raise KIND.bad(path, f"says {str(number)[:40]!r} for resample, which is Pillow's number of 0 to 5")
    return RESAMPLE[number]


def _sizes(
    settings: Mapping[str, Any], steps: Mapping[str, bool], usual: str, size: int, path: Path
) -> dict[str, str | int]:
    """How a whole picture is brought to the model's size."""
    if not steps.get("do_resize", True):
        raise KIND.bad(path, "says do_resize false, so pictures of any size would reach the model")
    given = settings.get("size")
    crops = steps.get("do_center_crop", usual == "shortest")
    cut = settings.get("crop_size")
    cut = cut.get("height") if isinstance(cut, dict) and cut.get("height") == cut.get("width") else cut
    cut = size if cut is None else cut
    if crops and cut != size:
        raise KIND.bad(path, f"says {str(cut)[:60]} for crop_size, and the model takes {size} pixels a side")
    if given is None:
        return {"resize_mode": usual}
    if type(given) is int:
        given = {"shortest_edge": given} if usual == "shortest" else {"height": given, "width": given}
    edges = tuple(given.get(key) for key in ("height", "width", "shortest_edge")) if isinstance(given, dict) else ()
    if not any(edges) or not all(edge is None or (type(edge) is int and edge > 0) for edge in edges):
        raise KIND.bad(path, f"says {str(given)[:60]} for size, which is height and width, or shortest_edge")
    height, width, edge = edges
    if edge is None:
        if height != width or (crops and height != size):
            raise KIND.bad(path, f"resizes to {height}x{width}, and the model takes {size} pixels a side")
        return {"resize_mode": "squash"}
    if not crops:
        raise KIND.bad(
            path, "says shortest_edge without do_center_crop, so pictures of any shape would reach the model"
        )
    if edge < size:
        raise KIND.bad(path, f"says shortest_edge {edge}, less than the {size} pixels that it crops")
    return {"resize_mode": "shortest", **({"resize": edge} if edge != size else {})}
