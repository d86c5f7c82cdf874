"""SAM 3 (Carion et al., 2025) and CLIPSeg (Lüddecke and Ecker, CVPR 2022) behind one interface, by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from densevl.concepts.base import ConceptModel, Judged


class Sam3(ConceptModel):
    """SAM 3: presence, instances and a map for each text. It was trained on masks of concepts."""

    kind, most_tokens = "sam3", 32

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """See `ConceptModel.encode`: states (L, D) and the mask (L,) of each text."""
        given = self._tokenizer(
            list(texts), padding="max_length", max_length=self.most_tokens, truncation=True, return_tensors="pt"
        ).to(self.device)
        model: Any = self.module
        states = model.get_text_features(given.input_ids, given.attention_mask, return_dict=True).pooler_output
        return list(zip(states, given.attention_mask, strict=True))

    def see(self, pixels: torch.Tensor) -> Any:
        """See `ConceptModel.see`."""
        model: Any = self.module
        return model.get_vision_features(pixels)

    def judge(self, seen: Any, words: Sequence[Any]) -> Judged:
        """See `ConceptModel.judge`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        count, model = len(words), self.module
        several = replace(
            seen,
            fpn_hidden_states=tuple(x.expand(count, -1, -1, -1) for x in seen.fpn_hidden_states),
            fpn_position_encoding=tuple(x.expand(count, -1, -1, -1) for x in seen.fpn_position_encoding),
        )
        text = BaseModelOutputWithPooling(pooler_output=torch.stack([states for states, _ in words]))
        mask = torch.stack([mask for _, mask in words])
        found = model(vision_embeds=several, text_embeds=text, attention_mask=mask)
        return Judged(
            found.semantic_seg[:, 0],
            found.presence_logits.sigmoid().reshape(count),
            found.pred_masks,
            found.pred_logits.sigmoid(),
        )


class ClipSeg(ConceptModel):
    """CLIPSeg: one map for each text. The photo passes through CLIP once, and through the small decoder per text."""

    kind = "clipseg"

    @property
    def most_tokens(self) -> int:  # type: ignore[override]
        """See `ConceptModel`."""
        model: Any = self.module
        return int(model.config.text_config.max_position_embeddings)

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """See `ConceptModel.encode`: the embedding (D,) of each text."""
        model: Any = self.module
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(self.device)
        return list(model.clip.get_text_features(given.input_ids, given.attention_mask).pooler_output)

    def see(self, pixels: torch.Tensor) -> Any:
        """See `ConceptModel.see`: the tokens that the decoder reads."""
        model: Any = self.module
        found = model.clip.vision_model(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        return [found.hidden_states[layer + 1] for layer in model.extract_layers]

    def judge(self, seen: Any, words: Sequence[Any]) -> Judged:
        """See `ConceptModel.judge`."""
        model: Any = self.module
        several = [tokens.expand(len(words), -1, -1) for tokens in seen]
        places = model.decoder(several, torch.stack(list(words))).logits
        none = places.new_zeros(len(words), 0)
        return Judged(
            places, places.new_ones(len(words)), none[..., None, None].expand(-1, -1, *places.shape[1:]), none
        )
