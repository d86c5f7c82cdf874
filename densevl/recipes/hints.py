"""`Hints`: all inputs of a recipe besides the weights of its tower, as one argument."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from densevl.errors import RecipeError
from densevl.lazy import torch
from densevl.proposals.checks import image_boxes

HOW = {
    "proxy": "another model's patch features, whose affinity is borrowed",
    "sam": "the attention of SAM's encoder over the whole image",
    "regions": "a segment map of the image, 0 where no segment is",
    "masks": "masks of the image, which may overlap",
    "text": "the words; without them the method looks once",
    "boxes": "a box in each image; without one the whole image is the box",
}
"""The names that a recipe may have in `reads`, in words."""
OPTIONAL = frozenset({"text", "boxes"})


@dataclass(frozen=True, eq=False)
class Hints:
    """Inputs of some recipes besides the pixels; `Recipe.reads` names which.

    Attributes:
        pixels: (B, 3, H, W) float, the normalised input itself; the backbone sets it.
        text: (T, D) unit rows, for methods with two passes (the first labels steer the second pass).
        proxy: (B, P, h', w') features of another model for the same pixels, or the model, a `Proxy`.
        regions: (B, H, W) integer segment map of any size, 0 for no segment: attention stays within a segment.
        masks: (B, R, H, W) masks of any size, bool or 0..1, for methods that pool over masks.
        boxes: (B, 4) x0, y0, x1, y1 in pixels of the input, for methods guided by boxes.
        sam: `LastAttention` of SAM's encoder for the whole image, or the model, a `SamProxy`.
    """

    pixels: torch.Tensor | None = None
    text: torch.Tensor | None = None
    proxy: Any = None
    regions: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    sam: Any = None

    def __post_init__(self) -> None:
        """Refuse values that are not tensors, or models where one is allowed."""
        models = {"proxy": ("from_clip", "from_tower"), "sam": ("last_attention", "covered")}
        for entry in fields(self):
            value = getattr(self, entry.name)
            fits = any(hasattr(value, name) for name in models.get(entry.name, ()))
            fits = fits or (entry.name != "sam" and hasattr(value, "new_empty"))  # a tensor; torch may not be loaded
            if value is not None and not fits:
                wanted = (
                    f"load_proxy(NAME){', or features' * (entry.name == 'proxy')}"
                    if entry.name in models
                    else "a tensor"
                )
                raise RecipeError(f"hint {entry.name} is of type {type(value).__name__}; give {wanted}")

    def given(self) -> frozenset[str]:
        """The names of the given hints, without pixels."""
        return frozenset(f.name for f in fields(self) if f.name != "pixels" and getattr(self, f.name) is not None)

    def check(self, embed_dim: int) -> None:
        """Refuse tensors that do not fit the pixels.

        Args:
            embed_dim: width of text rows.

        Raises:
            RecipeError: a shape differs from the attributes' description.
            ProposalError: boxes are in 0-1, without area or outside.
        """
        batch = None if self.pixels is None else self.pixels.shape[0]
        wanted = {
            "proxy": ("(B, P, h, w)", 4, "features"),
            "regions": ("(B, H, W)", 3, "integers"),
            "masks": ("(B, R, H, W)", 4, "masks"),
            "boxes": ("(B, 4)", 2, "pixels"),
        }
        for name, (shape, rank, what) in wanted.items():
            given = getattr(self, name)
            if given is None:
                continue
            fits = isinstance(given, torch.Tensor) and given.ndim == rank and given.numel() > 0
            if not fits or (batch is not None and given.shape[0] != batch) or (name == "boxes" and given.shape[1] != 4):
                found = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
                raise RecipeError(f"{name} is {found}; give {what} {shape} for the {batch} images")
        if self.boxes is not None and self.pixels is not None:
            image_boxes(self.boxes, tuple(self.pixels.shape[2:]))
        if self.regions is not None and self.regions.is_floating_point():
            raise RecipeError(f"regions are {self.regions.dtype}; give a segment map of integers, or masks=")
        if self.text is not None and (self.text.ndim != 2 or not self.text.shape[0] or self.text.shape[1] != embed_dim):
            raise RecipeError(f"text is {tuple(self.text.shape)}; give unit rows (T, {embed_dim}) of this model")
