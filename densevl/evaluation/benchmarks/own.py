"""The meaning of label maps in a folder of the user's own: its list of classes, and rules beside it.

Classes are read from files that other tools write: a class per line (classes.txt, obj.names), data.yaml of Ultralytics,
labelmap.txt of CVAT, class_dict.csv, id2label of Hugging Face, dataset.json of nnU-Net. Rules are keys of dataset.json:

- "names": the classes in the order of their numbers, or {number: name}; "ids": the number stored for each.
- "ignore": a number or a list of numbers that are not scored, "others" for all that are not listed.
- "label_map": {stored number: class, by name or number, or null for not scored}.
- "colours": {"#804080": class or null}, or a list of colours in the order of the classes: label maps are pictures.
- "background": the class that means none of the others. "reduce_zero_label": 0 is not scored, classes begin at 1.
- "exif": whether labels match the pixels as "stored" or the "upright" picture, where an EXIF tag turns images.

By default classes are 0, 1, 2, ... in their order, 255 and 65535 are not scored unless a class has that number, and a
class called "background" is the background.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError, LabelError, suggest
from densevl.evaluation.benchmarks.class_lists import BACKGROUND, ClassList
from densevl.evaluation.benchmarks.label_rules import IGNORE, SIZE, Table, mapped
from densevl.files import shown
from densevl.vocabulary import LabelSet
from densevl.vocabulary.reading.files import data_of, text_of
from densevl.vocabulary.reading.lines import coloured

RULES = ("ignore", "label_map", "reduce_zero_label", "exif")
"""Keys that an experiment may set too, which overrides the file."""
KEYS = ("names", "ids", "colours", "background", *RULES)
OTHERS = "others"
EXIF = ("auto", "upright", "stored")
USUAL = (255, 65535)
"""Stored numbers that are not scored by default."""
_THEIRS = {"classes": "names", "nouns": "names", "id2label": "names", "labels": "names", "ignore_index": "ignore"}
_THEIRS |= {"palette": "colours", "colors": "colours"}
"""Keys that other tools write."""
_FILES = (
    *("dataset.json", "names.txt", "classes.txt", "labels.txt", "class_names.txt", "labelmap.txt"),
    *("names.json", "classes.json", "id2label.json", "class_dict.csv", "label_colors.txt", "classes.csv"),
    *("classes.names", "obj.names", "data.names", "data.yaml", "data.yml", "dataset.yaml"),
)
_BACKGROUNDS = (BACKGROUND, "_background_", "__background__")
Said = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Own:
    """The meaning of a folder's label maps.

    Attributes:
        classes: the class list. table: int32 (65536,), the class index of each stored number.
        colours: the class index of each colour, R * 65536 + G * 256 + B; None where labels are numbers.
        exif: from the rules. said: whether the rules say what is not scored. text: all of it in a sentence.
        warnings: oddities.
    """

    classes: ClassList
    table: Table
    colours: Mapping[int, int] | None
    exif: str
    said: bool
    text: str
    warnings: tuple[str, ...] = field(default=())


def read_own(root: Path, rules: Said) -> Own:
    """Read the classes and rules of a folder.

    Args:
        root: the folder; rules: keys of `RULES` that override its file.

    Raises:
        DatasetError: there is no list of classes, two lists differ, or rules are impossible.
    """
    path, found, warnings = _found(root)
    said = {**found, **rules}
    names, ids = _classes(path, said)
    try:
        asked = LabelSet.parse(names)  # "car | truck" are two strings for one class
    except LabelError as error:
        raise DatasetError(f"{shown(path)}: {error}") from error
    strings = dict(zip(asked.names, (list(words) for words in asked.synonyms), strict=True))
    plain = list(asked.names)
    first = _background(path, said, plain)
    order = list(range(len(plain))) if first is None else [first, *(n for n in range(len(plain)) if n != first)]
    index = {name: place for place, name in enumerate(plain[number] for number in order)}
    by_id = {stored: index[name] for stored, name in zip(ids, plain, strict=True)}
    colours = _colours(path, said.get("colours"), plain, index, by_id) if said.get("colours") is not None else None
    table, void = _table(path, said, by_id, index)
    if len(plain) == 1 and "," in plain[0]:
        warnings = [*warnings, f"{shown(path)} has one class, {shown(plain[0])}; write one class per line"]
    if first is not None:
        strings.pop(plain[first])
    classes = ClassList(
        "folder",
        tuple(plain[number] for number in order[first is not None :]),
        first is not None,
        {"own@1": strings},
        source=path.name,
    )
    stored = f"{len(plain)} classes from {path.name}"
    stored += f", stored as {len(colours)} colours" if colours is not None else f", stored as {_span(table)}"
    ground = f"'{plain[first]}' is the background" if first is not None else "no background class"
    ignored = f"not scored: {void}" if colours is None else "colours that no class has are refused"
    exif = said.get("exif", EXIF[0])
    if exif not in EXIF:
        raise DatasetError(f"{shown(path)}: 'exif' is {exif!r}{suggest(str(exif), EXIF)}; use {', '.join(EXIF)}")
    text = f"{stored}; {ground}; {ignored}"
    explicit = said.get("ignore") is not None or said.get("label_map") is not None
    return Own(classes, table, colours, exif, explicit, text, (*warnings, *asked.warnings))


def _span(table: Table) -> str:
    known = (table >= 0).nonzero()[0].tolist()
    return f"{known[0]} to {known[-1]}" if len(known) > 8 else ", ".join(map(str, known))


def _found(root: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The file with the classes, and all rules of its folder."""
    places = [root / name for name in _FILES]
    places += sorted(path for path in root.glob("*.names") if path not in places)
    read = [(path, _read(path)) for path in places if path.is_file()]
    if not any("names" in said or "colours" in said for _, said in read):  # the renderer writes one for several folders
        above = root.parent / "names.json"
        read += [(above, _read(above))] if above.is_file() else []
    named = [(path, said) for path, said in read if "names" in said] or [
        (path, said) for path, said in read if isinstance(said.get("colours"), dict)
    ]
    if not named:
        raise DatasetError(
            f"{shown(root / 'names.txt')} is missing: write one class per line, in the order of label ids; "
            f"{', '.join(_FILES)} are read too"
        )
    path, said = named[0]
    for other, its in named[1:]:
        mine, others = _classes(path, said), _classes(other, its)
        if [name.split("|")[0].strip() for name in mine[0]] != [name.split("|")[0].strip() for name in others[0]]:
            raise DatasetError(
                f"{shown(path)} has {len(mine[0])} classes and {other.name} beside it {len(others[0])} or others: keep "
                "one of them"
            )
    rules = next((its for own, its in read if own.name == "dataset.json"), {})
    odd = [
        f"{shown(root / 'dataset.json')} has '{key}'{near}, which is not read"
        for key in rules
        if key not in KEYS and (near := suggest(key, KEYS)) and key not in ("name", "image")
    ]
    return path, {**said, **{key: value for key, value in rules.items() if key in KEYS}}, odd


