"""Download, inspect and write models: the functions behind `densevl models`."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from densevl.backbones.at_hand import PHOTO_NAMES, available, best_at_hand
from densevl.backbones.base import Backbone
from densevl.backbones.build import TEXT_CONFIG
from densevl.backbones.from_files import CONFIG, MODEL_CONFIG, published, published_file
from densevl.backbones.load import load_backbone
from densevl.backbones.lowered import probe
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.reach import by_reason
from densevl.backbones.readouts import READOUTS
from densevl.backbones.text.tokenizers import files_of
from densevl.errors import ModelError, OutputError, suggest
from densevl.files import atomic_write_all, guard, shown
from densevl.saved import read_json
from densevl.weights import hub, require_finite
from densevl.weights.facts import QUICK
from densevl.weights.large import TRUNKS
from densevl.weights.names import OWN_NAMES, THEIR_NAMES
from densevl.weights.published import PIXELS, config_of, of_tag, pairs, told
from densevl.weights.words import NAME as WORDS

WEIGHTS = OWN_NAMES[0]
TEXT_REPOS = ("hf_tokenizer_name", "hf_model_name")
PIECE = 1 << 24  # bytes copied at once
PARTS = {*hub.BESIDE, *OWN_NAMES, *THEIR_NAMES, TEXT_CONFIG, WORDS}
"""The files of a folder that may be read as one model."""


@dataclass(frozen=True)
class Listed:
    """Published weights of open_clip's table.

    Attributes:
        name: ARCH/TAG. hub: its repository, or the URL of its file. ready: whether it is in the hub cache.
        activation: of both towers. size: side of the training photos, in pixels.
    """

    name: str
    hub: str
    ready: bool
    activation: str
    size: int


def listed(pattern: str = "*") -> list[Listed]:
    """The published weights whose names fit a pattern with wildcards; without network.

    Raises:
        ModelError: no name matches.
    """
    rows = []
    for arch, tag in pairs():
        if fnmatchcase(f"{arch}/{tag}".lower(), pattern.lower()):
            config, entry = config_of(arch) or {}, told(arch, tag)
            place = str(entry.get("hf_hub", ""))
            size = config["vision_cfg"]["image_size"]
            rows.append(
                Listed(
                    f"{arch}/{tag}",
                    place.strip("/") or str(entry.get("url", "")),
                    bool(place and hub.cached_file(place)),
                    str(of_tag(arch, tag, config)["image_activation"].value),
                    size[0] if isinstance(size, list | tuple) else size,
                )
            )
    if not rows:
        raise ModelError(f"no published weights match '{pattern}'; '*' stands for any characters, as in 'ViT-L-*/*'")
    return rows


def show(name: str) -> dict[str, Any]:
    """Facts about a model by its name, ready for JSON; no weights of the hub are read, and nothing is downloaded.

    Returns:
        name, what it is and whether it is ready. For published weights, the fields of `Listed`. For a model of the
        package or of an index: its sizes, and its words: knows, by way (see `Reach`); half_knows and does_not_know, by
        reason; and reads_as, more words that are read as a broader one that it knows, half knows or does not know.

    Raises:
        ModelError: the name is in no table, or the model's packages are not installed.
    """
    if name == "auto":
        name = best_at_hand()
    about = {info.name: info for info in available()}
    if name in (*PHOTO_NAMES, "mini"):
        backbone = load_backbone(name, device="cpu")
        sizes = {key: value for key, value in describe(backbone).items() if key != "name"}
        known = {key: value for key, value in sizes.items() if value is not None}
        what = {"name": name, "what": backbone.summary, "better": backbone.upgrade, "ready": True}
        return {**what, "made_for": backbone.pictures, **known, **_words_of(backbone)}
    if name in about and not about[name].backbone:
        return {"name": name, "what": about[name].about, "ready": about[name].ready}
    if (found := published(name)) and (rows := [row for row in listed(name) if row.name == "/".join(found)]):
        return {"what": "CLIP: any words, and no table of those that it knows", **asdict(rows[0])}
    known_names = dict.fromkeys(("auto", *about, *PHOTO_NAMES))
    raise ModelError(
        f"no table has '{name}'{suggest(name, known_names)}: densevl models list names the published ones, and densevl "
        "models check loads any other and says what it is"
    )


def _words_of(backbone: Backbone) -> dict[str, Any]:
    """The listed words of a model by how far each can be trusted."""
    reaches = backbone.reach(backbone.listed_words())
    knows: dict[str, list[str]] = {}
    for reach in reaches:
        if reach.trust == "good":
            knows.setdefault(reach.way, []).append(reach.word)
    reasons: dict[str, list[dict[str, Any]]] = {"weak": [], "none": []}
    for (trust, why), words in by_reason(reach for reach in reaches if reach.trust != "good"):
        reasons[trust].append({"why": why, "words": words})
    reads_as: dict[str, list[str]] = {}
    for word, kind in backbone.narrower_words().items():
        reads_as.setdefault(kind, []).append(word)
    return {
        "knows": knows,
        "half_knows": reasons["weak"],
        "does_not_know": reasons["none"],
        "reads_as": dict(sorted(reads_as.items(), key=lambda own: -len(own[1]))),
    }


def planned(name: str) -> list[hub.Needed]:
    """The files that `get` downloads, except a tokenizer of another repository; nothing is downloaded.

    Raises:
        ModelError: the name is not on the hub, or cannot be downloaded.
    """
    if found := published(name):
        place = told(*found).get("hf_hub")
        if place:
            repo, names = hub.split_hub_id(place)
            return hub.planned(hub.Repo(repo), names)
        published_file(*found)  # raises the reason
    return hub.planned(_repo(name))


def get(name: str, to: Path | None = None, *, overwrite: bool = False) -> Path:
    """Download all that a model of the hub needs into the hub cache: weights, config, and its text side's tokenizer.

    Args:
        name: ARCH/TAG, or hf-hub:ORG/REPO followed by "@REVISION" or "/FILE" if needed.
        to: a folder to copy them to, from which local-dir: then loads the model without a cache.
        overwrite: another model in that folder may be replaced.

    Returns:
        The weights file, the folder of the repository at its commit, or `to`.

    Raises:
        ModelError: the name is not on the hub, or cannot be downloaded.
        WeightsError: the download is damaged.
        OutputError: the disk has no room, or `to` has other files.
    """
    content: dict[str, Any] = {}
    if found := published(name):
        path, config = published_file(*found)
        facts = {key: fact.value for key, fact in of_tag(*found, config).items()}
        content = {
            "model_cfg": {**config, "quick_gelu": facts["image_activation"] == QUICK},
            "preprocess_cfg": {key: facts[key] for key in PIXELS},
            **({"densevl": {"trunk": TRUNKS[found[0]]}} if found[0] in TRUNKS else {}),
        }
    else:
        path, config = hub.fetch_model(_repo(name)), {}
        if (path / CONFIG).is_file():
            model = read_json(path / CONFIG, MODEL_CONFIG)
            config = model.get("model_cfg", model)
    text = config.get("text_cfg") if isinstance(config, dict) else None
    words = [str(text[key]) for key in TEXT_REPOS if text.get(key)] if isinstance(text, dict) else []
    for repo in (repo for repo in words if not Path(repo).exists()):
        hub.fetch_words(repo)
    return path if to is None else _copied(path, content, words, to, overwrite)


def _repo(name: str) -> hub.Repo:
    found = hub.parse(name)
    if found is None:
        raise ModelError(f"'{name}' is not a hub name: name ARCH/TAG such as ViT-B-16/openai, or hf-hub:ORG/REPO")
    return found


def _copied(path: Path, content: dict[str, Any], words: Sequence[str], to: Path, overwrite: bool) -> Path:
    """Copy the files of a model into a folder of their own; those of the hub cache are links."""
    if path.is_file() and not content:
        raise ModelError(
            f"'{path.name}' is one file, without a config: copy it from {path}, and give it with --weights"
        )
    sources = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    files: dict[str, bytes | Path] = {file.name: file for file in sources}
    if content:
        files[CONFIG] = json.dumps(content, indent=1).encode()
    for repo in words:  # the last is the text side's own, whose config has its sizes
        for name, file in hub.words_of(repo).items():
            files.setdefault(TEXT_CONFIG if name == "config.json" else name, file)
    size, free = sum(file.stat().st_size for file in sources), shutil.disk_usage(_existing(to)).free
    if size > free:
        raise OutputError(f"the model takes {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {shown(to)}")
    _write(to, files, overwrite=overwrite, out="another --to")
    return to


def _write(
    folder: Path, files: Mapping[str, bytes | Path], *, inputs: Iterable[str | Path] = (), overwrite: bool, out: str
) -> list[Path]:
    """Write the files of a model into a folder; those of another model, which would be read with them, are removed.

    Args:
        files: by name, their content or a file to copy. inputs, overwrite, out: see `guard`.

    Returns:
        Their paths, including those that existed already.

    Raises:
        OutputError: there are other files.
    """
    new = {folder / name: data for name, data in files.items() if not _holds(folder / name, data)}
    others = [folder / name for name in sorted(PARTS - files.keys()) if (folder / name).is_file()]
    guard([*new, *others], inputs=inputs, overwrite=overwrite, out=out)
    atomic_write_all({path: _pieces(data) if isinstance(data, Path) else data for path, data in new.items()})
    for path in others:
        path.unlink()
    return [folder / name for name in files]


def _holds(path: Path, data: bytes | Path) -> bool:
    """Whether a file exists with this content."""
    if not path.is_file():
        return False
    if isinstance(data, Path):
        return filecmp.cmp(path, data, shallow=False)
    return path.stat().st_size == len(data) and path.read_bytes() == data


def _existing(folder: Path) -> Path:
    return next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), folder)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


def describe(backbone: Backbone) -> dict[str, Any]:
    """Facts about a loaded model, ready for JSON: form, sizes, parameters, memory, and each fact with its source."""
    found: dict[str, Any] = {"name": backbone.name, "precision": backbone.precision, **dict(backbone.reading)}
    found |= {"patch_size": backbone.patch_size, "embed_dim": backbone.embed_dim, "recipe": backbone.default_recipe}
    if backbone.auto:
        found["precision"] = [backbone.precision, f"auto, {backbone.auto}"]
        found |= {"machine": probe.machine(backbone.device), "precisions": probe.fastest(backbone.device).told}
    if isinstance(backbone, OpenClipBackbone):
        if backbone.plan is not None:
            image, text = backbone.plan.parameters
            found |= {"image_parameters": image, "text_parameters": text}
            found |= {f"bytes_in_{precision}": size for precision, size in backbone.plan.memory.items()}
        found |= {
            "image_size": list(backbone.tower.image_size),
            "context_length": backbone.context_length,
            "logit_scale": round(backbone.logit_scale, 3),
        }
        if backbone.words is not None:
            found["words"] = [len(backbone.words), "text vectors in place of a text side"]
    return found


@torch.no_grad()
def try_out(backbone: Backbone) -> None:
    """Run a model once on a word and on noise.

    Raises:
        ModelError: it gives NaN or infinite numbers.
    """
    side = 2 * backbone.patch_size
    if isinstance(backbone, OpenClipBackbone):
        side = max(backbone.tower.image_size[0] // backbone.patch_size, 1) * backbone.patch_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    require_finite(backbone.encode_dense(pixels).features, f"dense features of model '{backbone.name}'")
    words = getattr(backbone, "words", None) or ["a photo of a dog"]
    require_finite(backbone.encode_text([next(iter(words))]), f"text embeddings of model '{backbone.name}'")


def convert(
    backbone: Backbone, folder: Path, *, inputs: Iterable[str | Path] = (), overwrite: bool = False
) -> list[Path]:
    """Write a model as a folder for `local-dir:`, which open_clip reads too if it has the architecture.

    The config holds activation and pixel statistics, so nothing needs to be guessed again.

    Args:
        inputs: the files that it was read from; they and other files of their folder are not overwritten.
        overwrite: another model in the folder may be replaced.

    Returns:
        The files written: config, weights as safetensors, and a tokenizer's if it has one of its own.

    Raises:
        ModelError: the model's weights have no names in open_clip.
        OutputError: there are other files.
    """
    plan = backbone.plan if isinstance(backbone, OpenClipBackbone) else None
    if plan is None or not isinstance(backbone, OpenClipBackbone):
        raise ModelError(f"model '{backbone.name}' is not a CLIP from a weights file: there is nothing to convert")
    if backbone.precision != "float32":
        raise ModelError(f"model '{backbone.name}' is in {backbone.precision}: load it in float32 to convert it")
    from safetensors.torch import save

    facts = {name: value[0] for name, value in backbone.reading.items() if isinstance(value, list)}
    facts.pop("revision", None)  # not a property of the weights
    pixels = {name: facts[name] for name in PIXELS if name in facts}
    extra = {"facts": facts, "trunk": plan.trunk, "text": plan.text, "attention": plan.attention, "head": plan.head}
    extra["form"] = backbone.reading["form"] if backbone.reading.get("form") in READOUTS else None
    model = {**plan.config, "quick_gelu": facts.get("image_activation") == QUICK}
    content = {
        "model_cfg": model,
        "preprocess_cfg": {"mean": backbone.mean, "std": backbone.std, **pixels},
        "densevl": {name: value for name, value in extra.items() if value},
    }
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.model.state_dict().items()}
    files: dict[str, bytes | Path] = {
        CONFIG: json.dumps(content, indent=1).encode(),
        WEIGHTS: save(state, {"format": "pt", "densevl": backbone.name}),
        **files_of(backbone.tokenizer, plan.folder),
    }
    if backbone.words is not None:
        rows = {text: row.detach().cpu().contiguous().clone() for text, row in backbone.words.items()}
        files[WORDS] = save(rows, {"densevl": backbone.name})
    own = plan.folder.iterdir() if plan.folder is not None else ()
    return _write(folder, files, inputs=[*inputs, *own], overwrite=overwrite, out="another folder")
