"""`TextClassifier`: labels to unit embeddings, encoded once per model, templates and string, then cached on disk.

Shape letters: T query strings, D joint-space width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.vocabulary.labels import NOTHING, UNKNOWN, Background, LabelSet
from densevl.vocabulary.templates import fill, templates
from densevl.vocabulary.text_cache import TextCache

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

PROMPTS_AT_ONCE = 4096  # bounds the memory of a large vocabulary


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """The vocabulary as the decoder needs it.

    Attributes:
        vectors: (T, D) float32, unit rows.
        classes: (T,) int64, class index of each row, `NOTHING` (-1) for background rows.
        queries: the T strings.
    """

    vectors: torch.Tensor
    classes: torch.Tensor
    queries: tuple[str, ...]


class TextClassifier:
    """Turns label sets into embeddings for one backbone and one set of templates."""

    def __init__(
        self, backbone: Backbone, template_spec: str | Sequence[str] | None = None, *, use_cache: bool = True
    ) -> None:
        """Prepare; nothing is encoded yet.

        Args:
            backbone: whose text tower encodes.
            template_spec: see `templates`; None takes the backbone's own set.
            use_cache: keep embeddings on disk.

        Raises:
            LabelError: unusable templates.
        """
        self._backbone = backbone
        self.templates = templates(template_spec or backbone.templates)
        self._cache = TextCache(backbone.text_fingerprint, self.templates) if use_cache else None

    def encode(self, labels: LabelSet, background: Background | None = None) -> TextEmbeddings:
        """Embed a label set, its background words and the model's "unknown" after it.

        Each string's embedding is the normalised mean of its normalised prompts (CLIP's prompt ensemble).
        """
        background = background or Background()
        taken = {word.casefold() for word in labels.queries}
        words = [word for word in background.words if word.casefold() not in taken]
        queries = labels.queries + words
        vectors = self._vectors(queries)
        classes = labels.query_classes + [NOTHING] * len(words)
        if background.unknown:
            none_of_these = self._backbone.unknown(vectors)
            if none_of_these is not None:
                vectors = torch.cat([vectors, none_of_these[None].to(vectors)])
                queries, classes = [*queries, UNKNOWN], [*classes, NOTHING]
        return TextEmbeddings(vectors, torch.tensor(classes, device=vectors.device), tuple(queries))

    def _vectors(self, queries: Sequence[str]) -> torch.Tensor:
        cached = self._cache.get(queries) if self._cache else {}
        known = {text: torch.from_numpy(v) for text, v in cached.items() if len(v) == self._backbone.embed_dim}
        missing = [text for text in dict.fromkeys(queries) if text not in known]
        step = max(1, PROMPTS_AT_ONCE // len(self.templates))
        for start in range(0, len(missing), step):
            known.update(self._encode(missing[start : start + step]))
        return torch.stack([known[text] for text in queries]).to(self._backbone.device)

    def _encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode strings and cache them at once, so that an interrupted large vocabulary goes on where it stopped."""
        prompts = [fill(template, text) for text in texts for template in self.templates]
        unit_prompts = F.normalize(self._backbone.encode_text(prompts).float().cpu(), dim=-1)
        rows = F.normalize(unit_prompts.unflatten(0, (len(texts), -1)).mean(dim=1), dim=-1)
        if self._cache:
            self._cache.put({text: row.numpy() for text, row in zip(texts, rows, strict=True)})
        return dict(zip(texts, rows, strict=True))
