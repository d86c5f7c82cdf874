"""The possible settings of a command, their values, and the order in which they are tried."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from densevl.backbones import Backbone
from densevl.errors import DensevlError, OptionError, suggest
from densevl.pipelines.settings import check
from densevl.recipes import get, names
from densevl.regions.operators.names import parse
from densevl.vocabulary import Background
from densevl.vocabulary.background import SCENES
from densevl.vocabulary.templates import NAMES as TEMPLATES
from densevl.vocabulary.templates import templates

SEGMENT, REGIONS, CLASSIFY = USES = ("segment", "regions", "classify")
"""Commands that can be tuned."""
STAGES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    SEGMENT: (("recipe", "background"), ("templates", "background"), ("plan",)),
    REGIONS: (("operator",), ("templates",), ("recipe",)),
    CLASSIFY: (("templates",), ("guided", "presence")),
}
"""Settings that are tried together, in order; settings of one pass of the image tower share it."""
CHEAPER: Mapping[str, tuple[str, ...]] = {SEGMENT: ("plan", "precision"), REGIONS: ("precision",), CLASSIFY: ()}
"""Settings that are changed afterwards if that saves time and loses nothing."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BESIDE = (0.2, 0.4, 0.6)
"""Thresholds combined with the model's own background words."""
LISTS = ("none", "1-max", SCENES, "voc", "coco-object")
PRESENCES = ("0.1", "0.3", "0.5", "0.8")
PLANS, PRECISIONS = ("tiles", "sliding", "whole"), ("float32", "int8", "bfloat16")
OPERATORS = ("pool", "cls_mask", "crop", "pool+cls_mask", "pool+crop", "pool+cls_mask+crop")


def number(value: str | None) -> int | float | None:
    """Convert a value to a number.

    Raises:
        OptionError: it is not a number.
    """
    try:
        return None if value is None else int(value) if value.isdecimal() else float(value)
    except ValueError as error:
        raise OptionError(f"{value!r} to try is not a number") from error


