"""`TextClassifier`: labels to unit embeddings, encoded once per model, templates and string, then cached on disk.

Shape letters: T query strings, C classes, M templates, D joint-space width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, ModelError, OptionError
from densevl.images import resize
from densevl.vocabulary.background import NOTHING, PLACES, SCENES, UNKNOWN, Background
from densevl.vocabulary.hierarchy import image_log_prior, pixel_rows
from densevl.vocabulary.labels import LabelSet
from densevl.vocabulary.learned_templates import LearnedTemplate
from densevl.vocabulary.long_text import CONTEXT, budget, windows
from densevl.vocabulary.options import TextOptions
from densevl.vocabulary.prompts import IMAGE, Prompt
from densevl.vocabulary.template_weights import image_classifier
from densevl.vocabulary.templates import fill, templates
from densevl.vocabulary.text_cache import TextCache
from densevl.weights import require_finite

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone
    from densevl.vocabulary.transforms import TextTransform

PROMPTS_AT_ONCE = 4096  # bounds the memory of a large vocabulary
PROMPTS_KEPT = 2**28  # numbers (1 GiB) held when each template of each string keeps its own embedding
AS_IT_IS = ("{}",)
KEPT_PROMPTS = 256  # images and vectors whose rows are cached
SIDE = 224  # of image prompts, for a model without a trained size
_CUT = "\x1f"  # joins the windows of a long text in its cache key; never part of a label


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """The vocabulary in the form that the decoder needs.

    Attributes:
        vectors: (T, D) float32, unit rows unless `TextOptions` says otherwise.
        classes: (T,) int64, class index of each row, `NOTHING` (-1) for negatives and background.
        queries: the T strings.
        bias: (T,) float32 to add to scale * score, or None.
        prompts: (M, T, D) unit rows, one per template, to be weighted by the features they are compared with; None if
            `vectors` are enough.
        parents: (C, D) unit rows of the class names, or None if they are not used.
        shown: (T,) bool, which rows come from pictures rather than words; None if all are of one kind.
    """

    vectors: torch.Tensor
    classes: torch.Tensor
    queries: tuple[str, ...]
    bias: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    parents: torch.Tensor | None = None
    shown: torch.Tensor | None = None

    def places(self, policy: Background) -> dict[str, list[str]]:
        """The words that the image chose, for a result's meta, if the policy lets it choose."""
        if not policy.scenes:
            return {}
        free = {query for query, own in zip(self.queries, self.classes.tolist(), strict=True) if own == NOTHING}
        chosen = free.intersection(PLACES).difference(policy.words)
        return {SCENES: [query for query in self.queries if query in chosen]}


