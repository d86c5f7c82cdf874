"""Defaults of options from a TOML file: `densevl --config FILE segment ...`.

    [segment]
    model = "photo"
    labels = ["cat", "dog | puppy"]
    short-side = 448

    [export.words]
    templates = "openai"

There is a table for each command, with options without their dashes. The command line takes precedence. A file is only
read if --config names it, so the current folder has no effect.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from densevl.errors import OptionError, suggest
from densevl.files import shown


def defaults(path: str, command: Any) -> dict[str, Any]:
    """Read the file as click's `default_map`.

    Args:
        command: the group of commands that the tables name.

    Raises:
        OptionError: If there is no such file, it is not TOML, a key is unknown, or a value has the wrong type.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise OptionError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # invalid TOML or UTF-8
        raise OptionError(f"{shown(path)} is not TOML: {' '.join(str(error).split())}") from error
    return _tables(content, command, shown(path))


def _tables(content: Mapping[str, Any], group: Any, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, table in content.items():
        own = group.commands.get(name)
        if own is None and not isinstance(table, Mapping):
            having = [one for one, command in group.commands.items() if name.replace("_", "-") in _flags(command)]
            if having:
                tables = ", ".join(f"[{one}]" for one in having)
                raise OptionError(f"{where}: {name!r} is an option outside of any table; put it under {tables}")
        if own is None:
            raise OptionError(
                f"{where}: no command {name!r}{suggest(name, group.commands)}; there are {', '.join(group.commands)}"
            )
        if not isinstance(table, Mapping):
            raise OptionError(f"{where}: {name!r} is a command; put its options under [{name}]")
        inner = f"{where}, [{name}]"
        found[name] = (_tables if hasattr(own, "commands") else _options)(table, own, inner)
    return found


def _flags(command: Any) -> dict[str, Any]:
    """Return the options of a command by their flags without dashes."""
    return {
        flag.removeprefix("--"): option
        for option in command.params
        if option.param_type_name == "option"
        for flag in (*option.opts, *option.secondary_opts)
        if flag.startswith("--") and option.name != "help"
    }


def _options(table: Mapping[str, Any], command: Any, where: str) -> dict[str, Any]:
    known = _flags(command)
    found = {}
    for key, value in table.items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            raise OptionError(f"{where}: no option {key!r}{suggest(key, known)}")
        found[option.name] = _value(value, option, f"{where}: {key} = {value!r}")
    return found


def _value(value: Any, option: Any, what: str) -> Any:
    """Convert a value to what its option accepts. A list of strings for a single string is joined by commas."""
    kinds: tuple[type, ...] = (bool,) if option.is_flag else (str, int, float)
    entries = value if isinstance(value, list) else [value]
    if not entries or any(
        not isinstance(entry, kinds) or (isinstance(entry, bool) and not option.is_flag) for entry in entries
    ):
        raise OptionError(f"{what}: it must be {'true or false' if option.is_flag else 'a string or a number'}")
    texts = [entry if option.is_flag else str(entry) for entry in entries]
    if not option.is_flag and any(not str(text).strip() for text in texts):
        raise OptionError(f"{what}: it is empty; give a value, or leave it out")
    if isinstance(value, list) and not option.multiple:
        if option.is_flag or any(not isinstance(entry, str) for entry in entries):
            raise OptionError(f"{what}: it takes one value")
        texts = [", ".join(map(str, texts))]
    return texts if option.multiple else texts[0]
