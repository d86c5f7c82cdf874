"""Save and load a fitted `FewShot`: what it learned and what that depends on, without pickles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from densevl import __version__, fitted
from densevl.backbones import Backbone
from densevl.errors import WeightsError
from densevl.fewshot import restore
from densevl.fewshot.calibration import Calibration
from densevl.fewshot.prompts.head import PromptLearner
from densevl.pipelines.borrowing import Borrowed
from densevl.pipelines.fewshot.features import RegionFeatures
from densevl.pipelines.fewshot.state import Learned
from densevl.recipes import Recipe
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.learned_templates import FORMAT

SAVED = fitted.kind_of("few-shot head")
BORROWED = ("proxy", "sam")


def save(path: Path, made: Learned, *, overwrite: bool = False) -> list[Path]:
    """Write PATH.safetensors and PATH.json; see `FewShot.save`."""
    segmenter, regions = made.segmenter, made.features
    states = {kind: head.state() for kind, head in made.heads.items()}
    tensors = {f"{kind}/{name}": value for kind, (own, _) in states.items() for name, value in own.items()}
    models = {name: getattr(segmenter, name) for name in BORROWED}
    facts: dict[str, Any] = {
        "densevl": __version__,
        "model": made.backbone.name,
        "fingerprint": fitted.fingerprint(made.backbone),
        "borrowed": {
            name: [model.name, fitted.fingerprint(model)] for name, model in models.items() if model is not None
        },
        "level": made.level,
        "head": made.head,
        "settings": made.settings,
        "operator": dict(regions.classify.operators) if isinstance(regions, RegionFeatures) else None,
        "options": regions.classify.embedding_facts()["options"] if isinstance(regions, RegionFeatures) else None,
        "coverage": made.coverage,
        "tokens": made.tokens,
        "compat": segmenter.compat,
        "proxy_scope": segmenter.proxy_scope,
        "precision": segmenter.backbone.precision,
        "recipe": [segmenter.recipe.name, repr(segmenter.recipe)] if segmenter.recipe is not None else None,
        "protocol": asdict(segmenter.protocol),
        "background": asdict(segmenter.background),
        "templates": list(segmenter.templates),
        "labels": made.labels.facts() if made.labels is not None else None,
        "counts": dict(made.counts),
        **({"pictures": sorted(made.pictures)} if made.pictures else {}),
        "calibration": asdict(made.calibration),
        **({} if made.guessed is None else {"unlabelled": made.guessed}),
        "heads": {kind: own for kind, (_, own) in states.items()},
    }
    return fitted.save(path, FORMAT, tensors, facts, overwrite=overwrite)


def classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the class names of a saved head without loading a model.

    Raises:
        WeightsError: If a file is missing or damaged.
    """
    facts = fitted.read(path, FORMAT, SAVED)[1]
    with SAVED.sense(path):
        return tuple(facts["labels"]["names"])


Made = TypeVar("Made", bound=Learned)


def load(
    kind: Callable[..., Made],
    path: str | os.PathLike[str],
    model: str | Backbone | None,
    recipe: str | Recipe | None,
    proxy: Borrowed,
    given: Mapping[str, Any],
) -> Made:
    """Read what `save` wrote; see `FewShot.load`."""
    tensors, facts = fitted.read(path, FORMAT, SAVED)
    what = f"few-shot head {path}"
    with SAVED.sense(path):
        name, make = facts["recipe"]
        borrowed = facts["borrowed"]
        made = kind(
            model or facts["model"],
            facts["head"],
            level=facts["level"],
            options=facts["settings"],
            operator=facts["operator"],
            operator_options=facts["options"],
            coverage=facts["coverage"],
            tokens=facts["tokens"],
            recipe=recipe or name,
            templates=facts["templates"],
            background=_background(facts["background"]),
            protocol=facts["protocol"],
            compat=facts["compat"],
            proxy_scope=facts["proxy_scope"],
            proxy=proxy or (borrowed["proxy"][0] if "proxy" in borrowed else None),
            **{"precision": facts["precision"], "sam": borrowed["sam"][0] if "sam" in borrowed else None, **given},
        )
        fitted.require_same(made.backbone, facts["fingerprint"], facts["model"], what)
        for option, (whose, weights) in borrowed.items():
            fitted.require_same(getattr(made.segmenter, option), weights, whose, what)
        if repr(made.segmenter.recipe) != make:
            raise WeightsError(f"{what} was fitted with another variant of recipe '{name}': give that one as recipe=")
        made.calibration = Calibration(**facts["calibration"])
        made.guessed, made.pictures = facts.get("unlabelled"), frozenset(facts.get("pictures", ()))
        made.labels, made.counts = LabelSet(**facts["labels"]), Counter(facts["counts"])
        for part, own in facts["heads"].items():
            mine = {key.removeprefix(f"{part}/"): value for key, value in tensors.items() if key.startswith(f"{part}/")}
            head = restore({key: value.to(made.backbone.device) for key, value in mine.items()}, own)
            if isinstance(head, PromptLearner):
                head.attach(made.tower(), made.segmenter.templates)
            made.heads[part] = head
        made.see()
    return made


def _background(facts: Mapping[str, Any]) -> Background:
    return Background(**{**facts, "words": tuple(facts["words"])})
