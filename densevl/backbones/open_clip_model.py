"""open_clip's models as a `Backbone`, run on the installed open_clip's own weights.

The model is never copied or edited: its image tower is wrapped (see `towers`), and recipes rewire its last blocks from
outside.
"""

from __future__ import annotations

import copy
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from densevl import digest
from densevl.backbones.base import Backbone
from densevl.backbones.precision import AUTO, LoweredTower, check
from densevl.backbones.reach import Reach
from densevl.backbones.readouts import READOUTS
from densevl.backbones.text.learned import WordVectors
from densevl.backbones.towers import tower_of
from densevl.backbones.towers.muted import Means, MutedTower
from densevl.errors import ImageError, ModelError, PrecisionError, RecipeError, suggest
from densevl.kernels.linear import diverted
from densevl.recipes import Hints, Recipe, get
from densevl.recipes.features import DenseFeatures
from densevl.recipes.run import State, finish, start
from densevl.recipes.tower import Tower
from densevl.weights import require_finite
from densevl.weights.facts import Plan

TEXT_BATCH = 256  # prompts per pass of the text tower
ENGLISH = ("SimpleTokenizer", "ClipTokenizer")
"""Tokenizers of CLIP: open_clip's and densevl's."""
FOREIGN = "its text tower was trained on English; give the words in English, or take a multilingual model"


