"""From weights and facts about them to a `Backbone`: built without memory, loaded strictly, wrapped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from densevl import devices
from densevl.backbones.precision import BYTES, ON_CPU, LoweredTower, lowerable
from densevl.backbones.text.side import TextSide, told_of
from densevl.backbones.text.tokenizers import has_tokenizer, tokenizer_of
from densevl.backbones.towers.differential import make_differential
from densevl.backbones.towers.speaking import Speaking
from densevl.errors import MissingExtraError, ModelError
from densevl.saved import said
from densevl.weights import WAY_OUT, State, assign, bad_file, require_fit
from densevl.weights.facts import CALLER, CLIP_MEAN, CLIP_STD, QUICK, TANH, Fact, Facts, Form, Plan
from densevl.weights.forms.heads import GIVEN
from densevl.weights.forms.pixels import require_pixels
from densevl.weights.forms.sizes import NO_TEXT

if TYPE_CHECKING:
    from densevl.backbones.open_clip_model import OpenClipBackbone

PLAN = "densevl.memory"
"""The logger for a model's memory before it is loaded; large models are logged at INFO."""
LARGE = 2e9
TRUNK = {
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "norm_layer"),
    *("use_post_norm", "num_classes", "norm_eps", "reg_tokens"),
}
"""Keywords of timm's `create_model` that a form or a config may set."""
POSITIONS = "positional_embedding"
PLACEHOLDER = "test_vit"
"""The timm model that is built first and then replaced by a trunk of other sizes."""
OTHER_SIZE = "it was trained for another input size or text length: name that architecture"
_PATCHING = threading.Lock()
TEXT_CONFIG = "text_config.json"
"""A file beside the weights with the sizes of a transformers text side; otherwise the hub is asked."""


