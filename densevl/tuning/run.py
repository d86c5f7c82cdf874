"""`tune`: pictures in, advice out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from densevl import __version__
from densevl.backbones import Backbone
from densevl.backbones.proxies import load_proxy
from densevl.errors import DatasetError, OptionError
from densevl.files import Hold, atomic_write_all, guard
from densevl.pipelines.settings import load
from densevl.proposals import load_proposer
from densevl.tuning.candidates import Candidate, space
from densevl.tuning.counting import COUNTERS, Counter
from densevl.tuning.guessing import LEAST, AgreementCounter
from densevl.tuning.ledger import Ledger, Show
from densevl.tuning.pictures import MOST, Pictures, open_pictures
from densevl.tuning.result import ENOUGH, VALUES, Row, Tuning
from densevl.tuning.scores import MEASURES
from densevl.tuning.selection import Judged, Selection, Step

FEWEST = 3
"""Smallest number of pictures: each fold needs one, and others to choose by."""
STATE, TOML, JSON = "state/counted.npz", "tuned.toml", "tuned.json"
"""Files of a folder of results."""
VARIED = ("recipe", "operator", "background", "templates", "protocol", "precision", "views", "guided", "presence")
"""Facts of a pipeline that differ between candidates."""


def tune(
    folder: str | os.PathLike[str],
    model: str | Backbone = "auto",
    *,
    labels: Any = None,
    use: str | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
    proxy: str | None = None,
    proposals: str | None = None,
    only: Iterable[str] = (),
    tries: Mapping[str, Iterable[str]] | None = None,
    limit: int = MOST,
    budget: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    show: Show | None = None,
) -> Tuning:
    """Choose settings of a command for some pictures.

    Args:
        folder, labels, limit, use: as `open_pictures` takes them.
        model, weights, device: as `Segmenter` takes them. proxy, proposals: for recipes that read them, which are
            otherwise left out.
        only: settings to vary; all if empty. tries: values to try instead of the usual ones, by setting.
        budget: seconds after which nothing new is counted; None is no limit. seed: of all random draws.
        out: a folder for tuned.toml, tuned.json and state/, from which a second call resumes; None writes nothing.
        fresh: discard what was counted. overwrite: other files may be replaced.
        say: called with what is being done. show: called with the number of cells counted, and their total.

    Raises:
        DatasetError, ImageError, LabelError: as `open_pictures`; or there are fewer than three pictures.
        OptionError: settings or values are impossible.
        OutputError: `out` has other files.
        DensevlError: as the pipelines.
    """
    files = {} if out is None else {name: Path(out, name) for name in (TOML, JSON, STATE)}
    if budget is not None and not budget > 0:
        raise OptionError(f"a budget of {budget:g} is no time; give more than 0, or leave it out")
    pictures = open_pictures(folder, labels, limit=limit, use=use)
    if len(pictures) < FEWEST:
        raise DatasetError(f"{len(pictures)} pictures are too few to choose by; give {FEWEST}, better {ENOUGH} or more")
    guard([path for name, path in files.items() if name != STATE], inputs=pictures.paths, overwrite=overwrite)
    backbone = load(model, weights, device)
    inputs = _inputs(proxy, proposals, str(backbone.device))
    given = [name for name, own in inputs.items() if own is not None]
    choices = space(
        pictures.use,
        backbone,
        background=pictures.background,
        labelled=pictures.labelled,
        only=only,
        tries=tries,
        given=given,
    )
    if not choices.stages:
        raise OptionError(f"there is nothing to choose for model '{backbone.name}': give other --only or --try")
    counter = _counter(backbone, pictures, inputs)
    identity = {"densevl": __version__, **pictures.facts(), **_kept(counter.facts(choices.default))}
    with Hold(Path() if out is None else out) as hold:
        if out is not None:
            hold.take()
            if fresh:
                files[STATE].unlink(missing_ok=True)
        ledger = Ledger(
            counter.count,
            (len(pictures), counter.classes),
            path=files.get(STATE),
            identity=identity,
            budget=budget,
            show=show,
        )
        if ledger.resumed and say is not None:
            say(f"{ledger.resumed:,} counts are there already")
        try:
            least = 0.0 if pictures.labelled else LEAST
            selection = Selection(choices, ledger, MEASURES[counter.measure], seed=seed, least=least, say=say)
            found = _chosen(selection, counter, _loading(model, backbone, weights, proxy, proposals))
        except KeyboardInterrupt as stop:
            stop.add_note("the same command goes on from here" if out is not None else "nothing of it is kept")
            raise
        finally:
            ledger.save()
        if out is not None:
            atomic_write_all({files[TOML]: found.toml().encode(), files[JSON]: found.json().encode()})
    return found


def _counter(backbone: Backbone, pictures: Pictures, inputs: Mapping[str, Any]) -> Counter:
    kind = COUNTERS[pictures.use] if pictures.labelled else AgreementCounter
    return kind(backbone, pictures, **inputs)


def _inputs(proxy: str | None, proposals: str | None, device: str) -> dict[str, Any]:
    """Models that recipes read, loaded once."""
    return {
        "proxy": None if proxy is None else load_proxy(proxy, device=device),
        "proposals": None if proposals is None else load_proposer(proposals, device=device),
    }


def _loading(model: str | Backbone, backbone: Backbone, weights: Any, proxy: Any, proposals: Any) -> dict[str, str]:
    """The options that say which models run."""
    options = {
        "model": model if isinstance(model, str) and model != "auto" else backbone.name,
        "weights": weights,
        "proxy": proxy,
        "proposals": proposals,
    }
    return {name: os.fspath(value) for name, value in options.items() if value is not None}


def _kept(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in VARIED}


def _chosen(selection: Selection, counter: Counter, loading: Mapping[str, str]) -> Tuning:
    """The choice, its validation, and the effect of each of its settings."""
    pictures, default, order = counter.pictures, selection.space.default, selection.order
    steps = selection.choose(order)
    picked = steps[-1].chosen if steps else default
    judged = selection.judge()
    sure = judged.complete and judged.gain.sure and judged.gain.value > selection.least
    better = sure and picked != default
    chosen, cheaper = selection.cheapen(picked if better else default)
    ways = [default, *(step.chosen for step in steps), *_without(picked, default), *cheaper, chosen]
    selection.ledger.ensure(dict.fromkeys(ways), order, must=True)
    further = [own for own in selection.ledger.known if selection.ledger.has(own, order) and own not in ways]
    rows = [_row(selection, own, default) for own in dict.fromkeys(ways)]
    others = sorted((_row(selection, own, default) for own in further), key=lambda row: -row.value)
    warnings = (*pictures.warnings, *_warnings(pictures, steps, judged))
    return Tuning(
        pictures.use,
        loading,
        pictures.labels,
        len(pictures),
        counter.measure,
        pictures.labelled,
        default,
        picked,
        chosen,
        better,
        _tried(selection.ledger.known),
        judged,
        tuple(steps),
        tuple(rows),
        tuple(others),
        selection.seed,
        warnings,
    )


def _tried(known: Iterable[Candidate]) -> dict[str, tuple[str, ...]]:
    """The values of settings that have several, by setting."""
    found: dict[str, dict[str, None]] = {name: {} for name in VALUES}
    for own in known:
        for name, value in own.settings:
            found[name][value or "default"] = None
    return {name: tuple(values) for name, values in found.items() if len(values) > 1}


def _without(picked: Candidate, default: Candidate) -> list[Candidate]:
    """The pick with one setting at a time reset to the default, to show that setting's effect."""
    changed = picked.changed(default)
    return [picked.but(**{name: default[name]}) for name in changed] if len(changed) > 1 else []


def _row(selection: Selection, candidate: Candidate, default: Candidate) -> Row:
    gain = selection.difference(candidate, default, selection.order)
    value = selection.value(candidate, selection.order)
    return Row(candidate.against(default), value, gain, selection.ledger.seconds(candidate))


def _warnings(pictures: Pictures, steps: Iterable[Step], judged: Judged) -> list[str]:
    found = []
    if len(pictures) < ENOUGH:
        found.append(
            f"{len(pictures)} pictures: no difference on fewer than {ENOUGH} can be told from chance, so the default "
            "will be kept"
        )
    if not pictures.labelled:
        found.append(
            "no labels: settings are judged by how far they agree with what most methods say, which is a guess at how "
            "good they are; label a handful of pictures to know"
        )
    if not judged.complete or not all(step.complete for step in steps):
        found.append("the time was up before all was looked at; the same call with another budget goes on")
    return found
