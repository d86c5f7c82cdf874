"""`FeatureExtractor`: dense features of photos at any layer and spacing, for other programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl import __version__, digest
from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import ImageError, OptionError, RecipeError, one_of
from densevl.images import read_image
from densevl.inference import WindowGrid
from densevl.inference.sliding import windows_a_pass
from densevl.inference.views import Views, view_scores
from densevl.kernels import DecodePlan
from densevl.pipelines import remarks
from densevl.pipelines.borrowing import Borrowed
from densevl.pipelines.features.result import DTYPES, DenseMap
from densevl.pipelines.feeding import fed_size, feed
from densevl.pipelines.many import OnError, hearing, one_by_one, source
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.pipelines.segmentation.segments import Proposer
from densevl.pipelines.settings import checked
from densevl.recipes import Hints, Recipe, get
from densevl.recipes.trunk import Trunk, run_trunk
from densevl.regions.operators.dense import has_features
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.weights import require_finite

LARGEST = 2**30
"""Limit of one map in bytes."""
PATCH = "patch"
WORDS = frozenset({"templates", "text", "text_side", "background", "presence", "refine", "banks"})
"""Facts of a segmenter that do not affect features."""


class FeatureExtractor:
    """Dense features with one model and one recipe. Call it with an image.

    Examples:
        >>> features = FeatureExtractor("mini", stride=8)
        >>> found = features("scene.png")
        >>> found.features.shape, found.score(["cat", "dog"]).shape
    """

    @checked
    def __init__(
        self,
        model: str | Backbone = "auto",
        recipe: str | Recipe | None = None,
        *,
        layer: int | None = None,
        stride: int | str = PATCH,
        size: int | Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        dtype: str = "float16",
        weights: str | Path | None = None,
        protocol: InferenceProtocol | Mapping[str, Any] | str | None = None,
        proxy: Borrowed = None,
        proxy_scope: str = "image",
        sam: Borrowed = None,
        proposals: str | Proposer | None = None,
        device: str | None = None,
        precision: str | None = None,
        compat: bool = False,
    ) -> None:
        """Load the model.

        Args:
            layer: None takes the recipe's output, in the joint space of image and text. Otherwise the tokens after this
                block of the unchanged image tower: 1 is the first, 0 the input of the blocks, -1 the last. These have
                the tower's width, are not normalised, and cannot be compared with words.
            stride: pixels of the photo between cells, or "patch" for one cell per patch. The grid covers the photo, so
                the actual step is the nearest that divides it.
            size: number of cells instead of a stride, (h, w), or one number for both.
            scales: sizes of the photo relative to the protocol's, 0.25..4. Features are averaged over them.
            dtype: "float16" or "float32", of the result.
            model, recipe, weights, protocol, proxy, proxy_scope, sam, proposals, device, precision, compat: as for
                `Segmenter`.

        Raises:
            ModelError, WeightsError, MissingExtraError, RecipeError, ProtocolError: As for `Segmenter`. RecipeError is
                also raised if scores depend on the words, so that there are no features.
            OptionError: If there is no such layer, or a setting has a value it does not accept.
        """
        self.stride, self.size = _stride(stride), _size(size)
        if self.size is not None and stride != PATCH:
            raise OptionError(f"stride {stride!r} and size {size!r} both say how many cells there are; give one")
        asked = {"recipe": recipe, "proxy": proxy, "sam": sam, "proposals": proposals}
        if layer is not None and (extra := next((name for name in asked if asked[name] is not None), None)):
            raise OptionError(f"layers are those of the unchanged image tower; leave {extra} out")
        one_of(dtype, DTYPES, "dtype", OptionError)
        self.dtype = dtype
        self._segment = Segmenter(
            model,
            recipe if layer is None else "vanilla",
            weights=weights,
            protocol=protocol,
            proxy=proxy,
            proxy_scope=proxy_scope,
            sam=sam,
            proposals=proposals,
            views=Views(flips=(), scales=tuple(scales)),
            refine="none",
            device=device,
            precision=precision,
            compat=compat,
        )
        self.backbone, used = self._segment.backbone, self._segment.recipe
        if not has_features(used):
            what = f"model '{self.backbone.name}'" if used is None else f"recipe '{used.name}'"
            raise RecipeError(f"{what} scores words and has no features of its own; take another, such as a CLIP model")
        self.layer = None if layer is None else _layer(layer, self.backbone)
        self.width = self.backbone.embed_dim if self.layer is None else self._tower_width()
        self._text = TextClassifier(self.backbone)

    @hearing
    def __call__(self, image: Any, *, regions: Any = None) -> DenseMap:
        """Compute the features of one image.

        Args:
            image: any that `densevl.images.read_image` accepts. regions: for recipes that read segments, see
                `Segmenter`.

        Raises:
            ImageError: If it is unreadable, or the map would exceed 1 GiB; the message names a stride that fits.
            ProposalError, RecipeError: If regions do not fit, or are missing.
        """
        return self._run(image, read_image(image), regions)

    def many(self, images: Iterable[Any], *, on_error: OnError | None = None) -> Iterator[DenseMap]:
        """Compute the features of many images, in order, as a call does for each. See `Segmenter.many`."""
        return one_by_one(images, read_image, self._run, on_error=on_error)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a map besides the photo, ready for JSON."""
        own = {name: value for name, value in self._segment.facts().items() if name not in WORDS}
        grid = {"stride": self.stride, "size": list(self.size) if self.size else None}
        return {**own, "layer": self.layer, **grid, "dtype": self.dtype}

    def cells(self, photo: tuple[int, int]) -> tuple[int, int]:
        """Return the number of cells (h, w) for a photo of (H, W).

        Raises:
            ImageError: If the map would exceed the limit.
        """
        if self.size is not None:
            found = self.size
        elif self.stride == PATCH:
            fed = fed_size(photo, self._segment.protocol, self.backbone.patch_size)
            found = tuple(max(1, round(side / self.backbone.patch_size)) for side in fed)  # type: ignore[assignment]
        else:
            found = _divided(photo, int(self.stride))
        each = self.width * np.dtype(self.dtype).itemsize
        if (taken := math.prod(found) * each) > LARGEST:
            fits = next(step for step in count(1) if math.prod(_divided(photo, step)) * each <= LARGEST)
            raise ImageError(
                f"{found[0]}x{found[1]} cells of {self.width} numbers for a photo of {photo[0]}x{photo[1]} take "
                f"{taken / 2**30:.1f} GiB, the limit is {LARGEST / 2**30:g}; take stride={fits} "
                f"(--stride {fits}) or more"
            )
        return found

    def _run(self, image: Any, rgb: np.ndarray, regions: Any = None) -> DenseMap:
        photo = (rgb.shape[0], rgb.shape[1])
        cells = self.cells(photo)
        if self.layer is None:
            axes = torch.eye(self.backbone.embed_dim, device=self.backbone.device)  # a cosine is linear in the text
            tokens, grid = self._segment.project(rgb, axes, self._segment.segments(rgb, regions))
        else:
            lay = partial(feed, rgb, self.backbone, self._segment.protocol)
            tokens, grid = view_scores(self._tokens, lay, self._segment.views or Views(flips=()), Hints())
        found = _decoded(tokens[0], grid.plan(*cells, centres=True)).cpu()
        require_finite(found, f"features of model '{self.backbone.name}'")
        features = found.numpy().astype(self.dtype)
        if not np.isfinite(features).all():
            raise ImageError("values of this layer exceed float16; take dtype='float32' (--dtype float32)")
        own = self.facts()
        meta = {
            "versions": {"densevl": __version__},
            "image": source(image),
            "model": self.backbone.name,
            "weights": own["weights"],
            "recipe": own["recipe"] if self.layer is None else None,
            "layer": self.layer,
            "views": own["views"],
            "protocol": asdict(self._segment.protocol),
            "fingerprint": digest.of_text(repr(sorted(own.items()))),
        }
        return DenseMap(features, photo, meta, remarks.of_picture(self.backbone, rgb), self._text)

    @torch.no_grad()
    def _tokens(self, pixels: torch.Tensor, windows: WindowGrid, hints: Hints) -> tuple[torch.Tensor, WindowGrid]:
        """Return tokens of the layer at all windows, (1, Y, X, D) float32."""
        parts = []
        for part in windows.batches(pixels, windows_a_pass(self.backbone, windows)):
            trunk = self._trunk(part)
            parts.append(trunk.x_BND[:, trunk.prefix :].float().unflatten(1, trunk.grid))
        return windows.assemble(torch.cat(parts), 1), windows

    def _trunk(self, pixels: torch.Tensor, layer: int | None = None) -> Trunk:
        tower: Any = self.backbone.tower  # type: ignore[attr-defined]
        layer = self.layer if layer is None else layer
        return run_trunk(tower, pixels, get("vanilla").position_rule, leave=tower.depth - layer, taps=frozenset())

    @torch.no_grad()
    def _tower_width(self) -> int:
        pixels = torch.zeros(1, 3, *self.backbone.tower.image_size, device=self.backbone.device)  # type: ignore[attr-defined]
        return self._trunk(pixels, 0).x_BND.shape[-1]


