"""The public face: one table of names, which must not change by accident."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import densevl
from densevl.cli import app

STUB = Path(densevl.__file__).with_name("__init__.pyi")
PUBLIC = {
    *(
        "Concepts",
        "Segmenter",
        "RegionClassifier",
        "AnomalyDetector",
        "FewShot",
        "LabelSession",
        "Ensemble",
        "RegionSearch",
    ),
    *("Bank", "BankBuilder", "BlockSegmenter", "VideoSegmenter", "FeatureExtractor", "DenseMap"),
    *("SegmentationResult", "RegionResult", "AnomalyResult", "Classification", "Proposals", "Decoded"),
    *("PointLabeller", "PointLabels", "View"),
    *("Explainer", "PatchMap", "HeadMaps", "PairMap"),
    *("LabelSet", "TextOptions", "Descriptors", "Recipe", "DensevlError"),
    *("load_backbone", "load_proposer", "load_proxy", "train_adapters", "keep_memory"),
    *("backbones", "evaluation", "fewshot", "images", "inference", "integrations", "kernels"),
    *("recipes", "regions", "vocabulary"),
}

COMMANDS = {
    "segment": (
        "IMAGES --activation --as --background --bands --bank --bank-share --bits --blend --compat --crop "
        "--descriptors --device --geotiff --head --instance-threshold --json --labels --like --max-pixels --mean "
        "--model --neighbours --out --overwrite --parents --plan --polygons --precision --prefilter --prefilter-model "
        "--presence --proposals --proxy --proxy-scope --quiet --range --ray --recipe --refine --sam --shard --sheet "
        "--short-side --std --strict --stride --stuff --template-weights --templates --text-transform --upsampler "
        "--views --weights --workers"
    ),
    "video": (
        "VIDEOS --activation --background --blend --crop --descriptors --device --every --json --labels --like --mean "
        "--model --out --overwrite --parents --plan --precision --presence --proposals --proxy --quiet --recipe "
        "--refine --seconds --short-side --smooth --std --strict --stride --template-weights --templates "
        "--text-transform --upsampler --weights"
    ),
    "regions": (
        "IMAGES --activation --as --background --bits --blend --box --clip-share --compat --crop --decoder "
        "--descriptors --device --head --json --labels --like --max-pixels --mean --merge --model --objects "
        "--operator --operator-weights --out --overwrite --parents --parts --pieces --plan --point --precision "
        "--presence --proposals --proxy --proxy-scope --quiet --ray --recipe --sam --sam-checkpoint --shard --sheet "
        "--short-side --std --strict --stride --stuff --template-weights --templates --text-transform --tile --views "
        "--weights --workers"
    ),
    "search": (
        "FOLDER --activation --against --bits --device --each --for --index --json --least --like --max-pixels --mean "
        "--model --operator --out --overwrite --pieces --precision --proposals --quiet --recipe --sheet --std "
        "--strict --top --weights"
    ),
    "classify": (
        "IMAGES --activation --bits --descriptors --device --guided --head --json --labels --like --max-pixels --mean "
        "--model --out --overwrite --precision --presence --quiet --ray --shard --sheet --std --strict --templates "
        "--text-transform --weights --workers"
    ),
    "features": (
        "IMAGES --activation --bits --blend --compat --crop --device --dtype --format --json --layer --max-pixels "
        "--mean --model --out --overwrite --plan --precision --proposals --proxy --proxy-scope --quiet --ray --recipe "
        "--sam --scales --shard --short-side --size --std --strict --stride --weights --workers"
    ),
    "points": (
        "CLOUD --activation --background --convention --crop --depth-scale --device --features --json --labels --mean "
        "--model --out --overwrite --plan --precision --quiet --recipe --short-side --std --stride --tolerance "
        "--views --weights"
    ),
    "doctor": "--json --speed",
    "bench": (
        "--activation --device --json --labels --mean --model --models --plans --precisions --quality --recipes "
        "--rounds --sizes --std --threads"
    ),
    "tune": (
        "FOLDER --activation --bits --budget --device --fresh --json --labels --limit --mean --model --only --out "
        "--overwrite --proposals --proxy --quiet --seed --std --try --use --weights"
    ),
    "serve": (
        "--activation --bits --device --host --max-body --max-labels --max-pixels --mean --model --origin --port "
        "--precision --proposals --queue --recipes --refine --scoring --std"
    ),
    "recipes show": "NAME --json",
    "anomaly fit": (
        "NORMAL --activation --adapters --bits --device --fpr --item --mean --model --no-whole --out --overwrite "
        "--precision --proxy --recipe --scoring --size --states --std --tile --weights --whole --windows"
    ),
    "anomaly score": (
        "IMAGES --activation --adapters --bits --detector --device --item --json --max-pixels --mean --model --out "
        "--overwrite --precision --quiet --ray --recipe --scoring --shard --sheet --std --strict --weights --workers"
    ),
    "fewshot fit": (
        "FOLDER --activation --background --bits --calibrate --captions --count --descriptors --device --head "
        "--held-out --labels --level --mean --model --operator --out --overwrite --precision --proposals --recipe "
        "--set --std --templates --text-transform --unlabelled --weights"
    ),
    "fewshot memory": (
        "FOLDER --activation --beta --bits --device --examples --mean --model --neighbours --out --overwrite "
        "--precision --std --weights"
    ),
    "eval list": "--json",
    "eval check": "DATASET --ignore --json --root --task",
    "eval run": (
        "WHAT --activation --background --bank --bank-share --bits --blend --compat --crop --descriptors --device "
        "--dump --fresh --ignore --instance-threshold --json --launcher --limit --mean --measures --model "
        "--neighbours --operator --out --overwrite --paper --parents --plan --precision --prefilter "
        "--prefilter-model --presence --proposals --proxy --proxy-scope --quiet --recipe --refine --root --sam "
        "--save-every --scoring --seed --set --short-side --shots --std --stride --strings --task --template-weights "
        "--templates --text-transform --threads --trust-config --upsampler --variant --views --weights"
    ),
    "eval compare": (
        "WHAT --activation --background --bits --fresh --ignore --json --limit --mean --measures --model --out "
        "--overwrite --quiet --recipes --root --set --std --task --trust-config"
    ),
    "eval analyse": (
        "WHAT --activation --attributes --bits --distractors --json --labels --limit --mean --model --only --out "
        "--overwrite --recipe --root --set --std --text-masks --trust-config"
    ),
    "eval anomaly": (
        "WHAT --activation --bits --device --fresh --json --limit --mean --model --out --overwrite --proxy --quiet "
        "--root --scoring --set --shots --std --trust-config --weights"
    ),
    "explain patches": (
        "IMAGE --activation --against --bits --device --json --label --mean --model --out --overwrite --quiet --std "
        "--templates --weights"
    ),
    "explain heads": (
        "IMAGE --activation --against --bits --blocks --device --json --label --mean --model --out --overwrite --quiet "
        "--std --templates --weights"
    ),
    "explain words": (
        "IMAGES --activation --bits --block --device --head --json --mean --model --std --templates --top --weights "
        "--words"
    ),
    "explain pairs": (
        "IMAGE CAPTION --activation --bits --box --device --json --mean --model --out --overwrite --quiet --std "
        "--text-block --weights"
    ),
    "export model": (
        "OUT --activation --background --check --compat --format --labels --mean --model --overwrite --recipe --std "
        "--templates --weights"
    ),
    "export words": "OUT --activation --background --labels --mean --model --overwrite --std --templates --weights",
    "models list": "PATTERN --all --json",
    "models show": "NAME --json",
    "models get": "NAME --dry-run --overwrite --to",
    "models check": "NAME --activation --json --mean --precision --std --weights",
    "models convert": "NAME OUT --activation --mean --overwrite --std --truncate-dim --weights --words",
    "bank build": (
        "IMAGES --activation --bits --device --forget --keys --mean --model --out --overwrite --pieces --precision "
        "--proposals --quiet --recipe --std --strict --weights"
    ),
    "bank show": "BANK --json",
}
"""Arguments and options of every command: a script of somebody relies on each."""


def test_the_public_names_are_these() -> None:
    assert set(densevl.__all__) == PUBLIC
    assert set(dir(densevl)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC | {"__version__"}))
def test_every_public_name_resolves(name) -> None:
    assert getattr(densevl, name) is not None


def test_the_table_names_where_each_is_defined() -> None:
    """Else an editor jumps to a re-export, and a moved class keeps two addresses."""
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                assert getattr(densevl, alias.name).__module__ == f"densevl.{node.module}"


def test_everything_can_be_imported_by_a_star() -> None:
    scope: dict[str, object] = {}
    exec("from densevl import *", scope)
    assert scope.keys() >= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nope"):
        densevl.nope  # noqa: B018


def test_importing_densevl_imports_no_torch() -> None:
    code = "import densevl, sys; dir(densevl); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, own in command.commands.items():
            yield from _commands(own, (*path, name))
    else:
        yield " ".join(path), command


def test_the_options_of_the_commands_are_these() -> None:
    found = {}
    for name, command in _commands(typer.main.get_command(app)):
        given = [parameter for parameter in command.params if parameter.name != "help"]
        arguments = [parameter.name.upper() for parameter in given if parameter.param_type_name == "argument"]
        options = {flag for parameter in given for flag in (*parameter.opts, *parameter.secondary_opts)}
        found[name] = " ".join([*arguments, *sorted(flag for flag in options if flag.startswith("--"))])
    assert found == COMMANDS
