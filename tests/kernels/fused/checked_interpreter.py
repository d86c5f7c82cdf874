"""Two changes to Triton's interpreter that make it tell more of the truth. For tests only.

1. It keeps bfloat16 as bit patterns in uint16 and multiplies the patterns in `tl.dot`: operands are made float32 first.
2. It reads any address the process owns. Here the active lanes of a load or store must lie inside one tensor of the
   launch; a mask that is missing is then an error, as it would be on a device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


class OutsideError(Exception):
    """A kernel touched memory that is none of its arguments."""


_spans: list[tuple[int, int]] = []


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size() if tensor.numel() else first


def _check(pointers: Any, mask: Any) -> None:
    touched = pointers.data[np.broadcast_to(np.asarray(mask.data).astype(bool), pointers.data.shape)].astype(np.int64)
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    # All lanes of an access belong to one argument, so one span must hold them all.
    if touched.size and not any(first <= touched.min() and touched.max() + size <= end for first, end in _spans):
        raise OutsideError(f"an access of {touched.size} active lanes does not lie inside one argument")


def install() -> None:
    """Change the interpreter of this process."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    to_host = executor._init_args_hst

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def remembered(self: Any, args: Any, keywords: Any) -> Any:
        found = to_host(self, args, keywords)
        _spans[:] = [_span(t) for t in (*found[0], *found[1].values()) if isinstance(t, torch.Tensor)]
        return found

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.create_dot, executor._init_args_hst = exact_dot, remembered