def _read(path: Path) -> dict[str, Any]:
    """The content of a file under densevl's keys."""
    text = text_of(path, "list of classes", DatasetError)
    data = data_of(text, f"list of classes {shown(path)}", ending=path.suffix.lower(), error=DatasetError)
    if data is None:
        return _lines(text)
    if isinstance(data, dict) and data and all(str(key).isdecimal() for key in data):  # such as id2label
        data = {"names": data}
    data = data if isinstance(data, dict) else {"names": data}
    return {_THEIRS.get(str(key), str(key)): value for key, value in data.items()}


def _lines(text: str) -> dict[str, Any]:
    """The classes of a text, one per line; if every line begins with a number, that is the number in label maps."""
    lines = [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]
    if pairs := coloured(lines):
        return {"colours": dict(pairs), "names": [name for _, name in pairs]}
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(\S.*)", line) for line in lines]
    if len(lines) > 2 and numbered[0] is None and all(numbered[1:]):  # a header row
        numbered = numbered[1:]
    matches = [match for match in numbered if match is not None]
    return {"names": {m[1]: m[2] for m in matches} if matches and len(matches) == len(numbered) else lines}


def _classes(path: Path, said: Said) -> tuple[list[str], list[int]]:
    """Names, and the stored number of each."""
    given = said.get("names")
    if given is None and isinstance(said.get("colours"), dict):
        given = list(dict.fromkeys(name for name in said["colours"].values() if isinstance(name, str)))
    ids: Any = None
    if isinstance(given, dict):
        if given and all(type(value) is int for value in given.values()):  # nnU-Net's
            given = {number: name for name, number in given.items()}
        if not all(str(key).isdecimal() for key in given):
            raise DatasetError(f"{shown(path)}: 'names' is a list of classes, or {{number: name}}")
        ordered = sorted(((int(key), name) for key, name in given.items()), key=lambda pair: pair[0])
        given, ids = [name for _, name in ordered], [number for number, _ in ordered]
    elif isinstance(given, list) and given and all(isinstance(entry, dict) for entry in given):
        ids = [entry["id"] for entry in given] if all("id" in entry for entry in given) else None
        given = [entry.get("name", entry.get("title")) for entry in given]
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise DatasetError(f"{shown(path)} lists no classes: write one class per line, in the order of label ids")
    zero = said.get("reduce_zero_label", False)
    if type(zero) is not bool:
        raise DatasetError(f"{shown(path)}: 'reduce_zero_label' is true or false, not {zero!r}")
    if zero and ("ids" in said or ids is not None):
        raise DatasetError(f"{shown(path)} gives numbers and 'reduce_zero_label'; leave one of them out")
    ids = said.get("ids", ids if ids is not None else list(range(zero, len(given) + zero)))
    if not isinstance(ids, list) or not all(map(_is_number, ids)) or len(set(ids)) < len(ids):
        raise _rule_error(path)
    if len(ids) != len(given):
        raise DatasetError(f"{shown(path)} has {len(given)} classes and {len(ids)} ids; give each class its own")
    return given, ids


