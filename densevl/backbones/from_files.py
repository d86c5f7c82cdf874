"""From weights and the config beside them to a `Backbone`: a file, a folder, an architecture, or changes to a model.

Facts that weights alone do not hold come from the caller, the form of the file, the config, or the published table, in
this order; see `weights.facts`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl.backbones.at_hand import PHOTO_NAMES
from densevl.backbones.build import build
from densevl.backbones.text.tokenizers import as_its_folder
from densevl.concepts import concept_kind
from densevl.errors import ModelError, suggest
from densevl.saved import Kind, read_json
from densevl.weights import State, bad_file, hub
from densevl.weights.facts import GELU, QUICK, Fact, Facts, Form, activations, said
from densevl.weights.folders import parts_in, read_weights, weights_in
from densevl.weights.forms import recognise
from densevl.weights.forms.dinotxt import is_dinotxt, on_its_tower
from densevl.weights.forms.heads import cut, wordless
from densevl.weights.forms.lora import is_adapter, merge
from densevl.weights.forms.pixels import Processor, read_processor
from densevl.weights.forms.radio import RADIO, beside_words, is_radio
from densevl.weights.given import given
from densevl.weights.large import TRUNKS
from densevl.weights.published import PIXELS, architectures, config_of, of_architecture, of_tag, tags_of, unknown
from densevl.weights.published import told as told_of
from densevl.weights.words import NAME as WORDS
from densevl.weights.words import read_words

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone
    from densevl.backbones.open_clip_model import OpenClipBackbone

FOLDER, TABLE = "local-dir:", "open_clip:"
"""Prefixes of a name that make it a folder, or one of open_clip's table."""
CONFIG = "open_clip_config.json"
MODEL_CONFIG = Kind("config", ModelError, "name an open_clip model config")
THEIR_CONFIG = "config.json"


@dataclass(frozen=True)
class How:
    """How a model is loaded.

    Attributes:
        device. precision. given: facts from the caller, which override all others. words: vectors of texts in
            place of a text side. width: how many numbers of the joint space are kept, from the first.
    """

    device: str
    precision: str
    given: Facts
    words: Mapping[str, Any] | None = None
    width: int | None = None


def alike(arch: str) -> list[str]:
    """Architectures that a mistyped name may mean; a name unlike any may be an organisation of the hub."""
    known = {name.lower(): name for name in architectures()}
    return [known[name] for name in difflib.get_close_matches(arch.lower().replace("_", "-"), known, cutoff=0.8)]


def published(name: str) -> tuple[str, str] | None:
    """The architecture and tag of a name; None for a name of another kind.

    Raises:
        ModelError: it is also the name of a folder here.
    """
    arch, _, tag = name.removeprefix(TABLE).partition("/")
    if not tag or not (name.startswith(TABLE) or arch in architectures() or alike(arch)):
        return None
    if os.path.isdir(name) and not name.startswith(TABLE):
        raise ModelError(
            f"'{name}' is a folder here and a name of open_clip's: write {FOLDER}{name} for the folder, or "
            f"{TABLE}{name} for the published weights"
        )
    return arch, tag


def published_file(arch: str, tag: str) -> tuple[Path, dict[str, Any]]:
    """The file of weights that open_clip lists, and its model_cfg.

    Raises:
        ModelError: there is no such architecture or tag, or it is not at hand.
    """
    row = _listed(arch, tag)
    if not row.get("hf_hub"):
        raise ModelError(f"'{arch}/{tag}' is not on the hub; download {row.get('url', 'it')} and use weights=FILE")
    return hub.fetch(row["hf_hub"], f"{arch}/{tag}"), _architecture(arch)


def _listed(arch: str, tag: str) -> Mapping[str, Any]:
    if arch not in architectures():
        near = f" (closest: {', '.join(alike(arch))})" if alike(arch) else suggest(arch, architectures())
        raise ModelError(f"no architecture '{arch}' in open_clip{near}")
    row = told_of(arch, tag)
    if not row:
        tags = tags_of(arch)
        raise ModelError(
            f"'{arch}' has no weights tagged '{tag}'{suggest(tag, tags)}; known: {', '.join(tags) or 'none'}"
        )
    return row


def from_folder(folder: Path, how: How, name: str | None = None) -> Backbone:
    """Load a folder with a config of open_clip or transformers, or with nothing but weights."""
    own, theirs = folder / CONFIG, folder / THEIR_CONFIG
    if (folder / "snapshots").is_dir():
        raise ModelError(
            f"folder {folder} is a repository of the hub cache: name it {hub.PREFIX}ORG/REPO, or one of its snapshots"
        )
    if not own.is_file() and (state := parts_in(folder)):
        return of_form(recognise(state, folder, words=how.words is not None), folder, how)
    if not own.is_file() and not theirs.is_file():
        raise ModelError(f"folder {folder} has no {CONFIG} or {THEIR_CONFIG}; name a folder with one and its weights")
    if (kind := concept_kind(folder)) and not own.is_file():
        raise ModelError(
            f"model '{name or folder.name}' is a concept model ({kind}): it judges each text for itself and has no "
            "features. It runs as densevl.Concepts, densevl segment and densevl eval run, and proposes masks as "
            "--proposals concepts:MODEL; here name a CLIP model"
        )
    path = weights_in(folder, own=own.is_file())
    if path is None:
        raise ModelError(f"folder {folder} has no weights; put a .safetensors file beside {CONFIG}")
    return _of_config(name or folder.resolve().name, own if own.is_file() else theirs, path, how, folder)


