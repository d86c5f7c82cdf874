"""Test-time ensembles without training: several views of one image, or several models, on one grid of scores.

Flips. The windows of a mirrored image are the mirrored windows of the image. So reversing the whole block matrix
restores its scores: nothing is resampled, and each window covers the same pixels as before.

Scales and models. Their grids differ. The first grid is kept, and every other is read at its tokens: at the centre of a
token, the value is the one that the other grid's own decoding has there (windows averaged, bilinear in between). That
takes one small matrix per axis. No score reaches full resolution, and the first grid's plan decodes once.

Scores are averaged: cosines for a CLIP. They are linear in unit features, so the average is also the cosine with the
mean of the views' unit features (ITACLIP). Shape letters: B batch, T texts, H/W pixels, Y/X window tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import ProtocolError, suggest
from densevl.inference.windows import AxisWindows, WindowGrid
from densevl.recipes import Hints

Look = Callable[[torch.Tensor, WindowGrid, Hints], tuple[torch.Tensor, WindowGrid]]
"""From pixels (B, 3, H, W), their windows and hints to the results of `window_scores`."""
Lay = Callable[[float], tuple[torch.Tensor, WindowGrid]]
"""From a scale to the image at that scale, (B, 3, H, W), and its windows."""

DIMENSIONS = {"h": -1, "v": -2}
SCALES = (0.25, 4.0)
GREY = (0.2989, 0.587, 0.114)  # shares of red, green and blue in luminance (ITU-R BT.601)
BLUR_REACH, BLUR_STD = 5, 5.0  # 11 x 11 pixels


@dataclass(frozen=True)
class Views:
    """The views of an image that are scored and averaged.

    Attributes:
        flips: mirrored views, "h" left for right, "v" upside down.
        scales: sizes of the image relative to the protocol's; the first gives the grid. All have the same weight.
        grey, blur: a greyscale view, and one under an 11 x 11 Gaussian of std 5, both of the normalised pixels.
        flip_share: weight of all mirrored views together, 0..1; None gives every view the same weight.

    Raises:
        ProtocolError: If a view does not exist, a scale is outside 0.25..4, or a share outside 0..1.
    """

    flips: tuple[str, ...] = ("h",)
    scales: tuple[float, ...] = (1.0,)
    grey: bool = False
    blur: bool = False
    flip_share: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flips", tuple(self.flips))
        object.__setattr__(self, "scales", tuple(self.scales))
        if not set(self.flips) <= set(DIMENSIONS) or len(set(self.flips)) < len(self.flips):
            raise ProtocolError(f"flips are {self.flips}; take 'h', 'v' or both, each once")
        if not self.scales or not all(SCALES[0] <= scale <= SCALES[1] for scale in self.scales):
            raise ProtocolError(
                f"scales are {self.scales}; give at least one, each within {SCALES[0]:g}..{SCALES[1]:g}"
            )
        if self.flip_share is not None and not 0 <= self.flip_share <= 1:
            raise ProtocolError(f"flip_share is {self.flip_share}; it must be within 0..1, or None for equal weights")

    def __len__(self) -> int:
        """Return how many times the model looks at the image."""
        return len(self.scales) * (1 + self.grey + self.blur + len(self.flips))

    def each(self) -> Iterator[tuple[float, float, str]]:
        """Yield weight, scale and kind of every view: "" (unchanged), "grey", "blur", or a flip; weights sum to 1."""
        upright = ["", *["grey"] * self.grey, *["blur"] * self.blur]
        mirrored = len(self.flips)
        share = mirrored / (len(upright) + mirrored) if self.flip_share is None else self.flip_share
        share = share if mirrored else 0.0
        for scale in self.scales:
            yield from (((1 - share) / len(upright) / len(self.scales), scale, kind) for kind in upright)
            yield from ((share / mirrored / len(self.scales), scale, flip) for flip in self.flips)

    @classmethod
    def parse(cls, spec: str | Views | None) -> Views | None:
        """Return the views of a name ("flip", "flip+scale", "itaclip"); pass `Views` and None (no ensemble) through.

        Raises:
            ProtocolError: If there is no such name.
        """
        if spec is None or isinstance(spec, Views):
            return spec
        if spec not in NAMED:
            raise ProtocolError(f"no views {spec!r}{suggest(str(spec), NAMED)}; known: {', '.join(NAMED)}")
        return NAMED[spec]


NAMED = MappingProxyType(
    {
        "flip": Views(),
        "flip+scale": Views(scales=(1.0, 0.75, 1.25)),
        # Aydın et al., CVPR Workshops 2025: image, grey and blurred view share 0.75, the two mirrored views 0.25
        "itaclip": Views(("v", "h"), grey=True, blur=True, flip_share=0.25),
    }
)


@torch.no_grad()
def view_scores(look: Look, lay: Lay, views: Views, hints: Hints) -> tuple[torch.Tensor, WindowGrid]:
    """Score an image by several views and average: (B, Y, X, T) float32, and the grid of the first view.

    The image is blurred before it is cut into windows. ITACLIP blurs each window, which differs within five pixels of
    a window's border.

    Args:
        look: scores pixels; called `len(views)` times. lay: makes the pixels and windows of a scale.
        hints: of the image; segments and masks are mirrored with it.
    """
    first, *others = views.scales
    total, grid = _one_scale(look, *lay(first), views, hints)
    for scale in others:
        total += regrid(*_one_scale(look, *lay(scale), views, hints), grid)
    return total.div_(len(views.scales)), grid


def _one_scale(
    look: Look, pixels: torch.Tensor, windows: WindowGrid, views: Views, hints: Hints
) -> tuple[torch.Tensor, WindowGrid]:
    (first, *_), *others = replace(views, scales=(1.0,)).each()
    total, grid = look(pixels, windows, hints)
    total *= first
    for weight, _, kind in others:
        if kind not in DIMENSIONS:
            total.add_(look(seen(pixels, kind), windows, hints)[0], alpha=weight)
            continue
        scores, _ = look(seen(pixels, kind), mirror(windows, kind), _mirrored(hints, DIMENSIONS[kind]))
        total.add_(scores.flip(DIMENSIONS[kind] - 1), alpha=weight)  # (B, Y, X, T): the axes are one earlier
    return total, grid


def seen(pixels: torch.Tensor, kind: str) -> torch.Tensor:
    """Turn normalised pixels (B, 3, H, W) into a view of a kind that `Views.each` yields."""
    if kind in DIMENSIONS:
        return pixels.flip(DIMENSIONS[kind])
    return greyscale(pixels) if kind == "grey" else blurred(pixels) if kind == "blur" else pixels


def _mirrored(hints: Hints, dimension: int) -> Hints:
    """Return the hints of the mirrored image; models run on it again."""
    regions, masks = (None if maps is None else maps.flip(dimension) for maps in (hints.regions, hints.masks))
    return replace(hints, regions=regions, masks=masks)


def greyscale(pixels: torch.Tensor) -> torch.Tensor:
    """Fill all three channels with their weighted mean: (B, 3, H, W) to the same."""
    weights = torch.tensor(GREY, device=pixels.device, dtype=pixels.dtype).view(3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True).expand_as(pixels).contiguous()


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    """Blur (B, 3, H, W) with a Gaussian of 11 x 11 pixels and std 5, reflecting the image at its border."""
    steps = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=pixels.device, dtype=pixels.dtype)
    line = torch.exp(-0.5 * (steps / BLUR_STD) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)
    mirrors = min(pixels.shape[-2:]) > BLUR_REACH  # a smaller image has too few pixels to mirror
    padded = F.pad(pixels, (BLUR_REACH,) * 4, mode="reflect" if mirrors else "replicate")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.mT, groups=3)


def mirror(windows: WindowGrid, flip: str) -> WindowGrid:
    """Return the windows that cut the mirrored windows of an image from the mirrored image, in opposite order.

    Args:
        flip: "h" or "v".
    """
    axis = windows.cols if flip == "h" else windows.rows
    total = axis.length + sum(axis.margin)
    starts = tuple(total - axis.crop - start for start in reversed(axis.starts))
    turned = replace(axis, starts=starts, before=axis.after, after=axis.before, margin=axis.margin[::-1])
    return replace(windows, cols=turned) if flip == "h" else replace(windows, rows=turned)


def regrid(scores: torch.Tensor, source: WindowGrid, target: WindowGrid) -> torch.Tensor:
    """Read scores (B, Y, X, T) of one grid at the tokens of another over the same image: (B, Y', X', T).

    A token outside the image, in its padding, reads the image's border. A finer grid is sampled at the token's centre,
    without antialiasing.
    """
    weights = []
    for own, other in ((source.rows, target.rows), (source.cols, target.cols)):
        places = _centres(other) / other.length * own.length
        matrix = _on_patches(own, places) if source.blend == "patch" else _in_windows(own, places)
        weights.append(torch.from_numpy(matrix).to(scores))
    return torch.einsum("xj,byjt->byxt", weights[1], torch.einsum("yi,bijt->byjt", weights[0], scores))


def _centres(axis: AxisWindows) -> np.ndarray:
    """Return the centres of all tokens in pixels of the image, window by window."""
    inside = (np.arange(axis.tokens) + 0.5) * axis.span / axis.tokens - axis.before - axis.margin[0]
    return (np.array(axis.starts)[:, None] + inside).reshape(-1)


def _between(at: np.ndarray, count: int) -> np.ndarray:
    """Return bilinear weights (P, count) of places on a line of `count` tokens, the first at 0; ends repeat."""
    at = np.clip(at, 0, count - 1)
    low = np.floor(at).astype(int)
    weights = np.zeros((len(at), count))
    np.add.at(weights, (np.arange(len(at)), low), 1 - (at - low))
    np.add.at(weights, (np.arange(len(at)), np.minimum(low + 1, count - 1)), at - low)
    return weights


def _in_windows(axis: AxisWindows, places: np.ndarray) -> np.ndarray:
    """Return weights (P, windows * tokens): the mean of the windows that hold a place, each interpolated alone."""
    places = np.clip(places, 0, axis.length * (1 - 1e-9))
    parts = []
    for start in axis.starts:
        inside = (places >= start) & (places < start + axis.crop)
        local = (places - start + axis.before) * axis.tokens / axis.span - 0.5
        parts.append(_between(local, axis.tokens) * inside[:, None])
    matrix = np.concatenate(parts, axis=1)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _on_patches(axis: AxisWindows, places: np.ndarray) -> np.ndarray:
    """Return weights (P, windows * tokens): tokens averaged on the shared patch grid and interpolated there."""
    patch = axis.crop // axis.tokens
    total = (axis.length + sum(axis.margin)) // patch
    grid = np.zeros((total, len(axis.starts) * axis.tokens))
    for index, start in enumerate(axis.starts):
        rows = start // patch + np.arange(axis.tokens)
        grid[rows, index * axis.tokens + np.arange(axis.tokens)] = 1
    return _between((places + axis.margin[0]) / patch - 0.5, total) @ (grid / grid.sum(axis=1, keepdims=True))