def _background(path: Path, said: Said, names: list[str]) -> int | None:
    """The index of the background class, None if there is none."""
    asked = said.get("background")
    if asked is False:
        return None
    if asked is not None and asked not in names:
        raise DatasetError(
            f"{shown(path)}: 'background' is a class or false, not {asked!r}{suggest(str(asked), names)}"
        )
    found = [number for number, name in enumerate(names) if name == asked or name.casefold() in _BACKGROUNDS]
    return names.index(asked) if asked is not None else found[0] if found and len(names) > 1 else None


def _table(path: Path, said: Said, by_id: Mapping[int, int], index: Mapping[str, int]) -> tuple[Table, str]:
    """The table of stored numbers, and the numbers that are not scored, in words."""
    ignore = said.get("ignore")
    ignore = [] if ignore is None else list(ignore) if isinstance(ignore, list | tuple) else [ignore]
    others = OTHERS in ignore
    ignore = [number for number in ignore if number != OTHERS]
    given = said.get("label_map") or {}
    if not isinstance(given, Mapping) or not all(str(key).isdecimal() for key in given):
        raise DatasetError(f"{shown(path)}: 'label_map' is {{stored number: class}}")
    moved: dict[int, int] = {}
    for key, target in given.items():
        stored = int(key)
        if target is None or (target in (-1, *USUAL) and target not in by_id):
            ignore.append(stored)
        elif (place := index.get(target) if isinstance(target, str) else by_id.get(target)) is not None:
            moved[stored] = place
        else:
            near = suggest(str(target), index)
            raise DatasetError(f"{shown(path)}: 'label_map' maps {stored} to {target!r}{near}, which is not a class")
    reached = set(moved.values())
    kept = {stored: place for stored, place in by_id.items() if place not in reached and stored not in map(int, given)}
    numbers = [*moved, *kept]
    for number in ignore:
        if isinstance(number, str):
            raise DatasetError(
                f"{shown(path)}: 'ignore' has {number!r}; give the number that is stored, or '{OTHERS}' for all "
                "that no class has"
            )
        if number in numbers and number not in moved:
            name = next(name for name, place in index.items() if place == kept[number])
            raise DatasetError(
                f"{shown(path)}: {number} is ignored, and the number of class '{name}'; give it to one of them "
                '("ids" lists the classes\' own numbers)'
            )
    if not all(_is_number(number) for number in [*numbers, *ignore]) or set(numbers).intersection(ignore):
        raise _rule_error(path)
    zero = [0] * (said.get("reduce_zero_label", False) and 0 not in numbers)
    void = {*ignore, *zero, *(number for number in USUAL if number not in numbers)}
    table = mapped({**kept, **moved}, range(SIZE) if others else void)
    ignored = " and ".join(map(str, sorted(void))) + (", and all numbers that no class has" if others else "")
    return table, ignored + ("" if said.get("ignore") is not None or given else " (as usual; nothing else was said)")


def _colours(
    path: Path, given: Any, names: list[str], index: Mapping[str, int], by_id: Mapping[int, int]
) -> dict[int, int]:
    """Class indices by colour."""
    if isinstance(given, list) and len(given) == len(names):
        pairs = [(colour, name) for colour, name in zip(given, names, strict=True)]
    elif isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        raise DatasetError(f"{shown(path)}: 'colours' is {{colour: class}}, or a list with a colour for each class")
    found: dict[int, int] = {}
    for colour, target in pairs:
        place = IGNORE if target is None else index.get(target) if isinstance(target, str) else by_id.get(target)
        number = _colour(colour)
        if place is None or number is None or number in found:
            raise DatasetError(
                f"{shown(path)}: 'colours' has {str(colour)!r} for {target!r}: give each colour once, as '#804080' or "
                "'128,64,128', and a class or null"
            )
        found[number] = place
    return found


def _colour(colour: Any) -> int | None:
    if isinstance(colour, str) and (match := re.fullmatch(r"#?([0-9a-fA-F]{6})", colour)):
        return int(match[1], 16)
    parts = re.split(r"[,\s]+", colour.strip("()[] ")) if isinstance(colour, str) else colour
    if not isinstance(parts, list | tuple) or len(parts) != 3:
        return None
    if not all(str(part).isdecimal() and int(part) < 256 for part in parts):
        return None
    red, green, blue = map(int, parts)
    return red << 16 | green << 8 | blue


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < SIZE


def _rule_error(path: Path) -> DatasetError:
    return DatasetError(
        f"{shown(path)}: 'ids' and 'ignore' are lists of whole numbers from 0 to {SIZE - 1}, none of them twice"
    )


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DatasetError: it is missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: it is missing, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{shown(path)} cannot be read as JSON: {error}") from error
