"""`Explainer`: explain where the score of an image and a text comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from densevl import __version__
from densevl.anomaly.sizes import shrink
from densevl.backbones import Backbone, load_backbone
from densevl.errors import ImageError, LabelError, OptionError
from densevl.explaining.captions import read_caption
from densevl.explaining.decomposition import AS_TRAINED, Parts, head_vectors, require_split, split_score
from densevl.explaining.muting import head_means
from densevl.explaining.second_order import GAP, LastBlock, integrate, interact
from densevl.explaining.textspan import text_span
from densevl.images import read_image
from densevl.pipelines import remarks
from densevl.pipelines.anomaly.setup import each_image
from densevl.pipelines.explanation.results import HeadMaps, PairMap, PatchMap, is_whole
from densevl.pipelines.many import source
from densevl.pipelines.settings import checked
from densevl.recipes.trunk import run_trunk
from densevl.vocabulary import LabelSet
from densevl.vocabulary.nouns import nouns
from densevl.vocabulary.text_classifier import TextClassifier

BATCH = 16  # images read together
BLOCKS, TEXT_BLOCK = -4, -1
JOINING = frozenset(["a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "by", "for", "from", "to", "with"])
"""Words of a caption that name nothing, so the model need not know them."""


class HeadText(NamedTuple):
    """A word that describes a head. Attributes: text. share: of the head's variance over the images, 0..1."""

    text: str
    share: float