def build(
    name: str,
    form: Form,
    config: dict[str, Any],
    path: Path,
    facts: Facts,
    device: str,
    *,
    precision: str = "float32",
    folder: Path | None = None,
    warnings: tuple[str, ...] = (),
) -> OpenClipBackbone:
    """Build the architecture, load the weights strictly, wrap it.

    Args:
        name: for messages and results.
        form: the weights.
        config: as in open_clip's JSON files: embed_dim, vision_cfg, text_cfg, ...
        path: of the weights, for messages.
        facts: activations, pixels.
        device: of the model.
        precision: of the linear layers of its image tower's blocks; only those lowered weights are kept.
        folder: may hold the tokenizer's files.
        warnings: about guesses among the facts.

    Raises:
        ModelError: open_clip cannot build it, or it gives no dense features, or not at this precision.
        WeightsError: the weights do not fit it, or it does not fit in memory.
        MissingExtraError: its text side needs a package that is not installed.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import InterpolationMode, Resize

    from densevl.backbones.open_clip_model import OpenClipBackbone
    from densevl.backbones.towers import tower_of

    require_pixels(facts)
    text = config["text_cfg"]
    hugging = text.get("hf_model_name") or text.get("hf_tokenizer_name") or form.text
    hugging = hugging and form.text != GIVEN
    if hugging and not find_spec("transformers"):
        raise MissingExtraError("transformers", "hf", f"the text side of '{name}'")
    logging.getLogger(__name__).info("building %s from %s", name, path)
    if folder is not None and (folder / TEXT_CONFIG).is_file() and text.get("hf_model_name"):
        config = {**config, "text_cfg": {**text, "hf_model_name": str(folder / TEXT_CONFIG)}}
    with _explained(name, None if form.text else text.get("hf_model_name")):
        model = _empty(config, form)
        facts = _activate(model, facts, name)
        pixels: dict[str, Any] = {
            key: facts[key].value for key in ("mean", "std", "interpolation", "resize_mode") if key in facts
        }
        tower: Any = tower_of(model.visual, name)
        resample = pixels.get("interpolation", "bicubic")
        pixels["interpolation"] = "bilinear" if resample == "bilinear" else "bicubic"  # open_clip has no others
        settings = PreprocessCfg(**{"mean": CLIP_MEAN, "std": CLIP_STD, **pixels, "size": tower.image_size})
        transform = image_transform_v2(settings, is_train=False)
        side: Any = tower.image_size if settings.resize_mode == "squash" else tower.image_size[0]
        if settings.resize_mode != "longest" and tower.image_size[0] == tower.image_size[1]:
            # nor a short side larger than the crop
            edge = facts["resize"].value if "resize" in facts else side
            transform.transforms[0] = Resize(edge, InterpolationMode(resample))
    wanted = model.state_dict()
    tensors = _fitting(model, form.state, wanted, path, name)
    misfits = {key for key in wanted if key in tensors and tensors[key].shape != wanted[key].shape}
    # open_clip would resize these tables, which hides weights for another input size or context
    sized = misfits and all(key.endswith(POSITIONS) for key in misfits) and wanted.keys() == tensors.keys()
    require_fit(wanted, tensors, path, f"'{name}'", OTHER_SIZE if sized else WAY_OUT)
    needs = memory(model, tower, name)
    lowered = {id(weight) for weight in lowerable(tower, name)} if precision != "float32" else ()
    _require_room(path, name, needs, precision, device)
    assign(model, tensors, device, {key for key, own in model.named_parameters() if id(own) in lowered})
    if lowered:
        tower = LoweredTower(tower, precision, name, device)
    with _explained(name, None if has_tokenizer(folder) else text.get("hf_tokenizer_name")):
        tokenizer = tokenizer_of(text, form, folder)
    backbone = OpenClipBackbone(
        model.to(device).requires_grad_(False),
        tokenizer,
        transform,
        tower=tower,
        name=name,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        reading={"form": form.name, **{key: fact.told() for key, fact in facts.items()}},
        guesses=warnings,
    )
    backbone.precision = precision
    words = form.text or told_of(getattr(model, "text", None), text)
    backbone.plan = Plan(config, form.trunk, words, form.attention, form.head, folder, _parameters(wanted), needs)
    return backbone


def memory(model: nn.Module, tower: Any, name: str) -> dict[str, int]:
    """Memory of a model's weights in bytes, by precision; only the image tower's blocks are lowered."""
    total = sum(value.nbytes for value in model.state_dict().values())
    try:
        lowered = sum(weight.numel() for weight in lowerable(tower, name))
    except ModelError:
        return {"float32": total}
    return {precision: total - (BYTES["float32"] - size) * lowered for precision, size in BYTES.items()}


def _require_room(path: Path, name: str, needs: Mapping[str, int], precision: str, device: str) -> None:
    """Log the memory that a model needs, and refuse one that does not fit."""
    needed, free = needs[precision], devices.free_memory(device)
    left = "unknown" if free is None else f"{free / 1e9:.1f} GB"
    logging.getLogger(PLAN).log(
        logging.INFO if needed >= LARGE else logging.DEBUG,
        *("'%s' takes %.1f GB in %s on %s; free: %s", name, needed / 1e9, precision, device, left),
    )
    if free is None or needed <= free:
        return
    fitting = {
        other: size for other, size in needs.items() if size <= free and (other not in ON_CPU or device == "cpu")
    }
    ways = [f"precision {other} ({size / 1e9:.1f} GB)" for other, size in fitting.items()]
    raise bad_file(
        path,
        f"takes {needed / 1e9:.1f} GB as '{name}' in {precision}, and {left} are free on {device}: take "
        f"{', '.join([*ways, 'or a smaller model' if ways else 'a smaller model'])}",
    )


def _parameters(state: State) -> tuple[int, int]:
    """Number of parameters of the image tower and of the text side."""
    sizes = {False: 0, True: 0}
    for key, value in state.items():
        sizes[key.startswith("visual.")] += value.numel()
    return sizes[True], sizes[False]


@contextmanager
def _explained(name: str, repo: str | None) -> Iterator[None]:
    """Turn any error into a `DensevlError`; `repo` on the hub may be the cause."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a config can cause any error in open_clip, timm and transformers
        if repo and isinstance(error, OSError):
            raise ModelError(
                f"model '{name}': its text side needs files of the hub's {repo}, which are not on this machine: where "
                f"the hub can be reached, run 'densevl models get' with its name, or 'hf download {repo}'"
            ) from error
        raise ModelError(f"model '{name}': open_clip cannot build it from its config: {said(error)}") from error


def _empty(config: Mapping[str, Any], form: Form) -> Any:
    """The modules without weights, and without memory where that is possible."""
    try:
        with _parameters_on_meta():
            made = _network(config, form)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return _network(config, form)  # MobileCLIP's constructor computes with its parameters
    return _network(config, form) if any(buffer.is_meta for buffer in made.buffers()) else made


