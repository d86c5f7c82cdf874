"""A model that `densevl export` wrote as ONNX, run by onnxruntime; densevl does windows and decoding as usual.

Its words come from the file of words beside it. Other words are encoded by the original model, if that is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from densevl import saved
from densevl.backbones.base import Backbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.backbones.reach import Reach
from densevl.digest import of_file
from densevl.errors import LabelError, MissingExtraError, ModelError, RecipeError, WeightsError
from densevl.recipes import Hints, Recipe
from densevl.recipes.features import DenseFeatures

ENDING, WORDS = ".onnx", ".words.npz"
KIND = saved.Kind("exported model", WeightsError, "export it again with densevl export")
WORDS_KIND = saved.Kind("file of words", WeightsError, "make it again with densevl export words")
UNKNOWN = "unknown"
FACTS = ("patch", "width", "mean", "std", "model_scale", "context_length", "protocol", "templates", "unknown")
"""The facts in a file's metadata that are JSON; the others are text."""


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        WeightsError: the file cannot be run.
    """
    if not find_spec("onnxruntime"):
        raise MissingExtraError("onnxruntime", "export", "an exported model")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not path.is_file():
        raise KIND.bad(path, "does not exist")
    with KIND.sense(path):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Windows:
    """Windows that are not scored yet: the file takes them together with the words.

    Attributes: pixels: (B, 3, H, W) normalised.
    """

    pixels: torch.Tensor

    def part(self, rows: slice) -> Windows:
        """Some windows of the batch."""
        return Windows(self.pixels[rows])

    def __getattr__(self, name: str) -> Any:
        if name in {entry.name for entry in fields(DenseFeatures)} | {"grid", "score"}:
            raise ModelError("an exported file scores words and gives no features; load the model that it was made of")
        raise AttributeError(name)


class Exported(Backbone):
    """An ONNX file of `densevl export`: one model with one recipe."""

    default_recipe = None

    def __init__(self, path: str | Path, load: Callable[[str], Backbone]) -> None:
        """Open the file.

        Args:
            load: loads the original model by name, if other words than the stored ones are asked for.

        Raises:
            WeightsError: the file is damaged, or was not written by densevl.
            MissingExtraError: onnxruntime is not installed.
        """
        self.path, self._load = KIND.path(path), load
        self._session = session(self.path)
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        if "densevl" not in metadata:
            raise KIND.bad(self.path, "was not written by densevl export")
        with KIND.sense(self.path):
            facts = {key: saved.parse_json(metadata[key]) for key in FACTS}
            self.patch_size, self.embed_dim = int(facts["patch"]), int(facts["width"])
            self.mean, self.std = ((float(r), float(g), float(b)) for r, g, b in (facts["mean"], facts["std"]))
            self.logit_scale, self.context_length = float(facts["model_scale"]), int(facts["context_length"])
            self.protocol = InferenceProtocol(**facts["protocol"])
            self.templates, self.background = tuple(facts["templates"]), metadata["background"]  # type: ignore[assignment,misc]
            self.made_of, self._unknown, self._text_side = metadata["model"], facts["unknown"], metadata["text_side"]
            recipe = metadata["recipe"]
        self.name, self.summary = self.path.name, f"{self.made_of}{recipe and f', {recipe}'}, run by onnxruntime"
        # Identifies the model: see `fitted.fingerprint`.
        self._content = {"sha256": torch.tensor(list(bytes.fromhex(of_file(self.path))), dtype=torch.uint8)}

    @cached_property
    def _words(self) -> dict[str, tuple[torch.Tensor, Reach]]:
        """Rows in the file of words, by string, with each word's `Reach`; for the file's templates."""
        path = self.path.with_suffix(WORDS)
        if not path.is_file():
            return {}
        held = saved.read_arrays(path, WORDS_KIND)
        with WORDS_KIND.sense(path):
            if str(held["text_side"]) != self._text_side:
                raise WORDS_KIND.bad(path, f"is of another model's text side than '{self.name}'")
            if tuple(held["templates"].tolist()) != tuple(self.templates):
                return {}
            vectors = torch.from_numpy(held["vectors"].astype(np.float32))
            if vectors.shape != (len(held["queries"]), self.embed_dim):
                raise ValueError(f"its vectors are {tuple(vectors.shape)}")
            columns = (held[key].tolist() for key in ("queries", "way", "trust", "why"))
            reaches = [Reach(*of_one) for of_one in zip(*columns, strict=True)]
            rows = zip(reaches, held["classes"].tolist(), vectors, strict=True)
            return {reach.word: (row, reach) for reach, own, row in rows if reach.word != UNKNOWN or own >= 0}

    @cached_property
    def _source(self) -> Backbone:
        """The original model, for words that are not stored."""
        way_out = f"write them beside it: densevl export words {self.path.with_suffix(WORDS).name} --labels ..."
        try:
            source = self._load(self.made_of)
        except (ModelError, MissingExtraError) as error:
            raise LabelError(
                f"'{self.name}' is asked for words that are not in its file of words, and model '{self.made_of}', "
                f"which could encode them, cannot be loaded ({error}); {way_out}"
            ) from error
        if source.text_fingerprint != self._text_side:
            raise LabelError(f"'{self.name}' was made of other weights than '{self.made_of}' is now; {way_out}")
        return source

    def resolve(
        self, recipe: str | Recipe | None, *, position_rule: str | None = None, compat: bool = False
    ) -> Recipe | None:
        """None, since the recipe is part of the file.

        Raises:
            RecipeError: a recipe is asked for.
        """
        if recipe is not None or position_rule is not None or compat:
            raise RecipeError(f"'{self.name}' has its recipe inside; leave recipe out, or export another file")
        return None

    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        hints: Hints | None = None,
        position_rule: str | None = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Return windows (B, 3, H, W) unchanged: `score` runs the file, which takes them together with the words.

        Raises:
            RecipeError: a recipe is given; the file has its own.
        """
        self.resolve(recipe)
        return Windows(pixels)  # type: ignore[return-value]

    def score(
        self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the file: scores (B, h, w, T) float32 as the model gives them."""
        if not isinstance(dense, Windows):
            self._only_scores()
        count = text_TD.shape[0]
        foreground = torch.ones(count, dtype=torch.bool) if foreground_T is None else foreground_T.cpu()
        twice = [0, *range(count)] if count == 1 else list(range(count))  # the graph needs at least two words
        given = {"pixels": dense.pixels, "text": text_TD.float()[twice], "foreground": foreground[twice]}
        with KIND.sense(self.path):
            (scores,) = self._session.run(None, {name: given[name].cpu().numpy() for name in self._inputs})
        return torch.from_numpy(scores)[..., :count]

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Not supported by an exported file.

        Raises:
            ModelError: always.
        """
        self._only_scores()

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode T strings into (T, D) with the original model.

        Raises:
            LabelError: that model is not at hand.
        """
        return self._source.encode_text(texts)

    def held_text(self, texts: Sequence[str], templates: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Rows of the file of words; see `Backbone.held_text`."""
        if templates != tuple(self.templates):
            return {}
        return {text: self._words[text][0] for text in texts if text in self._words}

    def unknown(self, text_TD: torch.Tensor) -> torch.Tensor | None:
        """The original model's row of "none of these"."""
        return None if self._unknown is None else torch.full((self.embed_dim,), self._unknown).to(text_TD)

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """The original model's `Reach` of each word."""
        others = [word for word in words if word not in self._words]
        found = {reach.word: reach for reach in self._source.reach(others)} if others else {}
        return [self._words[word][1] if word in self._words else found[word] for word in words]

    @property
    def text_fingerprint(self) -> str:
        """The original model's fingerprint."""
        return self._text_side

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def preprocess(self) -> Callable[..., torch.Tensor]:  # type: ignore[override]
        """Not supported by an exported file.

        Raises:
            ModelError: always.
        """
        self._only_scores()

    def _only_scores(self) -> NoReturn:
        raise ModelError(
            f"'{self.name}' scores words at the places of a photo and does nothing else; for this take the model that "
            f"it was made of, '{self.made_of}'"
        )
