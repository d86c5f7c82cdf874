"""CAT-Seg as a backbone: the fine-tuned CLIP in its file, and the network behind it that scores words.

There are two names. "catseg" sees windows as any model does. "catseg-640" tests as the authors do: the photo is resized
to 640 x 640, four windows of 384 are averaged, and the result is averaged with the whole photo at 384.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.base import Backbone
from densevl.backbones.decoders.aggregation import Aggregation
from densevl.backbones.from_files import How, of_form
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.errors import ModelError, PrecisionError, RecipeError
from densevl.recipes import Hints, Recipe
from densevl.recipes.trunk import run_trunk
from densevl.weights import State, bad_file, below, read_checkpoint
from densevl.weights.facts import CLIP_MEAN, CLIP_STD, QUICK, activations, said
from densevl.weights.forms.others import native

NAMES = ("catseg", "catseg-640")
HEAD = "sem_seg_head.predictor.transformer."
CLIP = "sem_seg_head.predictor.clip_model."
GRID = 24  # places per side, as in training
FULL, CUT, STEP = 640, 384, 256
SCALE = 10.0
"""Factor on scores, which are probabilities, before the softmax that makes confidence; chosen, not fitted."""
_SAYS = "CAT-Seg's code"


@dataclass(frozen=True, eq=False)
class Guided:
    """The network's inputs for windows: dense features (B, E, h, w), and taps at twice and four times the places."""

    features: torch.Tensor
    early: torch.Tensor
    later: torch.Tensor

    def part(self, rows: slice) -> Guided:
        """Some windows of the batch."""
        return Guided(self.features[rows], self.early[rows], self.later[rows])


