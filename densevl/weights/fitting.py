"""Whether tensors fit a network: compared by name, shape and dtype before anything is loaded or allocated."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from densevl.weights.finite import spoilt
from densevl.weights.reading import bad_file

SHOWN_KEYS = 5
LARGEST_SIZE = 2**17
DEEPEST = 256
"""The largest number of layers in a stack."""
WAY_OUT = "name the architecture it was trained with"
_DRAWS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, torch.Tensor.normal_, torch.Tensor.uniform_)

Module = TypeVar("Module", bound=nn.Module)


def require_fit(
    wanted: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    path: Path,
    what: str,
    way_out: str = WAY_OUT,
) -> None:
    """Compare the tensors of a file with those of a network.

    Args:
        wanted: the network's `state_dict()`, on any device, including meta. found: the file's.
        path: the file. what: the network, for the message: "'ViT-B-16'".

    Raises:
        WeightsError: names, shapes or kinds of dtype differ, of which up to five each are listed, or numbers are NaN
            or infinite.
    """
    both = [key for key in wanted if key in found]
    shapes = [key for key in both if found[key].shape != wanted[key].shape]
    kinds = [key for key in both if _kind(found[key]) != _kind(wanted[key])]
    odd = [
        _listed([key for key in wanted if key not in found], "missing"),
        _listed([key for key in found if key not in wanted], "unexpected"),
        _listed(
            [f"{_short(key)} is {tuple(found[key].shape)}, not {tuple(wanted[key].shape)}" for key in shapes],
            "of another shape",
        ),
        _listed([f"{_short(key)} is {found[key].dtype}" for key in kinds], "of another kind of numbers"),
    ]
    if any(odd):
        raise bad_file(path, f"does not fit {what}: {'; '.join(part for part in odd if part)}; {way_out}")
    if names := spoilt(found):
        raise bad_file(
            path,
            f"holds NaN or infinite numbers in {len(names)} of {len(found)} tensors, {_short(names[0])} first: it is "
            "damaged, or its training diverged",
        )


def load_strictly(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, what: str, way_out: str = WAY_OUT
) -> None:
    """`load_state_dict`, in the model's own precision, after `require_fit`.

    Raises:
        WeightsError: they do not fit.
    """
    require_fit(model.state_dict(), tensors, path, what, way_out)
    model.load_state_dict(tensors, strict=True)


def assign(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], device: str = "cpu", as_stored: Collection[str] = ()
) -> None:
    """Give a network with parameters on the meta device copies of fitting tensors, in its own precision.

    Args:
        device: of the copies, which are made one by one.
        as_stored: names of tensors that are assigned uncopied, mapped from the file, for the caller to convert.
    """
    plain = torch.contiguous_format
    own = {
        key: tensors[key] if key in as_stored else tensors[key].to(device, value.dtype, copy=True, memory_format=plain)
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(own, strict=True, assign=True)


def build_strictly(
    make: Callable[[], Module], tensors: Mapping[str, torch.Tensor], path: Path, what: str, way_out: str = WAY_OUT
) -> Module:
    """Build a network whose sizes come from a file, and load it; memory is allocated only once its tensors fit.

    Args:
        make: builds it on the default device.

    Raises:
        WeightsError: no network can have these sizes, or the tensors do not fit it.
    """
    require_buildable(make, tensors, path, what, way_out)
    with Undrawn():
        model = make()
    model.load_state_dict(tensors, strict=True)
    return model


def require_buildable(
    make: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor], path: Path, what: str, way_out: str = WAY_OUT
) -> None:
    """The first half of `build_strictly`: build the network without memory, and compare the tensors with it."""
    try:
        with torch.device("meta"), Undrawn():
            plan = make()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise bad_file(path, f"holds sizes of no network ({reason}); {way_out}") from error
    require_fit(plan.state_dict(), tensors, path, what, way_out)


class Undrawn(TorchFunctionMode):
    """Skip the random initialisation of networks built within, because weights will replace it.

    It takes time, and on the meta device `normal_` imports torch's compiler, which takes as long as torch itself.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def require_sizes(text: str, path: Path) -> Any:
    """Read the JSON with a network's sizes from a file's header.

    Returns:
        The result of `json.loads`.

    Raises:
        WeightsError: it is not JSON, or a number is impossible: below 0, above 131,072, or more than 256 layers.
    """
    try:
        content = json.loads(text)
        _check_sizes(content, "")
    except (ValueError, RecursionError) as error:
        raise bad_file(path, f"cannot be read: its header is damaged ({error})") from error
    return content


def _check_sizes(content: Any, name: str) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            _check_sizes(value, str(key))
    elif isinstance(content, list):
        for value in content:
            _check_sizes(value, name)
    elif isinstance(content, int | float):
        most = DEEPEST if "layers" in name or "depth" in name else LARGEST_SIZE
        if not 0 <= content <= most:  # refuses NaN too
            raise ValueError(f"{_short(name)} is {content}; sizes are 0 to {most:,}")


def _kind(tensor: torch.Tensor) -> str:
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"


def _listed(keys: Sequence[str], what: str) -> str:
    more = ", ..." if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys):,} {what} ({', '.join(map(_short, keys[:SHOWN_KEYS]))}{more})" if keys else ""


def _short(key: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in key[:120])
