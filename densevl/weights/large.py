"""EVA-CLIP with 8 and 18 billion weights (Sun et al., arXiv:2402.04252), which is not in open_clip's table.

The image towers are timm's `Eva` with other sizes, root mean square norms, and no bias in the projection of q, k, v or
in the head; the larger one normalises after the attention and the MLP. The text side is that of open_clip's
EVA02-E-14-plus.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 1280, "heads": 20, "layers": 32}
_RMS = {"patch_size": 14, "mlp_ratio": 5.0, "qkv_bias": False, "norm_layer": "rmsnorm"}
_EIGHT = {**_RMS, "embed_dim": 4096, "depth": 32, "num_heads": 32}
_EIGHTEEN = {**_RMS, "embed_dim": 5120, "depth": 48, "num_heads": 40, "use_post_norm": True}


def _config(width: int, size: int) -> dict[str, Any]:
    vision = {"image_size": size, "timm_model_name": "eva_giant_patch14_clip_224", "timm_pool": "token"}
    return {
        "embed_dim": width,
        "custom_text": True,
        "vision_cfg": {**vision, "timm_proj": "linear"},
        "text_cfg": dict(_TEXT),
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "EVA-CLIP-8B": _config(1280, 224),
    "EVA-CLIP-8B-448": _config(1280, 448),
    "EVA-CLIP-18B": _config(1536, 224),
}
"""open_clip's model_cfg by name."""
TRUNKS: dict[str, dict[str, Any]] = {
    "EVA-CLIP-8B": {**_EIGHT, "img_size": 224},
    "EVA-CLIP-8B-448": {**_EIGHT, "img_size": 448},
    "EVA-CLIP-18B": {**_EIGHTEEN, "img_size": 224},
}
"""Keywords of timm's `create_model` by name."""
PUBLISHED: dict[tuple[str, str], str] = {
    ("EVA-CLIP-8B", "merged2b_s9b"): "BAAI/EVA-CLIP-8B/EVA_CLIP_8B_psz14_s9B.pt",
    ("EVA-CLIP-8B-448", "merged2b_s9b"): "BAAI/EVA-CLIP-8B-448/EVA_CLIP_8B_psz14_plus_s0.6B.pt",
    ("EVA-CLIP-18B", "merged2b_s6b"): "BAAI/EVA-CLIP-18B/EVA_CLIP_18B_psz14_s6B.fp16.pt",
}
"""Files of the hub by architecture and tag."""
