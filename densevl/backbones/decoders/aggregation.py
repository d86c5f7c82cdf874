"""CAT-Seg's cost aggregation: from cosines of places and words to logits at four times the resolution.

Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation" (CVPR 2024), read from its file.
Words interact only in the attention over classes, and places only elsewhere, so both run in parts of bounded size
with the same result. Shape letters: T words, C width, E joint space, h/w places, G width of the guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.weights import State, below

HEADS, WINDOW = 4, 12
MOST = 256
"""The most words that are compared; shorter lists are padded with learned words."""
REST = -100.0
"""The logit of words beyond `MOST`."""
WORDS_AT_ONCE, PLACES_AT_ONCE = 16, 128


@dataclass(frozen=True, eq=False)
class Aggregation:
    """The tensors by their names in the file. Attributes: words_at_once, places_at_once: size of the parts."""

    state: State
    words_at_once: int = WORDS_AT_ONCE
    places_at_once: int = PLACES_AT_ONCE

    @property
    def depth(self) -> int:
        """Layers."""
        return len({key.split(".")[1] for key in self.state if key.startswith("layers.")})

    def __call__(
        self, map_Ehw: torch.Tensor, text_TE: torch.Tensor, early_Dhw: torch.Tensor, later_Dhw: torch.Tensor
    ) -> torch.Tensor:
        """Logits (T, 4h, 4w).

        Args:
            map_Ehw: dense features, not normalised; sides are multiples of 12. text_TE: unit rows.
            early_Dhw, later_Dhw: tokens after a third and two thirds of CLIP's blocks, already at (2h, 2w) and (4h, 4w)
                by the file's transposed convolutions.
        """
        cost_Thw = torch.einsum("exy,te->txy", F.normalize(map_Ehw, dim=0), F.normalize(text_TE, dim=1))
        if len(cost_Thw) > MOST:
            kept = cost_Thw.flatten(1).amax(dim=1).topk(MOST).indices.sort().values
            few = self(map_Ehw, text_TE[kept], early_Dhw, later_Dhw)
            return few.new_full((len(cost_Thw), *few.shape[1:]), REST).index_copy(0, kept, few)
        words = F.normalize(text_TE, dim=1)
        words_TG = F.relu(self._linear(words, "text_guidance_projection.0."))
        place_Ghw = F.relu(self._conv(map_Ehw[None], "guidance_projection.0."))[0]
        x_TChw = self._conv(cost_Thw[:, None], "conv1.")
        for index in range(self.depth):
            at = f"layers.{index}."
            x_TChw = self._within_words(x_TChw, place_Ghw, f"{at}swin_block.")
            x_TChw = x_TChw + self._between_words(x_TChw, words_TG, f"{at}attention.")
        guides = [
            F.relu(self._conv(tap[None], f"decoder_guidance_projection.{index}.0."))
            for index, tap in enumerate((early_Dhw, later_Dhw))
        ]
        return torch.cat([self._decode(part, guides) for part in x_TChw.split(self.words_at_once)])

    def _linear(self, x: torch.Tensor, at: str) -> torch.Tensor:
        return F.linear(x, self.state[at + "weight"], self.state[at + "bias"])

    def _conv(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """A convolution that keeps the size of its map."""
        kernel = self.state[at + "weight"]
        return F.conv2d(x, kernel, self.state.get(at + "bias"), padding=kernel.shape[-1] // 2)

    def _norm(self, x: torch.Tensor, at: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[at + "weight"], self.state[at + "bias"])

    def _within_words(self, x_TChw: torch.Tensor, place_Ghw: torch.Tensor, at: str) -> torch.Tensor:
        """Two blocks of windowed attention over places, for each word separately."""
        guide_hwG = self._norm(place_Ghw.movedim(0, -1), f"{at}guidance_norm.")
        parts = []
        for part in x_TChw.split(self.words_at_once):
            x = part.movedim(1, -1)
            for block, shift in ((f"{at}block_1.", 0), (f"{at}block_2.", WINDOW // 2)):
                x = x + self._windowed(self._norm(x, f"{block}norm1."), guide_hwG, shift, f"{block}attn.")
                inner = F.gelu(self._linear(self._norm(x, f"{block}norm2."), f"{block}mlp.fc1."))
                x = x + self._linear(inner, f"{block}mlp.fc2.")
            parts.append(x.movedim(-1, 1))
        return torch.cat(parts)

    def _windowed(self, x_ThwC: torch.Tensor, guide_hwG: torch.Tensor, shift: int, at: str) -> torch.Tensor:
        """Attention within windows; the guidance, the same for all words, is added to queries and keys."""
        h, w, width = x_ThwC.shape[1:]
        side = min(WINDOW, h, w)
        shift = shift if min(h, w) > WINDOW else 0  # one window covers the map
        qkv: list[torch.Tensor] = []
        for name in ("q", "k", "v"):
            own = self.state[f"{at}{name}.weight"][:, :width]
            part = F.linear(x_ThwC, own, self.state[f"{at}{name}.bias"])
            if name != "v":
                part = part + F.linear(guide_hwG, self.state[f"{at}{name}.weight"][:, width:])
            qkv.append(_cut(part.roll((-shift, -shift), (1, 2)), side).unflatten(-1, (HEADS, -1)).transpose(-2, -3))
        mask = None
        if shift:
            region = _regions(h, side, shift)[:, None] * 3 + _regions(w, side, shift)
            ids = _cut(region[None, ..., None].to(x_ThwC), side)[..., 0]
            mask = ((ids[..., None] != ids[..., None, :]) * -100.0)[:, :, None]
        q, k, v = qkv
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self._linear(out.transpose(-2, -3).flatten(-2), f"{at}proj.")
        return _joined(out, h, w, side).roll((shift, shift), (1, 2))

    def _between_words(self, x_TChw: torch.Tensor, words_TG: torch.Tensor, at: str) -> torch.Tensor:
        """Linear attention over words at each place, with learned words up to 256, and an MLP."""
        size = x_TChw.shape[2:]
        x_NTC = x_TChw.flatten(2).permute(2, 0, 1)
        filled = MOST - x_NTC.shape[1]
        parts = []
        learned = self.state[f"{at}padding_tokens"][0]
        _, k1, v1 = self._features(self._norm(learned, f"{at}norm1."), self.state[f"{at}padding_guidance"][0], at)
        for part in x_NTC.split(self.places_at_once):
            q, k, v = self._features(self._norm(part, f"{at}norm1."), words_TG, at)
            # All learned words are equal, so one of them is computed and multiplied by their number.
            sums = torch.einsum("nthd,nthe->nhde", k, v) + filled * torch.einsum("thd,the->hde", k1, v1)
            total = k.sum(dim=1) + filled * k1.sum(dim=0)
            share = 1 / (torch.einsum("nthd,nhd->nth", q, total) + 1e-6)
            part = part + torch.einsum("nthd,nhde,nth->nthe", q, sums, share).flatten(2)
            inner = F.relu(self._linear(self._norm(part, f"{at}norm2."), f"{at}MLP.0."))
            parts.append(part + self._linear(inner, f"{at}MLP.2."))
        return torch.cat(parts).permute(1, 2, 0).unflatten(2, size)

    def _features(self, x: torch.Tensor, guide: torch.Tensor, at: str) -> list[torch.Tensor]:
        """Queries, keys and values (..., heads, d); the first two through elu + 1."""
        joined = torch.cat([x, guide.expand(*x.shape[:-1], -1)], dim=-1)
        found = [self._linear(joined if name != "v" else x, f"{at}attention.{name}.") for name in ("q", "k", "v")]
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in found)
        return [F.elu(q) + 1, F.elu(k) + 1, v]

    def _decode(self, x_TChw: torch.Tensor, guides: list[torch.Tensor]) -> torch.Tensor:
        """Two upsampling steps, each with its guidance, to one logit per place: (T, 4h, 4w)."""
        for index, guide in enumerate(guides, start=1):
            own = below(self.state, f"decoder{index}.")
            x_TChw = F.conv_transpose2d(x_TChw, own["up.weight"], own["up.bias"], stride=2)
            x_TChw = torch.cat([x_TChw, guide.expand(len(x_TChw), -1, -1, -1)], dim=1)
            for conv, norm in ((0, 1), (3, 4)):
                x_TChw = F.conv2d(x_TChw, own[f"conv.double_conv.{conv}.weight"], padding=1)
                scale, shift = (own[f"conv.double_conv.{norm}.{name}"] for name in ("weight", "bias"))
                x_TChw = F.relu(F.group_norm(x_TChw, max(1, len(scale) // 16), scale, shift))
        return self._conv(x_TChw, "head.")[:, 0]


def _cut(x_ThwC: torch.Tensor, side: int) -> torch.Tensor:
    """Windows (T, n, side * side, C)."""
    x = x_ThwC.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _joined(x_TnsC: torch.Tensor, h: int, w: int, side: int) -> torch.Tensor:
    """The map (T, h, w, C) that `_cut` cut."""
    x = x_TnsC.unflatten(1, (h // side, w // side)).unflatten(3, (side, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _regions(length: int, side: int, shift: int) -> torch.Tensor:
    """The region of each place along a side after a cyclic shift; only places of one region attend to each other."""
    place = torch.arange(length)
    return (place >= length - side).long() + (place >= length - shift).long()
