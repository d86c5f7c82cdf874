"""The values that settings of the pipelines may have: one table, checked before anything is loaded."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import torch

from densevl import devices
from densevl.anomaly.scoring import Scoring
from densevl.anomaly.states import States
from densevl.anomaly.trained.adapters import Adapters
from densevl.backbones import Backbone, InferenceProtocol, load_backbone
from densevl.backbones.precision import AUTO, PRECISIONS
from densevl.backbones.proxies import DinoiserHeads, Proxy
from densevl.errors import OptionError, suggest
from densevl.fewshot import HEADS
from densevl.inference.sliding import PROXY_SCOPES
from densevl.inference.views import Views
from densevl.proposals import NAMES as PROPOSERS
from densevl.proposals.load import is_concepts
from densevl.recipes import Recipe
from densevl.refine.upsampling import Upsampler
from densevl.regions.bank import Bank
from densevl.vocabulary import Background, TextOptions

LEVELS = ("image", "region", "pixel")
POOL_FIRST, NAME_FIRST = "pool_then_classify", "classify_then_pool"
ORDERS = (POOL_FIRST, NAME_FIRST)

_Init = TypeVar("_Init", bound=Callable[..., None])


@dataclass(frozen=True)
class Rule:
    """Allowed values. Attributes: fits: tests a value; wants: describes it in words; choices: names to suggest."""

    fits: Callable[[Any], bool]
    wants: str
    choices: tuple[str, ...] = ()


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _strings(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(entry, str) for entry in value)


def _device(value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and bool(devices.choose(value))  # raises its own error


def _one_of(choices: Iterable[str]) -> Rule:
    listed = tuple(choices)
    return Rule(
        lambda value: value in listed if isinstance(value, str) else False, f"one of {', '.join(listed)}", listed
    )


PATH = (str, os.PathLike)
MODEL_FILE = Rule(_is(*PATH, Proxy, DinoiserHeads), "a name or path for load_proxy, or a loaded Proxy")
SWITCH = Rule(_is(bool), "True or False")
MAPPING = Rule(
    lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value), "a dict by name"
)
SHARE = Rule(lambda value: _number(value) and 0 < value <= 1, "a share above 0, up to 1")
COUNT = Rule(_whole, "a whole number of at least 1")

RULES: Mapping[str, Rule] = {
    "model": Rule(_is(str, Backbone), "a name, such as 'mini', or a loaded Backbone"),
    "weights": Rule(_is(*PATH), "the path of a checkpoint"),
    "device": Rule(_device, "'cpu', 'cuda', ..."),
    "precision": _one_of((*PRECISIONS, AUTO)),
    "recipe": Rule(_is(str, Recipe), "a name of densevl.recipes.names(), or a Recipe"),
    "operator": Rule(_is(str, Mapping), "a name, such as 'pool+cls_mask', or weights by name"),
    "scoring": Rule(_is(str, Scoring), "a name, such as 'winclip', or a Scoring"),
    "head": _one_of(HEADS),
    "level": _one_of(LEVELS),
    "compat": SWITCH,
    "use_cache": SWITCH,
    "options": MAPPING,
    "operator_options": MAPPING,
    "templates": Rule(
        lambda value: isinstance(value, str) or _strings(value), "a name, or a list of sentences with {}"
    ),
    "text": Rule(_is(TextOptions), "TextOptions"),
    "background": Rule(
        lambda value: value is None or isinstance(value, (str, Background)) or _number(value) or _strings(value),
        "'none', a probability, words, or a Background",
    ),
    "presence": Rule(lambda value: _number(value) and 0 < value < 1, "a probability within 0..1"),
    "protocol": Rule(_is(str, Mapping, InferenceProtocol), "a plan, fields to change, or an InferenceProtocol"),
    "proxy": MODEL_FILE,
    "proxy_scope": _one_of(PROXY_SCOPES),
    "sam": MODEL_FILE,
    "proposals": Rule(
        lambda value: (
            value is None or value in PROPOSERS or is_concepts(value)
            if isinstance(value, str | None)
            else callable(value)
        ),
        f"one of {', '.join(PROPOSERS)}, or a function of the photo",
        PROPOSERS,
    ),
    "views": Rule(_is(str, Views), "a name, such as 'flip', or Views"),
    "refine": Rule(lambda value: isinstance(value, str) or _strings(value), "names, such as 'pamr,vote'"),
    "upsampler": Rule(_is(*PATH, Upsampler), "the file of a trained upsampler, or a loaded Upsampler"),
    "bank": Rule(_is(*PATH, list, tuple, Bank), "a folder of a bank, a Bank, or several of these"),
    "bank_share": Rule(lambda value: _number(value) and 0 <= value <= 1, "a share of 0..1"),
    "neighbours": COUNT,
    "guided": Rule(lambda value: _whole(value, 2), "a whole number of at least 2"),
    "order": _one_of(ORDERS),
    "second_look": Rule(_is(str), "the name of an operator"),
    "second_share": SHARE,
    "second_top": COUNT,
    "margin": Rule(lambda value: _number(value) and 0 <= value < 1, "a probability, 0 for none"),
    "clip_share": Rule(
        lambda value: isinstance(value, str) or (isinstance(value, (tuple, list)) and all(map(_number, value))),
        "'fc-clip', 'odise', or two numbers within 0..1",
    ),
    "item": Rule(lambda value: isinstance(value, str) and bool(value.strip()), "a noun, such as 'metal nut'"),
    "states": Rule(
        lambda value: isinstance(value, (*PATH, Mapping, States)) or hasattr(value, "shape"),
        "a dict of phrases, a JSON file of one, two vectors, or States",
    ),
    "size": Rule(_is(Integral, tuple, list), "a number of pixels, or a pair of height and width"),
    "scales": Rule(
        lambda value: isinstance(value, Sequence) and len(value) > 0 and all(map(_number, value)),
        "numbers, such as (1, 0.5)",
    ),
    "tile": Rule(_is(int), "a number of pixels"),
    "adapters": Rule(_is(*PATH, Adapters), "Adapters of train_adapters, or their file"),
    "coverage": SHARE,
    "tolerance": SHARE,
    "extractor": Rule(lambda value: hasattr(value, "layer"), "a FeatureExtractor"),
    "tokens": COUNT,
}

DISCOVERY: Mapping[str, Rule] = {
    "threshold": Rule(lambda value: _number(value) and 0 <= value <= 1, "a probability within 0..1"),
    "agree": SHARE,
    "overlap": Rule(lambda value: value is None or (_number(value) and 0 <= value <= 1), "a share of 0..1, or None"),
    "merge": Rule(lambda value: value is None or (_number(value) and -1 <= value <= 1), "a cosine, -1 to 1, or None"),
}
"""Rules for the arguments of `RegionClassifier.discover`."""


def checked(init: _Init) -> _Init:
    """Decorate a constructor to check its arguments against `RULES` before it runs. Defaults are not checked.

    Raises:
        OptionError: If a setting does not exist, is repeated or missing, or has a value it does not accept.
    """
    signature = inspect.signature(init)
    known = [name for name in signature.parameters if name != "self"]

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **settings: Any) -> None:
        unknown = next((name for name in settings if name not in known), None)
        if unknown is not None:
            raise OptionError(
                f"{type(self).__name__} has no setting '{unknown}'{suggest(unknown, known)}; it has {', '.join(known)}"
            )
        try:
            given = signature.bind(self, *args, **settings).arguments
        except TypeError as error:
            raise OptionError(f"{type(self).__name__} cannot be created: {error}") from error
        for name, value in given.items():
            if name in RULES and value is not signature.parameters[name].default:
                check(name, value)
        init(self, *args, **settings)

    return wrapped  # type: ignore[return-value]


def check(name: str, value: Any, rules: Mapping[str, Rule] = RULES) -> None:
    """Refuse a value that a setting does not accept.

    Raises:
        OptionError: With the values it accepts.
    """
    rule = rules[name]
    if not rule.fits(value):
        near = suggest(value, rule.choices) if isinstance(value, str) else ""
        raise OptionError(f"{name} is {_shown(value)}{near}; it must be {rule.wants}")


def load(model: str | Backbone, weights: Any = None, device: Any = None, precision: str | None = None) -> Backbone:
    """Return the model, loaded with the given settings or already loaded.

    Raises:
        OptionError: If weights or a device are given for a loaded model.
        ModelError, WeightsError, MissingExtraError: If the model cannot be loaded, or not at this precision.
    """
    if isinstance(model, Backbone):
        if weights is not None or device is not None:
            raise OptionError("weights and device belong to loading; this backbone is loaded already, leave them out")
        backbone = model
    else:
        backbone = load_backbone(
            model, weights, device=None if device is None else str(device), precision=precision or "float32"
        )
    return backbone if precision is None else backbone.at_precision(precision)


def _shown(value: Any) -> str:
    """Quote a value for a message. Plain values are shown as they are, others by their type."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    return f"a {type(value).__name__}"