class TextClassifier:
    """Turns label sets into embeddings for one backbone and one set of templates."""

    def __init__(
        self,
        backbone: Backbone,
        template_spec: str | Sequence[str] | None = None,
        options: TextOptions | None = None,
        *,
        use_cache: bool = True,
        look: Callable[[Prompt], torch.Tensor] | None = None,
    ) -> None:
        """Prepare; nothing is encoded yet.

        Args:
            backbone: whose text tower encodes.
            template_spec: see `templates`; None takes the backbone's own set.
            options: descriptors, template weights, hierarchy, transform.
            use_cache: keep embeddings on disk.
            look: embeds a part of an image, a `Prompt` with a mask, as a row (D,); None embeds the box around it.

        Raises:
            OptionError: templates are unusable, or a transform is for another joint space.
        """
        self._backbone = backbone
        self.templates = templates(backbone.templates if template_spec is None else template_spec)
        self.options = options or TextOptions()
        self._require_fitting()
        self._use_cache, self._look = use_cache, look
        self._caches: dict[tuple[str, ...], TextCache] = {}
        self._prompt_rows: dict[Prompt, torch.Tensor] = {}

    def encode(self, labels: LabelSet, background: Background | None = None) -> TextEmbeddings:
        """Embed a label set, then its negatives, the background words and the model's "unknown".

        Each string's embedding is the normalised mean of its normalised prompts (CLIP's prompt ensemble); a text longer
        than the tower reads has prompts for all its windows.

        Raises:
            OptionError: options cannot be combined with the background, or need too much memory.
        """
        background = background or Background()
        if background.scenes:
            raise OptionError(
                f"background '{SCENES}' is chosen for each photo, and here words are compared with many: name them"
            )
        taken = {word.casefold() for word in [*labels.queries, *labels.negatives]}
        words = [word for word in dict.fromkeys(background.words) if word.casefold() not in taken]
        classless = [*labels.negatives, *words]
        queries = labels.queries + classless
        prompts = self._prompts(queries) if self.options.template_weights != "equal" else None
        vectors = self._vectors(queries, self.templates) if prompts is None else F.normalize(prompts.mean(0), dim=-1)
        vectors = self._described(vectors, labels)
        device = vectors.device
        shown = torch.tensor([isinstance(query, Prompt) and query.shown for query in queries], device=device)
        mixed = bool(shown.any()) and (background.unknown or not bool(shown.all()))
        text = TextEmbeddings(
            vectors,
            torch.tensor(labels.query_classes + [NOTHING] * len(classless), device=device),
            tuple(queries),
            prompts=prompts,
            parents=self._vectors(labels.names, self.templates) if self.options.parents != "none" else None,
            shown=shown if mixed else None,
        )
        if prompts is None and not self.options.needs_features:
            text = self._finished(text)
        return self._with_unknown(text) if background.unknown else text

    def for_image(
        self, text: TextEmbeddings, image_D: torch.Tensor, dense_Dhw: torch.Tensor | None = None
    ) -> TextEmbeddings:
        """The embeddings for one image, if `options.needs_image`.

        Args:
            text: from `encode`.
            image_D: (D,) its `encode_image`, any length.
            dense_Dhw: (D, h, w) its dense features, any length, if `options.needs_features`.
        """
        by_image = text.prompts is not None and self.options.template_weights == "image"
        if text.prompts is not None and by_image:
            text = replace(text, vectors=image_classifier(text.prompts, image_D), prompts=None)
        if by_image or self.options.needs_features:
            text = self._finished(text, dense_Dhw)
        if self.options.parents == "image" and text.parents is not None:
            scale = self._backbone.logit_scale
            bias = image_log_prior(image_D, text.vectors, text.parents, text.classes, scale)
            text = replace(text, bias=bias)
        return text

    def undescribed(self, labels: LabelSet) -> list[str]:
        """The classes with a string that has no descriptors, if others have some."""
        texts = self.options.descriptors
        if texts is None:
            return []
        pairs = zip(labels.names, labels.synonyms, strict=True)
        return [
            name
            for name, words in pairs
            if not all(isinstance(word, Prompt) or texts.covers(word, name) for word in words)
        ]

    def _finished(self, text: TextEmbeddings, dense_Dhw: torch.Tensor | None = None) -> TextEmbeddings:
        """Apply the transform to all rows of words, and then the class names to narrower words."""
        if (transform := self.options.transform) is not None:
            words = torch.tensor([not isinstance(query, Prompt) for query in text.queries], device=text.vectors.device)
            vectors = text.vectors.clone()
            if words.any():
                vectors[words] = _transformed(transform, vectors[words], dense_Dhw)
            text = replace(text, vectors=vectors)
            if text.parents is not None:
                text = replace(text, parents=_transformed(transform, text.parents, dense_Dhw))
        return _with_parents(text) if self.options.parents == "pixel" else text

    def _require_fitting(self) -> None:
        """Refuse options that are for other models."""
        own, backbone, weights = self.options.transform, self._backbone, self.options.template_weights
        for template in self.templates:
            if isinstance(template, LearnedTemplate) and template.side != backbone.text_fingerprint:
                raise OptionError(
                    f"the learned templates are of another text tower than that of model '{backbone.name}', to which "
                    "they mean nothing; take the model that they were learned on"
                )
        if weights in ("region", "pixel") and backbone.default_recipe is None:
            raise OptionError(f"model '{backbone.name}' has no cosines for template_weights='{weights}'; take a CLIP")
        if own is not None and backbone.default_recipe is None:
            raise OptionError(f"model '{backbone.name}' has no joint space for a text transform; take a CLIP")
        if own is not None and own.width != backbone.embed_dim:
            raise OptionError(
                f"the text transform is for embeddings of {own.width} numbers, and those of model '{backbone.name}' "
                f"have {backbone.embed_dim}; take the file that was made for this model"
            )

    def _with_unknown(self, text: TextEmbeddings) -> TextEmbeddings:
        none_of_these = self._backbone.unknown(text.vectors)
        if none_of_these is None:
            return text
        if not self.options.one_row:
            raise OptionError(
                f"background '{UNKNOWN}' is the model's own and has no words for template_weights, parents='image' or "
                "a transform that reads the image; take background 'none' or words"
            )
        return replace(
            text,
            vectors=torch.cat([text.vectors, none_of_these[None].to(text.vectors)]),
            classes=torch.cat([text.classes, text.classes.new_tensor([NOTHING])]),
            queries=(*text.queries, UNKNOWN),
            shown=None if text.shown is None else torch.cat([text.shown, text.shown.new_zeros(1)]),
        )

    def _described(self, vectors: torch.Tensor, labels: LabelSet) -> torch.Tensor:
        """Mix in the descriptors of the strings that have some; background and negatives stay unchanged."""
        texts = self.options.descriptors
        if texts is None:
            return vectors
        names = [labels.names[index] for index in labels.query_classes]
        owned = [
            () if isinstance(query, Prompt) else texts.sentences(query, name)
            for query, name in zip(labels.queries, names, strict=True)
        ]
        unique = list(dict.fromkeys(sentence for sentences in owned for sentence in sentences))
        if not unique:
            return vectors
        rows = dict(zip(unique, self._vectors(unique, AS_IT_IS), strict=True))
        mixed = vectors.clone()
        for index, sentences in enumerate(owned):
            if sentences:
                described = F.normalize(torch.stack([rows[sentence] for sentence in sentences]).mean(0), dim=0)
                row = (1 - texts.weight) * vectors[index] + texts.weight * described
                mixed[index] = F.normalize(row, dim=0) if texts.unit else row
        return mixed

    def _prompts(self, queries: Sequence[str]) -> torch.Tensor:
        """(M, T, D) unit rows: the prompts of each template separately."""
        count, weights = len(self.templates), self.options.template_weights
        numbers = count * len(queries) * self._backbone.embed_dim
        if numbers > PROMPTS_KEPT:
            raise OptionError(
                f"template_weights='{weights}' keeps {count} embeddings for each of {len(queries)} strings: "
                f"{numbers / 2**28:.1f} GiB, the limit is {PROMPTS_KEPT / 2**28:g}; take fewer templates or labels"
            )
        return torch.stack([self._vectors(queries, (template,)) for template in self.templates])

    def _vectors(self, texts: Sequence[str], own_templates: tuple[str, ...]) -> torch.Tensor:
        """Unit rows (T, D), cached or newly encoded; images and vectors are never cached on disk."""
        asked, texts = texts, [text for text in texts if not isinstance(text, Prompt)]
        room = budget(getattr(self._backbone, "context_length", CONTEXT), own_templates)
        cut = {text: windows(text, room) for text in dict.fromkeys(texts)}
        keys = {text: _CUT.join(parts) for text, parts in cut.items()}
        cache = self._cache(own_templates)
        cached = cache.get(list(keys.values())) if cache else {}
        known = {key: torch.from_numpy(v) for key, v in cached.items() if len(v) == self._backbone.embed_dim}
        known |= {keys[text]: row for text, row in self._backbone.held_text(list(keys), own_templates).items()}
        missing = [text for text, key in keys.items() if key not in known]
        step = max(1, PROMPTS_AT_ONCE // len(own_templates))
        for start in range(0, len(missing), step):
            part = {keys[text]: cut[text] for text in missing[start : start + step]}
            rows = self._encode(list(part.values()), own_templates)
            # Cached batch by batch, so that an interrupted large vocabulary resumes where it stopped.
            if cache:
                cache.put({key: row.numpy() for key, row in zip(part, rows, strict=True)})
            known.update(zip(part, rows, strict=True))
        rows = [self._prompted(text) if isinstance(text, Prompt) else known[keys[text]] for text in asked]
        return torch.stack(rows).to(self._backbone.device)

    def _prompted(self, prompt: Prompt) -> torch.Tensor:
        """A unit row (D,) on the CPU for an image or a vector; the last few are cached.

        Raises:
            LabelError: the model has no joint space, or a vector belongs to another one.
        """
        backbone = self._backbone
        if backbone.default_recipe is None:
            raise LabelError(f"model '{backbone.name}' compares photos with words only; for {prompt.kind}s take a CLIP")
        if prompt not in self._prompt_rows:
            if len(self._prompt_rows) >= KEPT_PROMPTS:
                self._prompt_rows.pop(next(iter(self._prompt_rows)))
            row = torch.from_numpy(prompt.content.copy())
            if prompt.mask is not None and self._look is not None:
                row = self._look(prompt).float().cpu()
            elif prompt.kind == IMAGE:  # without a crop, so that nothing at the edge is lost
                tower = getattr(backbone, "tower", None)
                size = tuple(tower.image_size) if tower is not None else (SIDE, SIDE)
                row = backbone.encode_image(backbone.normalize(resize(prompt.cropped, size))[None])[0].float().cpu()
            elif len(row) != backbone.embed_dim:
                raise LabelError(
                    f"a vector among the labels has {len(row)} numbers, and the joint space of model '{backbone.name}' "
                    f"{backbone.embed_dim}"
                )
            self._prompt_rows[prompt] = F.normalize(row, dim=0)
        return self._prompt_rows[prompt]

    def _encode(self, texts: Sequence[Sequence[str]], own_templates: Sequence[str]) -> list[torch.Tensor]:
        """A unit row (D,) on the CPU for each text, which is given as its windows."""
        rows = self._rows(texts, own_templates).float().cpu()
        require_finite(rows, f"text embeddings of model '{self._backbone.name}'")
        if self._backbone.default_recipe is not None and not rows.any(dim=-1).all():
            raise ModelError(f"model '{self._backbone.name}' gives a text embedding of zeros, which is like no image")
        unit_prompts = F.normalize(rows, dim=-1)
        each = unit_prompts.split([len(parts) * len(own_templates) for parts in texts])
        return [F.normalize(rows.mean(dim=0), dim=-1) for rows in each]

    def _rows(self, texts: Sequence[Sequence[str]], own_templates: Sequence[str]) -> torch.Tensor:
        """The rows of all windows in all templates, grouped by text."""
        backbone: Any = self._backbone
        if not any(isinstance(template, LearnedTemplate) for template in own_templates):
            filled = [fill(template, part) for parts in texts for template in own_templates for part in parts]
            return self._backbone.encode_text(filled)
        all_parts = [part for parts in texts for part in parts]
        rows_MPD = [
            backbone.encode_learned(torch.from_numpy(template.words)[None], all_parts, template.before)
            if isinstance(template, LearnedTemplate)
            else backbone.encode_text([fill(template, part) for part in all_parts])
            for template in own_templates
        ]
        return torch.stack(rows_MPD, dim=1).flatten(0, 1)

    def _cache(self, own_templates: tuple[str, ...]) -> TextCache | None:
        if not self._use_cache:
            return None
        if own_templates not in self._caches:
            self._caches[own_templates] = TextCache(self._backbone.text_fingerprint, own_templates)
        return self._caches[own_templates]


def _transformed(transform: TextTransform, rows_TD: torch.Tensor, dense_Dhw: torch.Tensor | None) -> torch.Tensor:
    """Rows that can be compared with images: finite, and none of zeros."""
    rows = transform.apply(rows_TD, dense_Dhw)
    require_finite(rows, f"text embeddings after {type(transform).__name__}")
    if not rows.any(dim=-1).all():
        raise OptionError(
            f"the text transform {type(transform).__name__} makes a row of zeros of a word, which is like no image: "
            "take another, or leave transform out (--text-transform)"
        )
    return rows


def _with_parents(text: TextEmbeddings) -> TextEmbeddings:
    if text.parents is None:
        return text
    return replace(text, vectors=pixel_rows(text.vectors, text.parents, text.classes))
