"""A transformers text tower whose sizes are stored beside the weights, so that the hub is not needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from densevl.errors import ModelError


class TextSide(nn.Module):
    """Tokens (T, N) to vectors (T, D) of the joint space: a model of transformers, a pooler and a projection.

    Tensors have the names of open_clip's `HFTextEncoder`.
    """

    def __init__(self, told: Mapping[str, Any], width: int) -> None:
        """Build it.

        Args:
            told: see `Form.text`. width: D.

        Raises:
            ModelError: the installed transformers does not have the model.
        """
        from open_clip import hf_model
        from transformers import CONFIG_MAPPING, AutoModel

        super().__init__()
        kind = str(told["config"]["model_type"])
        if kind not in CONFIG_MAPPING:
            raise ModelError(f"its text side, {kind[:40]}, is not in this transformers: pip install -U transformers")
        self.config = CONFIG_MAPPING[kind](**{key: x for key, x in told["config"].items() if key != "model_type"})
        self.masked = bool(told.get("masked", True))
        self.transformer = AutoModel.from_config(self.config)
        if getattr(self.config, "is_encoder_decoder", False):
            self.transformer = self.transformer.encoder
        elif told["pooler"] != "cls_pooler":
            self.transformer.pooler = None
        self.pooler = getattr(hf_model, told["pooler"].title().replace("_", ""))()
        hidden = self.config.hidden_size
        heads: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "linear": lambda: nn.Linear(hidden, width, bias=False),
            "norm": lambda: nn.Sequential(
                nn.LayerNorm(hidden, eps=self.config.layer_norm_eps), nn.Linear(hidden, width)
            ),
            "mlp": lambda: nn.Sequential(
                nn.Linear(hidden, (hidden + width) // 2, bias=False),
                nn.GELU(),
                nn.Linear((hidden + width) // 2, width, bias=False),
            ),
        }
        self.proj = heads[told["head"]]()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != self.config.pad_token_id).long() if self.masked else torch.ones_like(tokens)
        return self.proj(self.pooler(self.transformer(input_ids=tokens, attention_mask=mask), mask))

    def extra_repr(self) -> str:
        return f"masked={self.masked}"


def told_of(side: Any, text: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `told` of `TextSide` for a tower of open_clip's `HFTextEncoder`; None for another text side.

    Args:
        text: open_clip's text_cfg that it was built from.
    """
    if type(side).__name__ != "HFTextEncoder":
        return None
    pooler = re.sub(r"(?<!^)(?=[A-Z])", "_", type(side.pooler).__name__).lower()
    head = "none" if isinstance(side.proj, nn.Identity) else text.get("hf_proj_type", "mlp")
    return {
        "config": {**side.config.to_diff_dict(), "model_type": side.config.model_type},
        "pooler": pooler,
        "head": head,
        "context": text.get("context_length", 77),
        "vocabulary": side.vocab_size,
    }