@dataclass(frozen=True)
class Candidate:
    """Values of settings; None leaves the option out.

    Attributes: settings: (name, value) pairs, sorted by name.
    """

    settings: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, values: Mapping[str, str | None]) -> Candidate:
        """Make a candidate from values by setting."""
        return cls(tuple(sorted(values.items())))

    def __getitem__(self, name: str) -> str | None:
        """The value of a setting; None too if there is no setting of the name."""
        return dict(self.settings).get(name)

    def but(self, **values: str | None) -> Candidate:
        """The same candidate with other values."""
        return self.of({**dict(self.settings), **values})

    def changed(self, default: Candidate) -> dict[str, str | None]:
        """The settings that differ from the default."""
        return {name: value for name, value in self.settings if value != default[name]}

    def against(self, default: Candidate) -> str:
        """A description by the settings that differ from the default."""
        parts = [f"{name} {_brief(value or 'default')}" for name, value in self.changed(default).items()]
        return "; ".join(parts) or "default"

    @property
    def key(self) -> str:
        """A text that identifies the candidate."""
        return json.dumps(dict(self.settings), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Space:
    """The values that settings may have.

    Attributes: use: of `USES`. values: by setting, the default first.
    """

    use: str
    values: Mapping[str, tuple[str | None, ...]]

    @property
    def default(self) -> Candidate:
        """The command's default."""
        return Candidate.of({name: own[0] for name, own in self.values.items()})

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The stages in which there is something to choose."""
        return tuple(stage for stage in STAGES[self.use] if any(len(self.values.get(name, ())) > 1 for name in stage))

    def around(self, candidate: Candidate, stage: Iterable[str]) -> list[Candidate]:
        """All combinations of the values of some settings, others unchanged; the candidate itself comes first."""
        own = [name for name in stage if name in self.values]
        found = [
            candidate.but(**dict(zip(own, values, strict=True)))
            for values in product(*map(self.values.get, own))  # type: ignore[arg-type]
        ]
        return list(dict.fromkeys([candidate, *found]))


def space(
    use: str,
    backbone: Backbone,
    *,
    background: bool = True,
    labelled: bool = True,
    only: Iterable[str] = (),
    tries: Mapping[str, Iterable[str]] | None = None,
    given: Iterable[str] = (),
) -> Space:
    """The possible settings for a model.

    Args:
        use: of `USES`. background: whether pixels may be none of the labels. labelled: whether the truth is known;
            otherwise backgrounds are not varied, because no way of guessing them proved good. only: settings to vary;
            all if empty.
        tries: values to try instead of the usual ones, by setting. given: inputs for recipes: "proxy", "proposals".

    Raises:
        OptionError: a setting is not tuned here, or cannot have a value.
    """
    usual: dict[str, tuple[str | None, ...]] = {
        SEGMENT: {
            "recipe": _recipes(backbone, given),
            "background": ("none",) if not background else _backgrounds(backbone) if labelled else ("auto",),
            "templates": (None, *TEMPLATES),
            "plan": (None, *PLANS),
            "precision": _precisions(backbone),
        },
        REGIONS: {
            "operator": (None, *OPERATORS),
            "templates": (None, *TEMPLATES),
            "recipe": _recipes(backbone, given),
            "precision": _precisions(backbone),
        },
        CLASSIFY: {"templates": (None, *TEMPLATES), "guided": (None, "5"), "presence": (None, *PRESENCES)},
    }[use]
    asked = {name: tuple(values) for name, values in (tries or {}).items()}
    for name in (*only, *asked):
        if name not in usual:
            raise OptionError(f"no setting {name!r} to tune for {use}{suggest(name, usual)}; {', '.join(usual)}")
    for name, values in asked.items():
        for value in values:
            _possible(name, value, backbone)
    varied = tuple(only) or tuple(usual)
    chosen = {**usual, **{name: (usual[name][0], *values) for name, values in asked.items()}}
    return Space(use, {name: tuple(dict.fromkeys(own if name in varied else own[:1])) for name, own in chosen.items()})


def _brief(value: str) -> str:
    """A value for a table; a long list is shortened to its ends."""
    return value if len(value) <= 30 else f"{value[:18]} ... {value[-8:]}"


def _recipes(backbone: Backbone, given: Iterable[str]) -> tuple[str | None, ...]:
    """Recipes that this model can run with the given inputs."""
    allowed = {"text", *given} | ({"regions", "masks"} if "proposals" in given else set())
    return (None, *(name for name in names() if get(name).reads <= allowed and _runs(backbone, name)))


def _runs(backbone: Backbone, recipe: str) -> bool:
    if backbone.default_recipe in (None, recipe):
        return False
    try:
        backbone.resolve(get(recipe))
    except DensevlError:
        return False
    return True


def _backgrounds(backbone: Backbone) -> tuple[str | None, ...]:
    own = Background.parse(backbone.background)
    beside = [", ".join([*own.words, str(number)]) for number in BESIDE] if own.words else []
    lists = [name for name in LISTS if name != SCENES or backbone.default_recipe is not None]  # needs whole images
    return ("auto", *lists, *map(str, THRESHOLDS), *beside)


def _precisions(backbone: Backbone) -> tuple[str | None, ...]:
    lowered = [name for name in PRECISIONS[1:] if _lowers(backbone, name)]
    return (PRECISIONS[0], *lowered) if backbone.precision == PRECISIONS[0] else (backbone.precision,)


def _lowers(backbone: Backbone, precision: str) -> bool:
    try:
        backbone.at_precision(precision)
    except DensevlError:
        return False
    return True


def _possible(name: str, value: str, backbone: Backbone) -> None:
    """Refuse a value that a setting cannot have, before anything is measured."""
    known: dict[str, Any] = {"plan": PLANS, "precision": PRECISIONS}
    if name in known and value not in known[name]:
        raise OptionError(f"{name} {value!r} to try{suggest(value, known[name])}; give {', '.join(known[name])}")
    if name == "recipe":
        backbone.resolve(get(value))
    if name == "background":
        Background.parse(value)
    if name == "templates":
        templates(value)
    if name == "operator":
        parse(value)
    if name in ("guided", "presence"):
        check(name, number(value))
