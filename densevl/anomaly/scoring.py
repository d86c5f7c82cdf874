"""`Scoring`: one method for anomaly maps as data, and the published ones by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from densevl.anomaly.memory.nearest import METRICS
from densevl.anomaly.tokens import QUARTERS, STAGES
from densevl.anomaly.windows import WAYS
from densevl.errors import RecipeError, suggest

CHOICES: dict[str, tuple[str, ...]] = {
    "text": ("windows", "dense", "adapters", "none"),
    "windows": WAYS,
    "polarity": ("conservative", "sensitive"),
    "stage": STAGES,
    "metric": METRICS,
    "augment": ("none", "flips", "rotations"),
    "fuse": ("sum", "parallel", "harmonic", "standard"),
}
LEVELS = ("patch", "windows")
IMAGE = ("cls", "map", "both")


def _or(allowed: tuple[str, ...]) -> str:
    return " or ".join(allowed)


@dataclass(frozen=True)
class Scoring:
    """How maps and image scores are made.

    Attributes:
        name: lower-case identifier.
        text: what the words "sound" and "damaged" are compared with: "windows" (WinCLIP), "dense" features, the same
            through trained "adapters", or "none".
        windows: "exact", "shared" or "pooled"; see `anomaly.windows`. scales: window sides in patches.
        whole: whether the image embedding is one more scale.
        polarity: "conservative", a patch is damaged only if all windows over it are; "sensitive", if any is.
        temperature: divides cosines before probabilities are computed.
        recipe: for dense features, by name; None takes the model's own, "streams" reads V-V streams after `text_layers`
            instead (AnomalyCLIP, APRIL-GAN).
        text_layers: blocks, as numbers or fractions of the depth.
        memory: what is stored of normal images: "patch" tokens, "windows" of all scales; () is nothing.
        layers, stage: of the patch tokens; stage "block", "norm" (after the last norm), "joint" (in the joint space),
            or "auto": "norm" if the tower has that, otherwise "joint".
        around: each patch token is averaged with its neighbours in a square of this side (PatchCore has 3).
        joined: whether tokens of several layers are concatenated; otherwise each layer has a memory and distances are
            averaged.
        metric: "cosine" or "euclid".
        augment: normal images are also stored as "flips" (3 more) or "rotations" (7 more, including flips).
        near: compare a patch or window only with stored ones from at most this many cells away along each axis, for
            parts that are always aligned (RAD); None with all.
        foreground: leave the background out of the memory and of the distances, if the normal images show an object on
            a background (AnomalyDINO); see `anomaly.foreground`.
        most: largest number of rows of a memory; above it a coreset is taken.
        fuse: "sum" of probability and distance (WinCLIP+), "parallel" 1/(1/p + 1/d), "harmonic", twice that, or
            "standard", the sum of both in standard deviations above their means on the normal images.
        image: image score without and with a memory, each "cls" (probability of the whole image), "map" (peak of the
            map) or "both" (mean of the former and the peak of the distances, or of the map without a memory).
        top: the peak is the mean of this fraction of the largest values, 0 for the maximum.
        reweigh: number of neighbours of the nearest row for PatchCore's weight of the image score; 0 is none.
        smooth: standard deviation of a Gaussian on the map, in pixels of the image as fed.
    """

    name: str
    text: str = "windows"
    windows: str = "exact"
    scales: tuple[int, ...] = (2, 3)
    whole: bool = True
    polarity: str = "conservative"
    temperature: float = 0.07
    recipe: str | None = None
    text_layers: tuple[float | int, ...] = QUARTERS
    memory: tuple[str, ...] = ("patch", "windows")
    layers: tuple[float | int, ...] = (1.0,)
    stage: str = "auto"
    around: int = 1
    joined: bool = False
    metric: str = "cosine"
    augment: str = "none"
    near: int | None = None
    foreground: bool = False
    most: int = 20_000
    fuse: str = "sum"
    image: tuple[str, str] = ("cls", "both")
    top: float = 0.0
    reweigh: int = 0
    smooth: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise RecipeError(f"scoring {name} is {value!r}{suggest(str(value), allowed)}; it is {_or(allowed)}")
        for name, kind in (("scales", int), ("memory", str), ("layers", (int, float)), ("text_layers", (int, float))):
            value = getattr(self, name)
            value = (value,) if isinstance(value, kind) else tuple(value)
            if not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value):
                raise RecipeError(f"scoring {name} is {value!r}; see densevl.anomaly.scoring.Scoring")
            object.__setattr__(self, name, value)
        if isinstance(self.image, str):
            object.__setattr__(self, "image", (self.image, self.image))
        object.__setattr__(self, "image", tuple(self.image))
        uses_windows = self.text == "windows" or "windows" in self.memory
        broken = (
            (uses_windows and not self.scales, "windows need scales, such as (2, 3)"),
            (any(scale < 1 for scale in self.scales), f"scales are {self.scales}; a window has at least 1 patch"),
            (any(level not in LEVELS for level in self.memory), f"memory is {self.memory}; it holds {_or(LEVELS)}"),
            (not 0 < self.temperature < math.inf, f"temperature is {self.temperature}; it is above 0, and finite"),
            (len(self.image) != 2 or any(rule not in IMAGE for rule in self.image), f"image is {_or(IMAGE)}, or two"),
            (not 0 <= self.top <= 1, f"top is {self.top}; it is a share 0..1"),
            (self.around < 1 or self.around % 2 == 0, f"around is {self.around}; it is odd"),
            (self.most < 1, f"most is {self.most}; a memory has at least 1 row"),
            (self.near is not None and self.near < 0, f"near is {self.near}; it is None or a number of cells from 0"),
            (self.near is not None and self.augment != "none", "near needs augment 'none': copies lie elsewhere"),
            (self.foreground and "patch" not in self.memory, "a foreground needs a memory of 'patch'"),
            (self.smooth < 0 or self.reweigh < 0, "smooth and reweigh are at least 0"),
            (self.text == "none" and not self.memory, "neither text nor memory: nothing would be scored"),
        )
        for is_broken, reason in broken:
            if is_broken:
                raise RecipeError(f"scoring '{self.name}': {reason}")

    @property
    def is_textual(self) -> bool:
        """Whether words are used."""
        return self.text != "none"


WINCLIP = Scoring("winclip")
BY_NAME = {
    entry.name: entry
    for entry in (
        WINCLIP,  # Jeong et al., CVPR 2023, zero-shot; WinCLIP+ once normal images are given
        Scoring(
            "dense",
            text="dense",
            memory=("patch",),
            layers=QUARTERS,
            stage="block",
            fuse="standard",
            image=("both", "both"),
            top=0.01,
            smooth=4.0,
        ),
        # The dense path of AnomalyCLIP (ICLR 2024) and the memory of APRIL-GAN, without trained prompts and layers.
        Scoring(
            "streams",
            text="dense",
            recipe="streams",
            memory=("patch",),
            layers=QUARTERS,
            stage="block",
            image=("both", "both"),
            top=0.01,
            smooth=4.0,
        ),
        # AdaptCLIP (Gao et al., arXiv 2505.09926); needs trained adapters.
        Scoring(
            "adaptclip",
            text="adapters",
            memory=("patch",),
            layers=QUARTERS,
            stage="block",
            fuse="harmonic",
            image=("both", "both"),
            smooth=4.0,
        ),
        # AnomalyDINO (Damm et al., WACV 2025); give it proxy="dinov2_vits14", and foreground=True for objects.
        Scoring(
            "dino", text="none", memory=("patch",), augment="rotations", image=("map", "map"), top=0.01, smooth=4.0
        ),
        # PatchCore (Roth et al., CVPR 2022) on the tower's blocks.
        Scoring(
            "patchcore",
            text="none",
            memory=("patch",),
            layers=(0.5, 0.75),
            stage="block",
            around=3,
            joined=True,
            metric="euclid",
            image=("map", "map"),
            reweigh=9,
            smooth=4.0,
        ),
    )
}


def get_scoring(scoring: str | Scoring, **changes: Any) -> Scoring:
    """A scoring by name or as given, with some fields changed.

    Raises:
        RecipeError: a name or field is unknown, or values contradict each other.
    """
    if isinstance(scoring, str):
        if scoring not in BY_NAME:
            raise RecipeError(f"no anomaly scoring '{scoring}'{suggest(scoring, BY_NAME)}; known: {', '.join(BY_NAME)}")
        scoring = BY_NAME[scoring]
    known = [field.name for field in fields(Scoring)]
    for name in changes:
        if name not in known:
            raise RecipeError(f"a scoring has no field '{name}'{suggest(name, known)}; it has {', '.join(known)}")
    try:
        return replace(scoring, **changes)
    except TypeError as error:
        raise RecipeError(f"scoring '{scoring.name}' does not take these options: {error}") from error