def _decoded(tokens_YXE: torch.Tensor, plan: DecodePlan) -> torch.Tensor:
    """Interpolate tokens of all windows to a grid of cells: (h, w, E)."""
    rows, cols = plan.rows.matrix.to(tokens_YXE), plan.cols.matrix.to(tokens_YXE)
    return torch.einsum("yi,ixe->yxe", rows, torch.einsum("xj,ije->ixe", cols, tokens_YXE))


def _divided(photo: tuple[int, int], step: int) -> tuple[int, int]:
    return max(1, round(photo[0] / step)), max(1, round(photo[1] / step))


def _stride(stride: Any) -> int | str:
    if isinstance(stride, str) and stride == PATCH:
        return stride
    if _count(stride):
        return int(stride)
    raise OptionError(f"stride is {stride!r}; it must be a number of pixels of at least 1, or '{PATCH}'")


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(map(_count, pair)):
        raise OptionError(f"size is {size!r}; it must be the number of cells, (h, w), or one number for both")
    return int(pair[0]), int(pair[1])


def _count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _layer(layer: Any, backbone: Backbone) -> int:
    depth = getattr(getattr(backbone, "tower", None), "depth", 0)
    if not depth:
        raise OptionError(f"model '{backbone.name}' has no blocks, so there are no layers to read; leave layer out")
    if not isinstance(layer, Integral) or isinstance(layer, bool) or not -depth <= int(layer) <= depth:
        raise OptionError(f"layer is {layer!r}; the tower has {depth} blocks: 0 to {depth}, or -1 for the last")
    return int(layer) + depth + 1 if layer < 0 else int(layer)
