"""Models for timing: by name, or "random:ARCH", an architecture of open_clip with random weights."""

from __future__ import annotations

from densevl import devices
from densevl.backbones import Backbone, load_backbone
from densevl.errors import ModelError, suggest

PREFIX = "random:"


def load(name: str, device: str | None = None) -> Backbone:
    """Load a model as `load_backbone` does, or build "random:ViT-B-16", because time does not depend on the weights.

    Raises:
        ModelError: as `load_backbone`.
    """
    if name.startswith(PREFIX):
        return random_model(name.removeprefix(PREFIX), device)
    return load_backbone(name, device=device)


def random_model(arch: str, device: str | None = None) -> Backbone:
    """An architecture of open_clip with random weights, the same each time.

    Raises:
        ModelError: open_clip does not know it, or it gives no dense features.
    """
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from densevl.backbones.open_clip_model import OpenClipBackbone

    if arch not in open_clip.list_models():
        raise ModelError(f"no architecture '{arch}' in open_clip{suggest(arch, open_clip.list_models())}")
    torch.manual_seed(0)
    model = open_clip.create_model(arch, load_weights=False).eval().requires_grad_(False)
    settings = PreprocessCfg(size=model.visual.image_size)
    return OpenClipBackbone(
        model.to(devices.choose(device)),
        open_clip.get_tokenizer(arch),
        image_transform_v2(settings, is_train=False),
        name=f"{PREFIX}{arch}",
        mean=settings.mean,
        std=settings.std,
    )