class CatSeg(Backbone):
    """Words scored by cost aggregation; see the module text for its two names."""

    default_recipe = None
    templates = "scene-photo"
    summary = "CAT-Seg: CLIP fine-tuned for segmentation on COCO-Stuff, any words"

    def __init__(self, name: str, clip: OpenClipBackbone, state: State, path: Path) -> None:
        """Put the parts of a file together.

        Raises:
            WeightsError: the parts do not fit each other.
        """
        self.name, self.clip = name, clip
        self._path = path
        own = {key: value.float().to(clip.device) for key, value in state.items() if value.is_floating_point()}
        self._net, self._up = Aggregation(below(own, HEAD)), below(own, "upsample")
        tower = clip.tower
        self.patch_size, self.embed_dim, self.logit_scale = tower.patch_size, clip.embed_dim, clip.logit_scale
        self.mean, self.std, self.preprocess = clip.mean, clip.std, clip.preprocess
        self.context_length, self.reading, self.guesses = clip.context_length, clip.reading, clip.guesses
        sees_whole_photo = name == NAMES[1]
        windows: dict[str, Any] = {} if sees_whole_photo else {"crop": CUT, "stride": STEP}
        plain = InferenceProtocol(short_side=FULL, long_side=4 * FULL, crop=None, logit_scale=SCALE)
        self.protocol = replace(plain, **windows)
        self._side = GRID * self.patch_size
        try:
            with torch.no_grad():
                pixels = torch.zeros(1, 3, 2 * self.patch_size, 2 * self.patch_size, device=clip.device)
                self._scores(self._guided(pixels), torch.ones(1, self.embed_dim, device=clip.device))  # do they fit?
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise bad_file(path, f"is not CAT-Seg's: its parts do not fit each other ({reason})") from error

    def resolve(
        self, recipe: str | Recipe | None, *, position_rule: str | None = None, compat: bool = False
    ) -> Recipe | None:
        """None, since the network was trained on the last block.

        Raises:
            RecipeError: a recipe is asked for.
        """
        if recipe is not None or position_rule is not None:
            raise RecipeError(f"model '{self.name}' has a read-out of its own; leave recipe out")
        return None

    @torch.no_grad()
    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        hints: Hints | None = None,
        position_rule: str | None = None,
        compat: bool = False,
    ) -> Any:
        """Resize windows (B, 3, H, W) to the side that the network was trained for; `score` runs the network.

        Raises:
            RecipeError: a recipe is given.
        """
        self.resolve(recipe, position_rule=position_rule)
        return self._guided(self._views(pixels) if self.name == NAMES[1] else pixels)

    @torch.no_grad()
    def score(self, dense: Any, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None) -> torch.Tensor:
        """Independent probabilities of each word, (B, 96, 96, T); for "catseg-640" (B, 640, 640, T)."""
        logits = self._scores(dense, text_TD.float().to(self.device))
        if self.name != NAMES[1]:
            return logits.sigmoid().permute(0, 2, 3, 1)
        photos = []
        for five in logits.split(5):
            probs = F.interpolate(five, size=(CUT, CUT), mode="bilinear", align_corners=False).sigmoid()
            total = probs.new_zeros(len(text_TD), FULL, FULL)
            times = probs.new_zeros(FULL, FULL)
            for own, (top, left) in zip(probs, _CORNERS, strict=False):
                total[:, top : top + CUT, left : left + CUT] += own
                times[top : top + CUT, left : left + CUT] += 1
            whole_photo = F.interpolate(probs[4:], size=(FULL, FULL), mode="bilinear", align_corners=False)[0]
            photos.append((total / times + whole_photo) / 2)
        return torch.stack(photos).permute(0, 2, 3, 1)

    def _views(self, pixels: torch.Tensor) -> torch.Tensor:
        """Four windows of each photo squashed to 640 x 640, and the photo at 384: (5 B, 3, 384, 384)."""
        full, whole = (
            F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False) for side in (FULL, CUT)
        )
        cuts = [full[:, :, top : top + CUT, left : left + CUT] for top, left in _CORNERS]
        return torch.stack([*cuts, whole], dim=1).flatten(0, 1)

    def _guided(self, pixels: torch.Tensor) -> Guided:
        """Run the tower; the last block adds each token's value to CLS, not to the token, as in training."""
        tower = self.clip.tower
        size = (self._side, self._side)
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        first, second = tower.depth // 3, 2 * tower.depth // 3
        trunk = run_trunk(tower, pixels, "size", leave=1, taps=frozenset({first, second}))
        block = tower.view(tower.depth - 1, trunk.grid)
        y_BND = trunk.x_BND[:, :1] + block.merge(block.project(block.norm(trunk.x_BND), "v")["v"])
        y_BND = y_BND + block.ffn(y_BND)

        def as_map(x_BNC: torch.Tensor) -> torch.Tensor:
            return x_BNC[:, tower.prefix :].mT.unflatten(2, trunk.grid).float()

        early, later = (
            F.conv_transpose2d(
                as_map(trunk.outputs[index]), self._up[f"{n}.weight"], self._up[f"{n}.bias"], stride=2 * n
            )
            for n, index in ((1, first), (2, second))
        )
        return Guided(as_map(tower.read(y_BND)), early, later)

    def _scores(self, dense: Guided, text_TD: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, 96, 96)."""
        rows = zip(dense.features, dense.early, dense.later, strict=True)
        return torch.stack([self._net(own, text_TD, early, later) for own, early, later in rows])

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode with the CLIP in the file."""
        return self.clip.encode_image(pixels)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode with the CLIP in the file."""
        return self.clip.encode_text(texts)

    @property
    def text_fingerprint(self) -> str:
        """Fingerprint of the CLIP in the file."""
        return self.clip.text_fingerprint

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.clip.device

    def in_parts(self, words: int, places: int) -> CatSeg:
        """The same model with at most so many words and places at once: less memory, the same scores."""
        other = copy.copy(self)
        other._net = replace(self._net, words_at_once=words, places_at_once=places)
        return other


_CORNERS = tuple((top, left) for top in range(0, FULL - CUT + 1, STEP) for left in range(0, FULL - CUT + 1, STEP))


def load_cat_seg(name: str, path: Path, how: How) -> CatSeg:
    """Read the authors' file: the whole model as detectron2 saves it.

    Args:
        name: one of `NAMES`.

    Raises:
        ModelError: a setting is given that the file fixes, or another precision.
        WeightsError: the file is another kind.
    """
    if how.given or how.words is not None or how.width:
        raise ModelError(f"model '{name}' has activation, pixels, words and width of its own; leave them out")
    if how.precision != "float32":
        raise PrecisionError(f"model '{name}' runs in float32 only; leave precision out")
    tensors = read_checkpoint(path).tensors
    if not any(key.startswith(HEAD) for key in tensors) or f"{CLIP}visual.conv1.weight" not in tensors:
        raise bad_file(path, f"is not CAT-Seg's: it holds no {HEAD}* beside {CLIP}*")
    form = native(_joint(below(tensors, CLIP)), path)
    facts = {**activations(QUICK, _SAYS), **said(_SAYS, mean=CLIP_MEAN, std=CLIP_STD)}
    clip: Any = of_form(replace(form, name="CAT-Seg", facts=facts, guesses=()), path, how)
    return CatSeg(name, clip, tensors, path)


def _joint(state: State) -> State:
    """Join queries, keys and values into one matrix, as in open_clip."""
    found = {}
    for key, value in state.items():
        if not key.endswith(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
            found[key] = value
        elif key.endswith("q_proj_weight"):
            at = key.removesuffix("q_proj_weight")
            parts = [state.get(f"{at}{letter}_proj_weight") for letter in "qkv"]
            if all(part is not None for part in parts):
                found[f"{at}in_proj_weight"] = torch.cat(parts)  # type: ignore[arg-type]
    return found