def from_files(name: str, weights: Path, how: How) -> Backbone:
    if weights.is_dir():  # a LoRA adapter, or a repository
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
        return of_file(weights, how)
    if folder.is_dir() and not published(name):
        raise ModelError(f"folder {folder} has no {CONFIG} or {THEIR_CONFIG}; name a folder with one")
    if folder.is_file():
        return _beside_file(folder, weights, how)
    if not published(name) and name not in architectures() and (repo := hub.parse(name)):
        return from_files(str(hub.fetch_model(repo)), weights, how)
    arch, tag = published(name) or (name, "")
    if tag:
        _listed(arch, tag)
    return of_named(name, arch, tag, weights, how, _architecture(arch))


def _beside_file(name: Path, weights: Path, how: How) -> Backbone:
    """Load changes to a model (LoRA), or an image tower alone, together with the file of the model they belong to."""
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
    return of_form(form, weights, how)


def of_named(name: str, arch: str, tag: str, path: Path, how: How, config: dict[str, Any]) -> Backbone:
    """Load weights of a named architecture, and perhaps with the tag of the published weights they come from."""
    form = _read(path, how, (lambda: published_file(arch, tag)[0]) if tag else None)
    name = _called(name, form, path)
    if not form.decides:
        form = replace(form, trunk=TRUNKS.get(arch))
    elif form.head and form.config and form.config["text_cfg"].get("hf_tokenizer_name"):  # of the words beside it
        form.config["text_cfg"] = {**form.config["text_cfg"], **config["text_cfg"]}
    if arch in TRUNKS:
        head = form.state.get("visual.head.proj.weight")
        config |= {"embed_dim": len(head)} if head is not None and head.ndim else {}
    facts, warnings = (of_tag(arch, tag, config), {}) if tag else of_architecture(arch, config)
    return _built(name, form, _sized(config, form), path, _of_trunk(facts, config), how, warnings=warnings)


def _of_config(name: str, config: Path, path: Path, how: How, folder: Path) -> Backbone:
    """Load weights with a config of open_clip or transformers beside them, which adds what they lack."""
    content = read_json(config, MODEL_CONFIG)

    def base() -> Path | None:
        beside = weights_in(folder, own=config.name == CONFIG)
        return None if beside == path else beside

    if how.words is None and (folder / WORDS).is_file():
        how = replace(how, words=read_words(folder / WORDS))
    if "vision_config" in content or "model_type" in content:
        form = _read(path, how, base, content, read_processor(folder))
        name = _called(name, form, path)
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
        more = said(
            config.name, **{k: tuple(v) if isinstance(v, list) else v for k, v in extra.get("facts", {}).items()}
        )
        known = str(extra.get("form") or form.name)
        kept = {name: getattr(form, name) or extra.get(name) for name in ("trunk", "text", "attention", "head")}
    form = replace(form, name=known, facts={}, **kept)
    return _built(name, form, _sized(model, form), path, {**facts, **more}, how, folder=folder)


def _called(name: str, form: Form, path: Path) -> str:
    """The name of a model; the name of the words beside it is appended only if they are not its own."""
    return f"{path.name.partition('.')[0]}+{name}" if form.name == RADIO else name


def _of_trunk(facts: dict[str, Fact], config: Mapping[str, Any]) -> dict[str, Fact]:
    """Facts of open_clip's config or table, whose activation does not apply to timm's towers."""
    if "timm_model_name" not in config["vision_cfg"]:
        return facts
    return {**facts, "image_activation": Fact(None, "the tower's own")}


def of_file(path: Path, how: How) -> Backbone:
    """Load a file without a name; its sizes are read from the tensors if its form allows that."""
    return of_form(_read(path, how, None), path, how)


def of_form(form: Form, path: Path, how: How) -> Backbone:
    """Build weights with the sizes read from them."""
    if form.config is None:
        raise ModelError(
            f"weights {path} ({form.name}) need the architecture they were trained with; name it as the model"
        )
    facts, warnings = unknown(path.name, form.facts)
    beside = path.parent if form.text else None  # may hold the tokenizer
    return _built(path.stem, form, form.config, path, facts, how, folder=beside, warnings=warnings)


def _read(
    path: Path,
    how: How,
    base: Callable[[], Path | None] | None,
    config: Mapping[str, Any] | None = None,
    pixels: Processor | None = None,
) -> Form:
    """Read a file; changes to a model (LoRA) and an image tower alone are merged into the model beside them.

    Args:
        base: finds the weights of the model beside it; None where none is named. config, pixels: see `recognise`.
    """
    read = read_weights(path)
    found = read.tensors
    if base is not None and (put := _onto(found)) and (model := base()):
        found = put(read_weights(model).tensors, found, path)
    form = recognise(found, path, config, pixels, words=how.words is not None)
    form = replace(form, notes=(*read.notes, *form.notes))
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
    base_form = recognise(read_weights(model).tensors, model, config, pixels)
    return replace(base_form, name=form.name, state={**base_form.state, **form.state}, notes=form.notes)


def _onto(found: State) -> Callable[[State, State, Path], State] | None:
    """How to merge a file into the model beside it; None for a file that needs no such model by its tensors."""
    if is_adapter(found):
        return merge
    if is_radio(found):
        return beside_words
    return on_its_tower if is_dinotxt(found) else None


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
    """Build a model; facts of its form override those of the architecture, and given facts override both.

    Args:
        facts: of the architecture. warnings: about guesses, by the name of the fact.
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
    """The config to build: the form's, for forms whose network open_clip's own config does not describe."""
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
