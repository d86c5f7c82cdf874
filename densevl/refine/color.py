"""sRGB to CIE Lab (D65), in which equal distances look about equally different."""

from __future__ import annotations

import torch

_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_LINEAR_UNDER = 0.04045
_CUBE_OVER = (6 / 29) ** 3


def rgb_to_lab(rgb_B3HW: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) float RGB within 0..1 to (B, 3, H, W): L within 0..100, a and b about -128..127."""
    linear = torch.where(rgb_B3HW > _LINEAR_UNDER, ((rgb_B3HW.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb_B3HW / 12.92)
    matrix = torch.tensor(_TO_XYZ).to(linear) / torch.tensor(_WHITE).to(linear)[:, None]
    xyz = torch.einsum("xc,bchw->bxhw", matrix, linear)
    f = torch.where(xyz > _CUBE_OVER, xyz.clamp(min=_CUBE_OVER) ** (1 / 3), xyz * (841 / 108) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
