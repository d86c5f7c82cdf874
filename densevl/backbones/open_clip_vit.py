"""open_clip's native vision transformers as a `Backbone`, run on the installed open_clip's own weights.

The model is never copied or edited: the patch embedding, the blocks, the last norm and the projection are called as
they are, and a recipe rewires the last block from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from densevl.backbones.base import Backbone, DenseFeatures
from densevl.backbones.positions import resize_positions
from densevl.errors import ImageError, ModelError
from densevl.recipes import Recipe
from densevl.recipes.catalogue import get
from densevl.recipes.rewire import run_blocks

TEXT_BATCH = 256  # prompts per pass of the text tower


class OpenClipViT(Backbone):
    """A CLIP whose image tower is open_clip's `VisionTransformer` with a CLS token."""

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], torch.Tensor],
        preprocess: Callable[..., torch.Tensor],
        *,
        name: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        """Wrap a built model; it is switched to eval mode and its parameters need no gradient here.

        Raises:
            ModelError: the image tower is not a native ViT that densevl can read patches from.
        """
        visual: Any = model.visual
        _require_native_vit(visual, name)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.preprocess = preprocess
        self.name = name
        self.mean, self.std = mean, std
        self.patch_size = visual.patch_size[0]
        self.embed_dim = visual.proj.shape[1]
        self.logit_scale = float(self._model.logit_scale.exp())
        self.summary = "CLIP: any words, photos and drawings"

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self._model.visual.conv1.weight.device

    @torch.no_grad()
    def encode_dense(
        self, pixels: torch.Tensor, recipe: str | Recipe | None = None, *, position_rule: str | None = None
    ) -> DenseFeatures:
        """Encode pixels into patch features in CLIP's joint space.

        Args:
            pixels: (B, 3, H, W) float, normalised with `mean` and `std`; H and W are multiples of `patch_size`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None means `default_recipe`.
            position_rule: how the positional grid is resized for sizes other than the trained one; None takes the
                recipe's own (see `backbones.positions`).

        Returns:
            features (B, D, H/patch, W/patch) and cls (B, D), neither L2-normalised. `cls` is the CLS row of the same
            pass; with "vanilla" it equals `encode_image`.

        Raises:
            ImageError: a side is not a multiple of the patch. RecipeError: the recipe does not fit this tower.
        """
        chosen = get(recipe or self.default_recipe or "vanilla")
        visual = self._model.visual
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            given = f"{pixels.dtype} {tuple(pixels.shape)}".removeprefix("torch.")
            raise ImageError(f"pixels are {given}; encode_dense takes normalised float (B, 3, H, W), see `normalize`")
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        if (grid[0] * self.patch_size, grid[1] * self.patch_size) != tuple(pixels.shape[2:]) or 0 in grid:
            raise ImageError(
                f"pixels are {pixels.shape[2]}x{pixels.shape[3]}; both sides must be multiples of {self.patch_size}: "
                "resize or pad them, or use Segmenter or inference.slide, which do"
            )
        x_BND = self._embed(pixels, grid, position_rule or chosen.position_rule)
        x_BND = run_blocks(visual.transformer.resblocks, x_BND, chosen, grid)
        y_BND = visual.ln_post(x_BND) @ visual.proj
        features = y_BND[:, 1:].transpose(1, 2).unflatten(2, grid)
        return DenseFeatures(features=features, cls=y_BND[:, 0])

    def _embed(self, pixels: torch.Tensor, grid: tuple[int, int], rule: str) -> torch.Tensor:
        visual = self._model.visual
        patches_BND = visual.conv1(pixels.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        cls_B1D = visual.class_embedding.to(patches_BND.dtype).expand(len(pixels), 1, -1)
        positions = resize_positions(visual.positional_embedding, visual.grid_size, grid, rule)
        return visual.ln_pre(torch.cat([cls_B1D, patches_BND], dim=1) + positions.to(patches_BND.dtype))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, S, S) at the trained size S into (B, D), open_clip's own `encode_image`.

        Raises:
            ImageError: another size.
        """
        size = self._model.visual.image_size
        if tuple(pixels.shape[1:]) != (3, *size):
            raise ImageError(f"pixels are {tuple(pixels.shape)}; encode_image takes (B, 3, {size[0]}, {size[1]})")
        return self._model.encode_image(pixels.to(self._model.visual.conv1.weight.dtype))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode T strings into (T, D) float32, open_clip's own `encode_text`, in batches."""
        if not texts:
            return torch.zeros(0, self.embed_dim)
        tokens = self._tokenizer(list(texts)).to(self.device)
        return torch.cat([self._model.encode_text(part).float() for part in tokens.split(TEXT_BATCH)])

    @cached_property
    def text_fingerprint(self) -> str:
        """SHA-256 of the text tower's weights, its make-up and the tokenizer's: keys the text cache.

        The make-up counts because equal weights mean something else under another activation or number of heads.
        """
        tokenizer = self._tokenizer
        facts = [type(tokenizer).__name__, str(getattr(tokenizer, "context_length", "")), str(_text_side(self._model))]
        facts += [str(m.num_heads) for m in _text_side(self._model).modules() if hasattr(m, "num_heads")]
        facts += [str(getattr(self._model, name, "")) for name in ("context_length", "text_pool_type")]
        digest = hashlib.sha256("\n".join(facts).encode())
        for key, tensor in self._model.state_dict().items():
            if not key.startswith("visual."):
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _text_side(model: Any) -> nn.Module:
    """The text tower's module; open_clip's plain CLIP has none, only its transformer."""
    return model.text if hasattr(model, "text") else model.transformer


def _require_native_vit(visual: Any, name: str) -> None:
    reason = None
    if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):
        reason = f"its image tower is a {type(visual).__name__}"
    elif visual.attn_pool is not None or visual.pool_type != "tok":
        reason = "it pools patches instead of reading a CLS token"
    elif visual.final_ln_after_pool:
        reason = "it normalises after pooling, so its patches are not in the joint space"
    elif visual.proj is None:
        reason = "it has no projection into the joint space"
    if reason:
        raise ModelError(f"model '{name}' gives no dense features: {reason}; use a native ViT such as ViT-B-16/openai")