def _network(model_config: Mapping[str, Any], form: Form) -> Any:
    """The modules, without weights."""
    import open_clip

    config = {
        **model_config,
        "text_cfg": dict(model_config["text_cfg"]),
        "vision_cfg": dict(model_config["vision_cfg"]),
    }
    text, vision = config["text_cfg"], config["vision_cfg"]
    custom = config.pop("custom_text", False) or bool(text.get("hf_model_name"))
    if form.text:
        config["text_cfg"] = text = {**NO_TEXT}
    if text.get("hf_model_name"):  # the checkpoint holds both towers, so neither is fetched
        text["hf_model_pretrained"] = False
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    trunk_name = vision.get("timm_model_name")
    if form.trunk:
        vision["timm_model_name"] = PLACEHOLDER
    kind = (
        open_clip.CoCa
        if custom and "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if custom
        else open_clip.CLIP
    )
    model = kind(**config, cast_dtype=None)
    if form.trunk:
        _replace_trunk(model.visual, {**vision, "timm_model_name": trunk_name}, form.trunk)
    if form.head:
        model.visual = Speaking(model.visual.trunk, form.head)
    if form.attention == "differential":
        make_differential(model)
    if form.text:
        model.text = nn.Identity() if form.text == GIVEN else TextSide(form.text, config["embed_dim"])
    return model


def _replace_trunk(visual: Any, vision: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Give open_clip's `TimmModel` a trunk of other sizes, and a projection that fits it.

    Raises:
        ModelError: there are keywords other than sizes.
    """
    import timm
    from timm.layers import get_norm_layer

    if odd := sizes.keys() - TRUNK:
        raise ModelError(f"the sizes of its trunk have {', '.join(sorted(map(repr, odd)))[:80]}, which is not a size")
    sizes = dict(sizes)
    eps = sizes.pop("norm_eps", None)
    norm = {"norm_layer": get_norm_layer(sizes["norm_layer"])} if "norm_layer" in sizes else {}
    visual.trunk = timm.create_model(
        vision["timm_model_name"], **{"num_classes": 0, "global_pool": vision["timm_pool"], **sizes, **norm}
    )
    for module in visual.trunk.modules() if eps is not None else ():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    old = getattr(visual.head, "proj", None)
    if isinstance(old, nn.Linear) and old.in_features != visual.trunk.num_features:
        visual.head.proj = nn.Linear(visual.trunk.num_features, old.out_features, bias=old.bias is not None)


def _activate(model: Any, facts: Facts, name: str) -> dict[str, Fact]:
    """Give both towers the activation in the facts.

    Returns:
        The facts; an activation that no layer took becomes the tower's own.

    Raises:
        ModelError: the caller gave an activation, and the image tower is a transformer without one of that kind.
    """
    from open_clip.transformer import QuickGELU
    from timm.layers import activations as timm_own

    kinds = (nn.GELU, QuickGELU, timm_own.GELU, timm_own.GELUTanh, timm_own.QuickGELU)
    makes = {QUICK: QuickGELU, TANH: partial(nn.GELU, approximate="tanh")}
    text = getattr(model, "text", None) or model.transformer
    found = dict(facts)
    for key, side in (("image_activation", model.visual), ("text_activation", text)):
        kind = facts[key].value if key in facts else None
        if kind is None:
            continue
        parents = () if hasattr(side, "pooler") else side.modules()  # transformers' text sides set their own
        hosts = [(parent, child) for parent in parents for child, own in parent.named_children() if type(own) in kinds]
        for parent, child in hosts:
            setattr(parent, child, makes.get(str(kind), nn.GELU)())
        if hosts:
            continue
        if facts[key].source == CALLER and hasattr(side, "trunk"):
            raise ModelError(f"model '{name}': its image tower has no GELU, so it takes no activation: leave it out")
        found[key] = Fact(None, "the tower's own")
    return found


def _fitting(model: Any, tensors: State, wanted: State, path: Path, name: str) -> State:
    """Rename tensors of older versions of open_clip, and of MobileCLIP, to today's names."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        tensors = convert_state_dict(model, dict(tensors))
    except Exception as error:
        raise bad_file(path, f"does not fit '{name}' ({said(error)}); {WAY_OUT}") from error
    if POSITIONS in tensors and not hasattr(model, POSITIONS):
        tensors = convert_to_custom_text_state_dict(tensors)
    for key in ("logit_scale", "logit_bias"):  # a scalar, stored in varying shapes
        if key in tensors and key in wanted and tensors[key].numel() == wanted[key].numel():
            tensors[key] = tensors[key].reshape(wanted[key].shape)
    if "logit_bias" in wanted and "logit_scale" in tensors:
        tensors.setdefault("logit_bias", torch.zeros_like(tensors["logit_scale"]))
    places = "text.transformer.embeddings.position_ids"  # of transformers before 4.31
    return {key: value for key, value in tensors.items() if key != places or key in wanted}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters take no memory; buffers, which files may lack, are real.

    One thread at a time: this patches a method of `nn.Module`, and must restore torch's own.
    """
    mine = threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == mine:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    with _PATCHING:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
