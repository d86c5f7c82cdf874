"""`Tuning`: the choice, how certain it is, and the effect of each setting; as a table, as TOML and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

from densevl import __version__
from densevl.files import json_text
from densevl.recipes import get
from densevl.tuning.candidates import CLASSIFY, REGIONS, SEGMENT, Candidate
from densevl.tuning.scores import Difference
from densevl.tuning.selection import Judged, Step
from densevl.vocabulary import LabelSet

COMMANDS = {SEGMENT: ("segment", "video"), REGIONS: ("regions",), CLASSIFY: ("classify",)}
"""Commands whose options a use sets: tables of the TOML."""
ENOUGH = 6
"""The smallest number of pictures at which a difference can be certain, see `scores.difference`."""

VALUES = {
    "recipe": "recipes",
    "operator": "operators",
    "background": "backgrounds",
    "templates": "sets of templates",
    "plan": "plans of windows",
    "precision": "precisions",
    "guided": "numbers of guided crops",
    "presence": "thresholds of presence",
}
"""Words for the values of each setting."""


@dataclass(frozen=True)
class Row:
    """A candidate on all pictures.

    Attributes: choice: it in words. value: the measure, 0..1. gain: over the default. seconds: per picture.
    """

    choice: str
    value: float
    gain: Difference
    seconds: float


@dataclass(frozen=True, eq=False)
class Tuning:
    """The choice of settings for some pictures.

    Attributes:
        use: the command. loading: options that say which models run. labels: the classes.
        images: number of pictures. measure: its name.
        labelled: whether there was truth; without it, the measure is agreement, and the choice a guess.
        default, picked, chosen: the command's default; the best found; and the recommendation, which is the default
            unless the best is certainly better.
        better: whether the best is certainly better than the default. tried: by setting, the values that were tried,
            for settings with several.
        judged: the choice on unseen pictures. steps: the stages. rows: the default, each step on the way to the best,
            the best without each of its settings, and cheaper ones.
        finalists: everything else that was counted on all pictures. seed: of the draws. warnings: oddities.
    """

    use: str
    loading: Mapping[str, str]
    labels: LabelSet
    images: int
    measure: str
    labelled: bool
    default: Candidate
    picked: Candidate
    chosen: Candidate
    better: bool
    tried: Mapping[str, tuple[str, ...]]
    judged: Judged
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    finalists: tuple[Row, ...]
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """How certain the choice is, in a sentence."""
        judged, gain = self.judged, self.judged.gain
        figures = (
            f"on pictures it had not seen the choice has {self.measure} {judged.value:.1%}, the default "
            f"{judged.default:.1%}: {_signed(gain.value)} points, 95 % interval {_signed(gain.low)} to "
            f"{_signed(gain.high)}, p = {gain.p:.2g}; folds {', '.join(map(_signed, judged.folds))}"
        )
        saves = f"{self.chosen.against(self._base)}, which saves time and loses half a point at most"
        saved = self.chosen != self._base
        kept = f"the default is kept{f' but for {saves}' if saved else ''}"
        if self.better:
            return f"the choice is better than the default ({figures}){f'; with {saves}' if saved else ''}"
        if not judged.complete:
            return f"time was up before the choice could be checked: {kept}; a second call goes on"
        if self.picked == self.default:
            return f"nothing tried was better than the default by more than the error of the difference: {kept}"
        if gain.sure and gain.value > 0:
            return f"the gain is too small for a guess: {kept} ({figures})"
        few = f"; {ENOUGH} pictures are the fewest that can tell" if self.images < ENOUGH else ""
        return f"within the noise: {kept} ({figures}{few})"

    @property
    def _base(self) -> Candidate:
        """The best by accuracy alone; the choice may be a cheaper form of it."""
        return self.picked if self.better else self.default

    @property
    def looked_at(self) -> str:
        """The number of values tried for each setting, in a sentence."""
        found = [f"{len(values)} {VALUES[name]}" for name, values in self.tried.items()]
        return f"tried, the default among them: {', '.join(found) or 'nothing else'}"

    def toml(self) -> str:
        """The choice as a file for `densevl --config FILE`: a table for each command it concerns."""
        changed = self.chosen.changed(self.default)
        lines = [
            f"# densevl {__version__} tune: {self.images} pictures, model {self.loading['model']}, seed {self.seed}."
        ]
        lines += ["# " + line for line in wrap(self.verdict, 100)]
        if not self.labelled:
            lines.append("# No picture had labels: this is a guess, by what most methods say.")
        for command in COMMANDS[self.use]:
            lines += ["", f"[{command}]"]
            lines += [f"{name} = {_quoted(own)}" for name, own in self._loading.items()]
            if words := _words(self.labels):
                lines.append(f"labels = [{', '.join(map(_quoted, words))}]")
            for name, value in self.chosen.settings:
                if value is None:
                    continue
                mark = "" if name in changed else "  # the default"
                lines.append(f"{name} = {_quoted(value)}{mark}")
        return "\n".join(lines) + "\n"

    @property
    def _loading(self) -> dict[str, str]:
        """The options that say which models run, without those that the chosen recipe does not read."""
        recipe = self.chosen["recipe"]
        reads = get(recipe).reads if recipe else frozenset()
        unread = {"proxy": not reads & {"proxy"}, "proposals": self.use == SEGMENT and not reads & {"regions", "masks"}}
        return {name: own for name, own in self.loading.items() if not unread.get(name, False)}

    def facts(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "densevl": __version__,
            "use": self.use,
            "model": self.loading["model"],
            "labels": list(self.labels.names),
            "images": self.images,
            "labelled": self.labelled,
            "measure": self.measure,
            "seed": self.seed,
            "default": dict(self.default.settings),
            "picked": dict(self.picked.settings),
            "chosen": dict(self.chosen.settings),
            "verdict": self.verdict,
            "tried": {name: list(values) for name, values in self.tried.items()},
            "judged": {
                **asdict(self.judged.gain),
                "measure": self.judged.value,
                "default": self.judged.default,
                "folds": list(self.judged.folds),
                "choices": [dict(own.settings) for own in self.judged.choices],
                "complete": self.judged.complete,
            },
            "stages": [
                {"settings": list(step.settings), "tried": step.tried, "chosen": dict(step.chosen.settings)}
                for step in self.steps
            ],
            "rows": [_facts(row) for row in self.rows],
            "finalists": [_facts(row) for row in self.finalists],
            "warnings": list(self.warnings),
        }

    def json(self) -> str:
        """`facts` as text."""
        return json_text(self.facts(), indent=1, ensure_ascii=False) + "\n"


def _facts(row: Row) -> dict[str, Any]:
    return {"choice": row.choice, "value": row.value, "seconds": row.seconds, **{"gain": asdict(row.gain)}}


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """A row as text: choice, measure, difference, its interval, seconds."""
    gain = row.gain
    apart = (
        ("", "")
        if gain.p == 1.0 and not gain.value
        else (_signed(gain.value), f"{_signed(gain.low)} to {_signed(gain.high)}")
    )
    return row.choice, f"{100 * row.value:.1f}", *apart, f"{row.seconds:.3f}"


def _quoted(text: str) -> str:
    """A TOML string: JSON's, whose escapes are TOML's too, except DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _words(labels: LabelSet) -> list[str]:
    """Labels in the form of `--labels`; empty if that cannot express them."""
    found = []
    for name, own in zip(labels.names, labels.synonyms, strict=True):
        words = [name, *(word for word in own if word != name)]
        if name not in own or any(not isinstance(word, str) or set(word) & set(",|:;{}\n") for word in words):
            return []
        found.append(" | ".join(words))
    return found if not labels.negatives else []
