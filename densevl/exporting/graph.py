"""A model with its recipe as one graph: from normalised pixels and unit words to scores.

Shape letters: B batch, T texts, D joint space, H/W pixels, h/w patch grid. B, H, W and T are dynamic.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from densevl import __version__, fitted
from densevl.backbones import Backbone
from densevl.backbones.exported import Exported
from densevl.errors import DensevlError, ModelError, RecipeError
from densevl.recipes import Hints, Recipe
from densevl.recipes.hints import HOW, OPTIONAL
from densevl.vocabulary.templates import templates

PIXELS, TEXT, FOREGROUND, SCORES = "pixels", "text", "foreground", "scores"
MOST = {"batch": 4096, "side": 4096, "words": 65536}  # limits of a graph; a side in patches
LEAST_WORDS = 2  # a single word is given twice
TRACED = (
    2,
    9,
    7,
    3,
)  # images, patches down and across, words: all different, so that no two sizes are unified


class Scorer(torch.nn.Module):
    """From pixels (B, 3, H, W), words (T, D) and perhaps which words are classes (T,) to scores (B, h, w, T)."""

    def __init__(self, backbone: Backbone, recipe: Recipe | None) -> None:
        super().__init__()
        self._backbone, self._recipe = backbone, recipe
        # torch.export must find all networks that the graph reads.
        self.networks = torch.nn.ModuleList(
            value for value in vars(backbone).values() if isinstance(value, torch.nn.Module)
        )

    def forward(self, pixels: torch.Tensor, text: torch.Tensor, foreground: torch.Tensor | None = None) -> torch.Tensor:
        hints = None if self._recipe is None else Hints(text=text)
        dense = self._backbone.encode_dense(pixels, self._recipe, hints=hints)
        return self._backbone.score(dense, text, foreground)


def asks_foreground(recipe: Recipe | None) -> bool:
    """Return whether the method distinguishes classes from background words."""
    return recipe is not None and recipe.readout.asks_foreground


def why_not(backbone: Backbone, recipe: Recipe | None) -> str | None:
    """Return why a model with a recipe cannot be one graph, or None."""
    if isinstance(backbone, Exported):
        return "it is already a file"
    if backbone.precision != "float32":
        return f"its linear layers are {backbone.precision}; export float32, and let the runtime reduce the precision"
    if backbone.default_recipe is None:
        # torch's tracer would take far too long for the sizes of its many strides
        return "its tower has no graph for all sizes; export a CLIP"
    if recipe is None:
        return None
    own = recipe.reads - OPTIONAL
    if own:
        return f"it reads {' and '.join(HOW[hint] for hint in sorted(own))}, but a file gets only pixels and words"
    if recipe.stitch is not None:
        return "it joins the windows of a photo inside the tower, but a file gets each window separately"
    if recipe.spread is not None:
        return "it spreads scores over all windows of a photo, but a file gets each window separately"
    return None


def example(
    backbone: Backbone, batch: int, rows: int, cols: int, words: int, *, foreground: bool
) -> tuple[torch.Tensor, ...]:
    """Return random but reproducible inputs: normalised pixels of `rows` x `cols` patches, and unit words."""
    generator = torch.Generator().manual_seed(batch * 1000003 + rows * 1009 + cols * 31 + words)
    patch = backbone.patch_size
    pixels = torch.randn(batch, 3, rows * patch, cols * patch, generator=generator)
    text = F.normalize(torch.randn(words, backbone.embed_dim, generator=generator), dim=-1)
    classes = torch.arange(words) < max(1, words - words // 3)
    return (pixels, text, classes) if foreground else (pixels, text)


def capture(backbone: Backbone, recipe: Recipe | None) -> ExportedProgram:
    """Capture the graph of a model on the CPU with torch.export: inputs "pixels", "text" and perhaps "foreground".

    Raises:
        RecipeError: If the method cannot be one graph; the message says why.
        ModelError: If the model is not on the CPU.
    """
    name = backbone.name if recipe is None else f"recipe '{recipe.name}'"
    if backbone.device.type != "cpu":
        raise ModelError(
            f"models must be exported from the CPU, but this one is on {backbone.device}: leave device out"
        )
    if (reason := why_not(backbone, recipe)) is not None:
        raise RecipeError(f"{name} cannot be exported: {reason}")
    batch, height, width = (Dim(axis, min=low, max=MOST[kind]) for axis, low, kind in
                            (("batch", 1, "batch"), ("rows", 2, "side"), ("cols", 2, "side")))  # fmt: skip
    words = Dim("words", min=LEAST_WORDS, max=MOST["words"])
    patch = backbone.patch_size
    asks = asks_foreground(recipe)
    shapes: dict[str, Any] = {PIXELS: {0: batch, 2: patch * height, 3: patch * width}, TEXT: {0: words}}
    if asks:
        shapes[FOREGROUND] = {0: words}
    given = example(backbone, *TRACED, foreground=asks)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(Scorer(backbone, recipe).eval(), given, dynamic_shapes=shapes, strict=False)
    except DensevlError:
        raise
    except Exception as error:  # torch's tracer may raise anything
        raise RecipeError(f"{name} cannot be exported: torch finds no graph for it ({first_line(error)})") from error


def facts(backbone: Backbone, recipe: Recipe | None) -> dict[str, Any]:
    """Return what a program must know about the file, ready for JSON.

    Returns:
        densevl, the version; model; recipe, "" if the model uses none; patch, width (D); mean, std (RGB, 0-1 scale);
        logit_scale, the factor of scores before the softmax; protocol, how photos are fed; templates, background,
        context_length; unknown, the value of the row that stands for "none of these", or null; model_scale, the model's
        own logit scale; weights and text_side, hashes of the model and of the text tower whose words it accepts.
    """
    row = backbone.unknown(torch.ones(1, backbone.embed_dim))
    return {
        "densevl": __version__,
        "model": backbone.name,
        "recipe": repr(recipe) if recipe is not None else "",
        "patch": backbone.patch_size,
        "width": backbone.embed_dim,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "logit_scale": backbone.protocol.logit_scale,
        "model_scale": backbone.logit_scale,
        "protocol": asdict(backbone.protocol),
        "templates": list(templates(backbone.templates)),
        "background": backbone.background,
        "context_length": backbone.context_length,
        "unknown": float(row[0]) if row is not None else None,
        "summary": backbone.summary,
        "weights": fitted.fingerprint(backbone),
        "text_side": backbone.text_fingerprint,
    }


def as_texts(content: dict[str, Any]) -> dict[str, str]:
    """Convert facts to a file's metadata: strings unchanged, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of torch's exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).strip().split("\n")[0].split())[:200] or type(error).__name__