class OpenClipBackbone(Backbone):
    """A CLIP-style model of open_clip."""

    plan: Plan | None = None
    words: Mapping[str, torch.Tensor] | None = None
    """Text vectors that replace the text side's own; see `with_words`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], torch.Tensor],
        preprocess: Callable[..., torch.Tensor],
        *,
        name: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        tower: Tower | None = None,
        reading: Mapping[str, Any] | None = None,
        guesses: tuple[str, ...] = (),
    ) -> None:
        """Wrap a built model; it is switched to eval mode, and its parameters get no gradients.

        Args:
            tower: its image tower, already wrapped. reading: see `Backbone.reading`.
            guesses: warnings about facts that the weights do not hold.

        Raises:
            ModelError: patches of the image tower cannot be brought into the joint space.
        """
        self._model = model.eval()
        self.tower: Tower = tower_of(model.visual, name) if tower is None else tower
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.name = name
        self.mean, self.std = mean, std
        self.reading, self.guesses = dict(reading or {}), guesses
        self.patch_size = self.tower.patch_size
        self.embed_dim = self.tower.embed_dim
        self.context_length = int(getattr(tokenizer, "context_length", None) or self.context_length)
        self.logit_scale = float(self._model.logit_scale.float().exp())
        if not 0 < self.logit_scale < math.inf:
            raise ModelError(f"model '{name}' has a logit scale of {self.logit_scale:g}: its weights are damaged")
        self.default_recipe = "sclip" if _rewires(self.tower) else "vanilla"
        self.summary = "CLIP: any words, photos and drawings"
        if (own := READOUTS.get(str(self.reading.get("form")))) is not None:
            self.default_recipe, self.templates, self.protocol = own.recipe, own.templates, own.protocol
            self.summary = own.summary
        self._positions: str | None = self.reading.get("positions", [None])[0]

    def at_precision(self, precision: str) -> OpenClipBackbone:
        """This model with its tower's linear layers at another precision; see `Backbone.at_precision`."""
        check(precision, self.device)
        if precision == AUTO:
            return cast(OpenClipBackbone, self._at_fastest())
        if precision == self.precision:
            return self
        self._require_unmuted(f"to run in {precision}", PrecisionError)
        other = copy.copy(self)
        other.auto = ""
        trained = self.tower.trained if isinstance(self.tower, LoweredTower) else self.tower
        other.tower = trained if precision == "float32" else LoweredTower(trained, precision, self.name)
        other.precision = precision
        return other

    def resolve(
        self, recipe: str | Recipe | None, *, position_rule: str | None = None, compat: bool = False
    ) -> Recipe | None:
        """The recipe, with the positions of the model's own code if that sets them; see `Backbone.resolve`."""
        return super().resolve(recipe, position_rule=position_rule or self._positions, compat=compat)

    @property
    def model(self) -> Any:
        """open_clip's own model, for reading only."""
        return self._model

    def around(self, model: Any) -> OpenClipBackbone:
        """This backbone around another open_clip model with the same text side, at the same precision.

        Raises:
            ModelError: its image tower gives no dense features.
        """
        self._require_unmuted("for other weights", ModelError)
        other = copy.copy(self.at_precision("float32"))
        other._model, other.tower = model, tower_of(model.visual, self.name)
        other.embed_dim = other.tower.embed_dim
        return other.at_precision(self.precision)

    def muted(self, means: Mapping[int, Means]) -> OpenClipBackbone:
        """This model with heads replaced by their means, in float32; `Explainer.mute` computes those.

        Args:
            means: by block and head, both from 0; see `towers.muted`.

        Raises:
            ModelError: its blocks cannot be taken apart, or heads are already muted.
        """
        if not _rewires(self.tower):
            raise ModelError(f"model '{self.name}' has no heads to mute: its tower is {self.tower.kind}")
        self._require_unmuted("for others", ModelError)
        other = copy.copy(self.at_precision("float32"))
        vars(other).pop("_weights_stamp", None)
        other.tower = MutedTower(other.tower, means)
        named = [f"{block + 1}.{head + 1}" for block, heads in sorted(means.items()) for head in sorted(heads)]
        rows = ((f"{block} {head}", row) for block, heads in means.items() for head, row in heads.items())
        other.reading = {**self.reading, "muted": [" ".join([*named, digest.of_tensors(rows)]), "mean ablation"]}
        return other

    def _require_unmuted(self, purpose: str, error: type[ModelError]) -> None:
        if isinstance(self.tower, MutedTower):
            raise error(f"heads of model '{self.name}' are muted; take the model as it was {purpose}")

    def with_words(self, vectors: Mapping[str, Any], width: int | None = None) -> OpenClipBackbone:
        """This model with text vectors from elsewhere, such as a language model's, instead of its own text side.

        Args:
            vectors: (D,) numbers for each text that will be asked for; labels are looked up without templates.
            width: use only the first so many numbers of longer vectors.

        Raises:
            ModelError: there are no vectors, or one is not numeric, not of width D, zero, NaN or infinite.
        """
        rows = {}
        for text, row in vectors.items():
            try:
                rows[str(text)] = torch.as_tensor(row, dtype=torch.float32)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ModelError(
                    f"the text vector of '{str(text)[:40]}' is a {type(row).__name__}, not numbers"
                ) from error
        if width is not None:
            rows = {text: row[:width] if row.ndim else row for text, row in rows.items()}
        bad = next((text for text, row in rows.items() if row.shape != (self.embed_dim,)), None)
        if bad is not None or not rows:
            found = "none are given" if bad is None else f"that of '{bad[:40]}' is {tuple(rows[bad].shape)}"
            raise ModelError(f"text vectors for '{self.name}' have {self.embed_dim} numbers each; {found}")
        require_finite(torch.stack([*rows.values()]), "text vectors")
        if zero := next((text for text, row in rows.items() if not row.any()), None):
            raise ModelError(f"the text vector of '{zero[:40]}' is all zeros and has no direction; leave it out")
        other = copy.copy(self)
        vars(other).pop("text_fingerprint", None)
        other.words, other.templates = rows, "name"
        return other

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self._model.visual.parameters()).device

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
        """Encode pixels into patch features in the joint space; see `Backbone.encode_dense`."""
        chosen = self.resolve(recipe, position_rule=position_rule, compat=compat) or get("vanilla")
        self._check(pixels)
        seen = self.look(pixels, chosen, hints or Hints())
        return self.finish(self.start(pixels, chosen, seen), chosen, replace(seen, pixels=pixels))

    @torch.no_grad()
    def start(self, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> State:
        """Run one batch of windows as far as they are independent; see `Backbone.start`."""
        return start(self.tower, pixels, recipe, replace(hints, pixels=pixels))

    @torch.no_grad()
    def finish(self, state: State, recipe: Recipe, hints: Hints) -> DenseFeatures:
        """Run the rest of a recipe; see `Backbone.finish`."""
        return finish(self.tower, state, recipe, hints)

    def _proxy_features(self, pixels: torch.Tensor, recipe: Recipe, proxy: Any) -> torch.Tensor:
        """Features of a proxy, or of trained heads on this tower's own tokens."""
        if hasattr(proxy, "from_tower"):
            return proxy.from_tower(self.tower, pixels, recipe.position_rule)
        return super()._proxy_features(pixels, recipe, proxy)

    def _check(self, pixels: torch.Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            given = f"{pixels.dtype} {tuple(pixels.shape)}".removeprefix("torch.")
            raise ImageError(f"pixels are {given}; encode_dense takes normalised float (B, 3, H, W), see `normalize`")
        height, width = pixels.shape[2:]
        if height % self.patch_size or width % self.patch_size or 0 in (height, width):
            raise ImageError(
                f"pixels are {height}x{width}; both sides must be multiples of {self.patch_size}: "
                "resize or pad them, or use Segmenter or inference.slide, which do"
            )

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, S, S) at the trained size S into (B, D) by open_clip's own tower, not normalised.

        Raises:
            ImageError: pixels have another size.
        """
        size = self.tower.image_size
        if tuple(pixels.shape[1:]) != (3, *size):
            raise ImageError(f"pixels are {tuple(pixels.shape)}; encode_image takes (B, 3, {size[0]}, {size[1]})")
        if isinstance(self.tower, LoweredTower | MutedTower) and self.tower.replaces:
            return self.tower.encode(pixels)
        return self._model.encode_image(pixels.to(next(self._model.visual.parameters()).dtype), normalize=False)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode T strings into (T, D) float32 by open_clip's own text tower, in batches, not normalised."""
        if not texts:
            return torch.zeros(0, self.embed_dim)
        if self.words is not None:
            if unknown := [text for text in texts if text not in self.words]:
                known = suggest(unknown[0], self.words)
                raise ModelError(f"no text vector of {unknown[0][:60]!r} was given{known}; give one with the others")
            return torch.stack([self.words[text] for text in texts]).to(self.device)
        tokens = self.tokenizer(list(texts)).to(self.device)
        with diverted():
            found = [self._model.encode_text(part, normalize=False).float() for part in tokens.split(TEXT_BATCH)]
        return torch.cat(found)

    @property
    def word_width(self) -> int:
        """Width of the text tower's word vectors, for `encode_learned`.

        Raises:
            ModelError: its text side has no table of words.
        """
        return self._word_vectors.width

    def word_vectors(self, text: str) -> torch.Tensor:
        """The vectors (n, W) float32 of a text's tokens, for `encode_learned`; none for an empty text.

        Raises:
            ModelError: the text side has no table of words, or reads fewer tokens.
        """
        return self._word_vectors.of(text)

    def encode_learned(
        self, words_TnW: torch.Tensor, nouns: str | Sequence[str], before: int | None = None
    ) -> torch.Tensor:
        """Encode T texts of n learned words and a noun each into (T, D) float32, not normalised (CoOp, IJCV 2022).

        Args:
            words_TnW: vectors that replace words; gradients reach them. (1, n, W) are shared by all texts. With d
                times W numbers, those before the noun are deep; see `deep_words`.
            nouns: one for all, or T. before: how many of the words precede the noun; None means all.

        Raises:
            ModelError: the text side has no table of words, or reads fewer tokens.
        """
        listed = [nouns] * len(words_TnW) if isinstance(nouns, str) else list(nouns)
        return self._word_vectors.encode(words_TnW, listed, words_TnW.shape[1] if before is None else before)

    def deep_words(self, words_nW: torch.Tensor, before: int, depth: int) -> torch.Tensor:
        """Turn words (n, W) into deep ones (n, depth * W), which `encode_learned` reads alike (MaPLe, CVPR 2023).

        Deep words act in the first `depth` blocks: W numbers of each replace the hidden state at a block's input.

        Args:
            before: how many of the words precede a noun; only these are deep.

        Raises:
            ModelError: the text side has fewer blocks, or is not causal.
        """
        return self._word_vectors.deep(words_nW, before, depth)

    @property
    def _word_vectors(self) -> WordVectors:
        if self.words is not None:
            raise ModelError(f"model '{self.name}' has text vectors in place of a text tower; train without prompts")
        return WordVectors(self._model, self.tokenizer, self.context_length, self.name)

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """A text tower makes no claims about words, but one with CLIP's own vocabulary reads only Latin script."""
        english = type(self.tokenizer).__name__ in ENGLISH and self.words is None
        return [Reach(w, "text", "weak", FOREIGN) if english and _is_foreign(w) else Reach(w) for w in words]

    @cached_property
    def text_fingerprint(self) -> str:
        """SHA-256 of the text tower's weights and configuration and of the tokenizer: the key of the text cache.

        The configuration counts because equal weights differ under another activation or number of heads.
        """
        if self.words is not None:
            return digest.of_tensors(sorted(self.words.items()))
        tokenizer = self.tokenizer
        facts = [type(tokenizer).__name__, str(getattr(tokenizer, "context_length", "")), str(_text_side(self._model))]
        facts += [str(m.num_heads) for m in _text_side(self._model).modules() if hasattr(m, "num_heads")]
        facts += [str(getattr(self._model, name, "")) for name in ("context_length", "text_pool_type")]
        text_side = ((k, v) for k, v in self._model.state_dict().items() if not k.startswith("visual."))
        return digest.of_text(*facts, digest.of_tensors(text_side))


def _rewires(tower: Tower) -> bool:
    """Whether recipes other than "vanilla" apply to this tower."""
    try:
        return tower.depth > 0 and tower.view(tower.depth - 1, (1, 1)) is not None
    except RecipeError:
        return False


def _is_foreign(word: str) -> bool:
    """Whether a word has letters, but none of the Latin script."""
    letters = [unicodedata.name(letter, "") for letter in word if letter.isalpha()]
    return bool(letters) and not any(name.startswith(("LATIN", "FULLWIDTH LATIN")) for name in letters)


def _text_side(model: Any) -> nn.Module:
    """The text tower's module; open_clip's plain CLIP has none, only its transformer."""
    return model.text if hasattr(model, "text") else model.transformer