class Explainer:
    """Explain where the score of an image and a text comes from. The model must read its image embedding from CLS.

    Examples:
        >>> explain = Explainer("mini")
        >>> explain("scene.png", "penguin").save("out/patches.png")
        >>> explain.heads("scene.png", "penguin").top(3)
        >>> explain.pairs("scene.png", "a penguin on wood").scores

    Photos are resized to the training size without a crop, as for `FewShot` and `densevl classify`.
    """

    @checked
    def __init__(
        self,
        model: str | Backbone = "auto",
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        templates: str | Sequence[str] | None = None,
    ) -> None:
        """Load the model, in float32.

        Args:
            model, weights, device, templates: as for `Segmenter`.

        Raises:
            ModelError: If the model cannot be loaded, or its embedding is not a sum over patches: it is pooled from all
                patches, not from a ViT, or not from a CLIP.
        """
        loaded = model if isinstance(model, Backbone) else load_backbone(model, weights, device=device)
        self._tower = require_split(getattr(loaded, "tower", None), loaded.name)
        self.backbone = loaded.at_precision("float32")
        self._tower = require_split(self.backbone.tower, loaded.name)  # type: ignore[attr-defined]
        self._text = TextClassifier(self.backbone, templates)

    @property
    def depth(self) -> int:
        """Number of blocks of the image tower."""
        return self._tower.depth

    def __call__(self, image: Any, label: str, *, against: Any = None) -> PatchMap:
        """Compute what each patch adds to the score of a label (Gandelsman et al., ICLR 2024).

        Args:
            image: any that `densevl.images.read_image` accepts.
            label: a word, or synonyms ("cat | kitten"), of which the best one is explained.
            against: words whose mean score is subtracted, as for `LabelSet.parse`; None explains the cosine itself.

        Raises:
            ImageError, LabelError: If the image or the words are unusable.
            ModelError: If the parts do not add up to the score.
        """
        rgb, word, others, parts = self._parts(image, label, against)
        attention_LAN = parts.attention_TLAN[0].double().cpu()
        patches_hw = attention_LAN[..., parts.prefix :].sum((0, 1)).unflatten(0, parts.grid)
        return PatchMap(
            float(parts.score_T[0]),
            rgb,
            word,
            others,
            patches_hw.numpy(),
            float(attention_LAN[..., : parts.prefix].sum()),
            parts.mlps_TL[0].double().cpu().numpy(),
            float(parts.start_T[0]),
            attention_LAN.sum((1, 2)).numpy(),
            meta=self._meta(image),
            warnings=self._warnings(rgb, [word, *others]),
        )

    def heads(self, image: Any, label: str, *, against: Any = None, blocks: int | Sequence[int] = BLOCKS) -> HeadMaps:
        """Compute what each head adds to the score of a label, by patch.

        Args:
            image, label, against: as for a call.
            blocks: block numbers from 1, or -4 for the last four.

        Raises:
            OptionError: If there are no such blocks. Other errors as for a call.
        """
        chosen = self._blocks(blocks)
        rgb, word, others, parts = self._parts(image, label, against)
        own_LAN = parts.attention_TLAN[0, [block - 1 for block in chosen]].double().cpu()
        return HeadMaps(
            float(parts.score_T[0]),
            rgb,
            word,
            others,
            chosen,
            own_LAN[..., parts.prefix :].unflatten(2, parts.grid).numpy(),
            own_LAN[..., : parts.prefix].sum(-1).numpy(),
            meta=self._meta(image),
            warnings=self._warnings(rgb, [word, *others]),
        )

    @torch.no_grad()
    def head_texts(self, images: Any, words: Any = None, *, block: int, head: int, m: int = 10) -> tuple[HeadText, ...]:
        """Find the words along which a head varies most over images (TextSpan), most explanatory first.

        Args:
            images: as for `AnomalyDetector.fit`: a folder, paths or arrays. A few dozen different ones are needed for a
                useful result; K images give at most K words.
            words: as for `LabelSet.parse`; None takes densevl's list of English nouns.
            block, head: from 1. m: number of words.

        Raises:
            ImageError: If there are fewer than two images.
            LabelError: If the words are unusable.
            OptionError: If there is no such head, or m is impossible.
        """
        if not is_whole(m) or m < 1:
            raise OptionError(f"m is {m!r}; it must be a number of words, at least 1")
        place = self._head(block, head)
        vectors = [head_vectors(self._tower, pixels, place[0] - 1, place[1] - 1) for pixels in self._batches(images)]
        if sum(map(len, vectors)) < 2:
            raise ImageError("how a head varies needs several images: give at least two, better a few dozen")
        texts = nouns() if words is None else LabelSet.parse(words)
        embedded = self._text.encode(texts)
        found = text_span(torch.cat(vectors), embedded.vectors, m)
        return tuple(HeadText(embedded.queries[number], share) for number, share in found)

    @torch.no_grad()
    def mute(self, heads: Iterable[tuple[int, int]], images: Any) -> Backbone:
        """Return the model with heads replaced by their mean over images, whatever the input (mean ablation).

        What the model can no longer do was done by those heads. It runs anywhere: `Segmenter(explain.mute(...))`.

        Args:
            heads: (block, head) pairs, both from 1. images: as for `head_texts`, at least one.

        Raises:
            OptionError: If there are no heads, or a head does not exist.
            ImageError: If there are no images.
        """
        pairs = list(heads) if isinstance(heads, Iterable) else []
        if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise OptionError(f"heads is {heads!r}; give pairs of a block and a head, such as [(6, 1)]")
        chosen: dict[int, list[int]] = {}
        for block, head in sorted({self._head(*pair) for pair in pairs}):
            chosen.setdefault(block - 1, []).append(head - 1)
        means = head_means(self._tower, self._batches(images), chosen)
        return self.backbone.muted(means)  # type: ignore[attr-defined]

    @torch.no_grad()
    def pairs(self, image: Any, caption: str, *, text_block: int = TEXT_BLOCK) -> PairMap:
        """Compute what each word of a caption and each patch together add to the score (Moeller et al., TMLR 2025).

        The references are an image of the mean colour and a text of one padding token. The varied inputs are those of
        the image tower's last block and of one block of the text tower.

        Args:
            image: any that `densevl.images.read_image` accepts. caption: encoded without templates.
            text_block: 1 is the first, -1 the last, as in the paper. Before the last block, much of the caption has
                already moved to the end token, above all in a text tower with few blocks.

        Raises:
            ImageError, LabelError: If the image or the caption is unusable, such as a caption that is too long.
            ModelError: If the text tower is not a CLIP's.
            OptionError: If there is no such block.
        """
        if not isinstance(caption, str):
            raise LabelError(f"the caption is a {type(caption).__name__}; give one string")
        rgb = read_image(image)
        own = read_caption(self.backbone, caption, text_block)
        pixels, tower = self._pixels(rgb), self._tower
        x_ND, reference_ND = (self._before_last(some) for some in (pixels, torch.zeros_like(pixels)))
        grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
        read = LastBlock(tower.view(tower.depth - 1, grid), 0, tower.read)
        found = interact(integrate(own.read, own.x_SD, own.reference_SD), integrate(read, x_ND, reference_ND))
        rows = found.pairs_SN.new_zeros(len(own.words) + 1, found.pairs_SN.shape[1]).double()
        # the start token attends only to itself, and so is the same in the reference
        owners = torch.tensor([len(own.words) if word < 0 else word for word in own.owners], device=rows.device)
        rows = rows.index_add_(0, owners, found.pairs_SN.double()).cpu()
        maps = rows[:, tower.prefix :].unflatten(1, grid).numpy()
        gap = () if abs(found.gap) <= GAP else (_gap(found.gap),)
        return PairMap(
            found.score,
            rgb,
            caption,
            own.words,
            maps[:-1],
            maps[-1],
            rows[:, : tower.prefix].sum(1).numpy(),
            {
                "this text, reference image": found.text_alone,
                "reference text, this image": found.image_alone,
                "both references": found.references,
            },
            found.gap,
            meta=self._meta(image),
            warnings=(*self._warnings(rgb, _naming(own.words)), *gap),
        )

    @torch.no_grad()
    def _parts(self, image: Any, label: str, against: Any) -> tuple[np.ndarray, str, tuple[str, ...], Parts]:
        """Return the photo, the explained word, the words it is compared with, and the parts of its score."""
        asked = LabelSet.parse(label)
        if len(asked) != 1:
            raise LabelError(f"{len(asked)} labels to explain; give one, and others with against= (--against)")
        rivals = None if against is None else LabelSet.parse(against)
        rgb = read_image(image)
        pixels = self._pixels(rgb)
        embedding_E = self.backbone.encode_image(pixels)[0]
        rows_TE = self._text.encode(asked).vectors[: len(asked.queries)].to(embedding_E)
        best = int((rows_TE @ embedding_E).argmax())
        row_1E = rows_TE[best : best + 1]
        if rivals is not None:
            row_1E = row_1E - self._text.encode(rivals).vectors[: len(rivals.queries)].to(embedding_E).mean(0, True)
        parts = split_score(self._tower, pixels, embedding_E, row_1E, self.backbone.name)
        return rgb, asked.queries[best], () if rivals is None else tuple(rivals.queries), parts

    def _pixels(self, rgb: np.ndarray) -> torch.Tensor:
        pixels = self.backbone.normalize(shrink(rgb, self.backbone.picture_size))[None]
        return pixels.to(next(self.backbone.model.visual.parameters()).dtype)  # type: ignore[attr-defined]

    def _before_last(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tokens before the last block: (N, D)."""
        return run_trunk(self._tower, pixels, AS_TRAINED, leave=1, taps=frozenset()).x_BND[0]

    def _batches(self, images: Any) -> Iterator[torch.Tensor]:
        """Yield the pixels of images in batches."""
        waiting: Iterator[Any] = iter(each_image(images))
        first = True
        while some := list(islice(waiting, BATCH)):
            yield torch.cat([self._pixels(read_image(image)) for image in some])
            first = False
        if first:
            raise ImageError("there are no images; give a folder, paths or arrays")

    def _blocks(self, blocks: Any) -> tuple[int, ...]:
        depth = self.depth
        if is_whole(blocks) and -depth <= int(blocks) < 0:
            return tuple(range(depth + int(blocks) + 1, depth + 1))
        given = [blocks] if is_whole(blocks) else list(blocks) if isinstance(blocks, Iterable) else []
        if not given or not all(is_whole(block) and 1 <= block <= depth for block in given):
            raise OptionError(
                f"blocks is {blocks!r}; give block numbers from 1 to {depth}, or -1 to -{depth} for the last blocks"
            )
        return tuple(sorted({int(block) for block in given}))

    def _head(self, block: Any, head: Any) -> tuple[int, int]:
        heads = self._tower.view(0, (1, 1)).heads
        if not (is_whole(block) and is_whole(head) and 1 <= block <= self.depth and 1 <= head <= heads):
            raise OptionError(
                f"no head {head!r} of block {block!r}: model '{self.backbone.name}' has blocks 1 to {self.depth} with "
                f"heads 1 to {heads}"
            )
        return int(block), int(head)

    def _meta(self, image: Any) -> dict[str, Any]:
        return {"versions": {"densevl": __version__}, "image": source(image), "model": self.backbone.name}

    def _warnings(self, rgb: np.ndarray, words: Sequence[str]) -> tuple[str, ...]:
        return (*remarks.of_picture(self.backbone, rgb), *self.backbone.doubts(words))


def _naming(words: Sequence[str]) -> list[str]:
    """Return the words of a caption that may name something: neither punctuation nor in `JOINING`."""
    return [word for word in words if word.casefold() not in JOINING and any(map(str.isalnum, word))]


def _gap(gap: float) -> str:
    return (
        f"the pairs add up to {abs(gap):.1g} {'more' if gap > 0 else 'less'} than they should, because the model is "
        "too steep between the references and these inputs: the values are only rough"
    )
