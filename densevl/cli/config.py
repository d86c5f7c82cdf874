"""Defaults of options from a TOML file: `densevl --config FILE segment ...`.

    [segment]
    model = "photo"
    labels = ["cat", "dog | puppy"]
    short-side = 448

    [export.words]
    templates = "openai"

A table for each command, options without their dashes. The command line wins. A file is read only where it is named:
the folder that a command runs in decides nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from densevl.errors import OptionError, suggest
from densevl.files import shown


def defaults(path: str, command: Any) -> dict[str, Any]:
    """The file as click's `default_map`.

    Args:
        command: the group whose commands the tables name.

    Raises:
        OptionError: no such file, no TOML, an unknown key, or a value of another type than its option's.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise OptionError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise OptionError(f"{shown(path)} is no TOML: {' '.join(str(error).split())}") from error
    return _tables(content, command, shown(path))


def _tables(content: Mapping[str, Any], group: Any, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, table in content.items():
        own = group.commands.get(name)
        if own is None and not isinstance(table, Mapping):
            having = [one for one, command in group.commands.items() if name.replace("_", "-") in _flags(command)]
            if having:
                told = ", ".join(f"[{one}]" for one in having)
                raise OptionError(f"{where}: {name!r} is an option, and stands in no table; put it under {told}")
        if own is None:
            raise OptionError(
                f"{where}: no command {name!r}{suggest(name, group.commands)}; there are {', '.join(group.commands)}"
            )
        if not isinstance(table, Mapping):
            raise OptionError(f"{where}: {name!r} is a command; its options stand below [{name}]")
        inner = f"{where}, [{name}]"
        found[name] = (_tables if hasattr(own, "commands") else _options)(table, own, inner)
    return found


def _flags(command: Any) -> dict[str, Any]:
    """The options of a command by their flags without dashes."""
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


def _value(value: Any, option: Any, said: str) -> Any:
    """A value as its option takes it; a list of strings where one string is due has commas between."""
    kinds: tuple[type, ...] = (bool,) if option.is_flag else (str, int, float)
    entries = value if isinstance(value, list) else [value]
    if not entries or any(
        not isinstance(entry, kinds) or (isinstance(entry, bool) and not option.is_flag) for entry in entries
    ):
        raise OptionError(f"{said}: {'true or false' if option.is_flag else 'a text or a number'} is due")
    texts = [entry if option.is_flag else str(entry) for entry in entries]
    if not option.is_flag and any(not str(text).strip() for text in texts):
        raise OptionError(f"{said}: it is empty; give a value, or leave it out")
    if isinstance(value, list) and not option.multiple:
        if option.is_flag or any(not isinstance(entry, str) for entry in entries):
            raise OptionError(f"{said}: it takes one value")
        texts = [", ".join(map(str, texts))]
    return texts if option.multiple else texts[0]
