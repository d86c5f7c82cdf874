"""Experiments in config files.

JSON, YAML and TOML are data: a config from someone else cannot run code, read other files, or keep the machine busy. So
YAML is read by its 1.2 core schema, without tags, aliases and merge keys; a key appears once; files are small; and
`_base_` stays in its folder. Values are literal, and nothing is filled in from the environment. A config in mmengine's
Python format is a program, and runs only if the caller trusts it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from densevl.errors import EvaluationError, MissingExtraError
from densevl.evaluation.benchmarks.table import require_no_folder
from densevl.evaluation.experiment import Experiment
from densevl.files import shown
from densevl.saved import foreign

LIMIT, DEPTH = 20_000, 8
"""Largest file in bytes (tomllib takes a second for that many dots), and longest chain of `_base_` files."""
BASE, FOLDER, PROGRAM = "_base_", "configs", ".py"
Settings = dict[str, Any]
_LOG = logging.getLogger(__name__)


def is_config(what: str) -> bool:
    """Whether this looks like a config rather than the name of a benchmark."""
    return Path(what).suffix.lower() in (*READERS, PROGRAM) or any(sign in what for sign in "/\\")


def load_experiment(path: str | Path, changes: Mapping[str, Any] | None = None, *, trust: bool = False) -> Experiment:
    """Read an experiment from a config.

    Args:
        path: .json, .yaml, .yml or .toml: fields of `Experiment`, and `_base_`, a file or a list of files relative to
            this one, whose fields apply where this one has none. The last of several wins, and mappings are merged.
            They must lie in the nearest folder "configs" around the config, or if there is none, in its own folder.
            .py: a config in mmengine's format.
        changes: fields that replace the config's, merged likewise.
        trust: run a .py config, and import a recipe of your own ("package.module:NAME") that a config names.

    Raises:
        EvaluationError: the file does not exist, is not plain data or not trusted, or has fields that an experiment
            does not have.
        MissingExtraError: mmengine, which reads a .py config, is not installed.
    """
    path = Path(path)
    if not path.is_file():
        require_no_folder(os.fspath(path))
        raise EvaluationError(f"no config {shown(path)}: give a .yaml, .json or .toml file, or the name of a benchmark")
    program = path.suffix.lower() == PROGRAM
    if program and not trust:
        raise EvaluationError(
            f"config {shown(path)} is a program that could do anything as you: write it as .yaml, or, if you trust it, "
            "add --trust-config (trust=True)"
        )
    settings = _run(path) if program else _Files(path).read(path.resolve())
    if not program and ":" in (recipe := str(settings.get("recipe", ""))):
        if not trust:
            raise EvaluationError(
                f"config {shown(path)} names a recipe that is Python code, {shown(recipe)}: if you trust it, add "
                "--trust-config (trust=True)"
            )
        _LOG.warning("config %s is trusted, and its recipe %s imported", shown(path), shown(recipe))
    return Experiment.parse(merged(settings, changes or {}))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """Settings overridden by others; nested mappings are merged too."""
    both = dict(under)
    for name, value in over.items():
        below = both.get(name)
        both[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both


def parse_change(text: str) -> Settings:
    """Parse FIELD=VALUE, with the value as YAML writes it; FIELD.KEY=VALUE sets a key of a mapping.

    Raises:
        EvaluationError: it is not of this form, or the value is not plain data.
    """
    name, sign, value = text.partition("=")
    try:
        if not (sign and name.strip()) or len(value) > LIMIT or name.count(".") > DEPTH:
            raise ValueError("it has no field before a '=', or is too long")
        found = _plain(_yaml(value))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise EvaluationError(f"{shown(text)} is not FIELD=VALUE, such as limit=20: {_reason(error)}") from error
    for part in reversed(name.strip().split(".")):
        found = {part: found}
    return found


class _Files:
    """A config and its bases, each read once."""

    def __init__(self, path: Path) -> None:
        home = path.resolve().parent
        self.root = next((folder for folder in (home, *home.parents) if folder.name == FOLDER), home)
        self.known: dict[Path, Settings] = {}

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> Settings:
        """Read a file with its bases merged in; `chain` is the path to it."""
        if path in self.known:
            return self.known[path]
        try:
            own = _data(path)
            bases = own.pop(BASE, [])
            places = [self._place(path, base) for base in (bases if isinstance(bases, list) else [bases])]
            if any(place in (path, *chain) for place in places):
                raise ValueError(f"{BASE} leads in a circle")
            if places and len(chain) + 1 >= DEPTH:
                raise ValueError(f"{BASE} leads over more than {DEPTH} files")
        except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
            raise EvaluationError(f"config {shown(path)} cannot be read: {_reason(error)}") from error
        settings: Settings = {}
        for place in places:
            settings = merged(settings, self.read(place, (*chain, path)))
        self.known[path] = merged(settings, own)
        return self.known[path]

    def _place(self, path: Path, base: Any) -> Path:
        if not isinstance(base, str):
            raise ValueError(f"{BASE} is a file or a list of files")
        place = (path.parent / base).resolve()
        if Path(base).is_absolute() or not place.is_relative_to(self.root):
            raise ValueError(f"{BASE} {shown(base)} is outside the folder {shown(self.root)}")
        return place


def _data(path: Path) -> Settings:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"its ending is none of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        content = file.read(LIMIT + 1)
    if reason := foreign(content[:64]):
        raise ValueError(f"it {reason}")
    if len(content) > LIMIT:
        raise ValueError(f"it has more than {LIMIT:,} bytes")
    found = _plain(read(content.decode("utf-8-sig")))
    if not isinstance(found, dict):
        raise ValueError("it holds no fields with values")
    return found


def _run(path: Path) -> Settings:
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise MissingExtraError("mmengine", "eval", "reading a config in Python") from error
    _LOG.warning("config %s is trusted, and run as a program", shown(path))
    try:
        return dict(Config.fromfile(str(path), lazy_import=False).to_dict())
    except Exception as error:  # a program can raise anything
        raise EvaluationError(f"config {shown(path)} cannot be read: {_reason(error)}") from error


def _plain(value: Any) -> Any:
    """The value, if all three formats can express it."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, str) and "{{" in value:
        raise ValueError(f"{shown(value)} asks for a value to be filled in; write the value")
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{value} is a {type(value).__name__}; write it as text, in quotes")
    return value


def _unique(pairs: Iterable[tuple[Any, Any]]) -> Settings:
    found: Settings = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"key {shown(str(key))} is not text")
        if key in found:
            raise ValueError(f"key {shown(key)} appears twice")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: null, true, false, numbers, text, lists, mappings."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as the base class has it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("aliases (*name) and tags (!name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Settings:
        return _unique(self.construct_pairs(node, deep=True))


for _name, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_form})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))  # 010 is ten


def _yaml(text: str) -> Any:
    return _Loader(text).get_single_data()


READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": partial(json.loads, object_pairs_hook=_unique),
    ".toml": tomllib.loads,
}
"""Endings of configs that are data, and their readers."""


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not text"
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())[:200] + (f", line {mark.line + 1}" if mark else "")
