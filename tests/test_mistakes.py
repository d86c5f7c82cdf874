"""Every option of every command with values that it cannot have: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from densevl.cli import app

DEMO = Path(__file__).parents[1] / "demo"
SCENE, TILE = str(DEMO / "scenes" / "wood.png"), str(DEMO / "surfaces" / "tiles_sound.png")

RIGHT: dict[str, list[str]] = {
    "segment": [SCENE, "--labels", "penguin", "--model", "mini"],
    "video": ["clip.mp4", "--labels", "penguin", "--model", "mini"],
    "regions": [SCENE, "--labels", "penguin", "--model", "mini", "--proposals", "grid"],
    "search": [str(DEMO / "scenes"), "--for", "penguin", "--model", "mini", "--proposals", "grid"],
    "classify": [SCENE, "--labels", "penguin,pizza", "--model", "mini"],
    "features": [SCENE, "--model", "mini"],
    "explain patches": [SCENE, "--label", "penguin", "--model", "mini"],
    "explain heads": [SCENE, "--label", "penguin", "--model", "mini"],
    "explain words": [str(DEMO / "scenes"), "--words", "penguin,pizza", "--block", "6", "--model", "mini"],
    "explain pairs": [SCENE, "a penguin", "--model", "mini"],
    "points": ["cloud.npy", "--views", "transforms.json", "--labels", "penguin,pizza", "--model", "mini"],
    "fewshot fit": ["classes", "--model", "mini"],
    "fewshot memory": ["pairs", "--model", "mini"],
    "tune": ["tuned", "--model", "mini", "--only", "background", "--try", "background=none"],
    "serve": ["--model", "mini", "--port", "0", "--proposals", "grid"],
    "models list": ["ViT-B-16/*"],
    "models show": ["mini"],
    "models get": ["ViT-B-16/openai"],
    "models check": ["mini"],
    "models convert": ["mini", "out"],
    "doctor": [],
    "bank build": [str(DEMO / "scenes"), "--out", "bank", "--model", "mini", "--proposals", "grid"],
    "bank show": ["a.bank"],
    "bench": ["--model", "mini", "--rounds", "1", "--plans", "whole", "--precisions", "float32", "--sizes", "96x96"],
    "export model": ["out.pt2", "--format", "torch", "--model", "mini", "--labels", "penguin"],
    "export words": ["words.npz", "--model", "mini", "--labels", "penguin"],
    "recipes show": ["sclip"],
    "anomaly fit": [TILE, "--model", "mini", "--scoring", "dino"],
    "anomaly score": [TILE, "--model", "mini"],
    "eval list": [],
    "eval check": ["voc21"],
    "eval run": ["folder", "--root", "data", "--model", "mini"],
    "eval compare": ["folder", "--root", "data", "--model", "mini", "--recipes", "naclip"],
    "eval analyse": ["folder", "--root", "data", "--model", "mini"],
    "eval anomaly": ["mvtec", "--root", "parts", "--model", "mini"],
}
"""Arguments with which each command works, or gets as far as looking for its data."""
ABSENT, FILE = "absent/thing", "file.txt"
WRONG: dict[str, list[str]] = {
    "images": [ABSENT, FILE, "empty"],
    "videos": [ABSENT, FILE, "empty", "https://example.org/a.mp4"],
    "smooth": ["1", "-0.1", "nan", "x"],
    "every": ["0", "x"],
    "seconds": ["0", "nan", "x"],
    "normal": [ABSENT, FILE, "empty"],
    "source": [ABSENT, "empty"],
    "folder": [ABSENT, FILE, "empty"],
    "dataset": ["voc22", ""],
    "name": ["sclap", "", "no.such.module:NAME"],
    "labels": ["", " , ", "cat,cat", "cat,|"],
    "model": ["minni", "", "ViT-B-16/opnai", "local-dir:absent"],
    "weights": [ABSENT, FILE],
    "to": [FILE, f"{FILE}/below"],
    "pattern": ["no such name"],
    "models show name": ["minni", "", "ViT-B-16/opnai", "local-dir:absent", "hf-hub:a/b", "ViT-B-16", FILE],
    "models get name": ["minni", "", "ViT-B-16/opnai", "a/b/c"],
    "activation": ["relu", ""],
    "models convert words": [ABSENT, FILE],
    "truncate_dim": ["0", "-1", "x"],
    "mean": ["x", "0.1,0.2", "2", "nan", "", "0.5,0.5,0.5,0.5"],
    "std": ["x", "0.1,0.2", "0", "nan", "", "-0.5"],
    "recipe": ["sclap", "no.such.module:NAME", "os:path"],
    "recipes": ["sclap", "sclip,sclap", " , "],
    "out": [f"{FILE}/below"],
    "root": [ABSENT],
    "eval check root": [],
    "background": ["1.5", "-0.1", "nan", "voc,2"],
    "templates": ["opnai", "no place for a word", ""],
    "descriptors": [ABSENT, FILE],
    "text_transform": [ABSENT, FILE],
    "template_weights": ["imge", ""],
    "parents": ["pixl", ""],
    "bands": ["x", "", "1,2,3"],
    "value_range": ["x", "5", "", "0,9"],
    "presence": ["2", "-1", "nan", "x"],
    "guided": ["1", "0", "x"],
    "bits": ["7", "17", "x", ""],
    "short_side": ["0", "-3", "x"],
    "crop": ["-1", "x", "3"],
    "stride": ["0", "x", "100000"],
    "features stride": ["0", "-1", "x", ""],
    "features size": ["0", "x", "1x2x3", "-4", ""],
    "layer": ["99", "x"],
    "scales": ["x", "9", ""],
    "form": ["npz", ""],
    "dtype": ["int8", ""],
    "cloud": [ABSENT, FILE, "empty", SCENE],
    "points views": [ABSENT, FILE, "empty"],
    "convention": ["colmap", ""],
    "depth_scale": ["0", "-1", "nan", "x"],
    "tolerance": ["0", "2", "nan", "x"],
    "points stride": ["0", "-1", "x", ""],
    "plan": ["tile", ""],
    "plans": ["tile", "tiles,nothing", ""],
    "precision": ["int7", ""],
    "precisions": ["int7", ""],
    "kind": ["onxx", "pt2", ""],
    "blend": ["pixels", ""],
    "proxy": ["dinno", ABSENT],
    "proxy_scope": ["photo", ""],
    "sam": ["minisam", ABSENT],
    "regions": ["minisam"],
    "views": ["flop", ""],
    "bank": [ABSENT, FILE, "empty"],
    "bank_share": ["-0.1", "2", "nan", "x"],
    "neighbours": ["0", "x"],
    "keys": ["dinno", ABSENT],
    "refine": ["pamrr", "vote,pamr", "pamr,pamr", "none,pamr", "anyup", "pamr,anyup"],
    "upsampler": [ABSENT, FILE],
    "instance_threshold": ["1", "-0.1", "nan", "x"],
    "prefilter": ["0", "-5", "x"],
    "prefilter_model": ["minni", ""],
    "device": ["cud", "cuda:99", "", "meta"],
    "proposals": ["minisam", ""],
    "sam_checkpoint": [ABSENT, FILE],
    "tile": ["0", "-5", "x"],
    "point": ["1", "x,y", "-5,-5", "9999,9999", "nan,1"],
    "box": ["1,2", "a,b,c,d", "nan,1,2,3"],
    "image": [ABSENT, FILE, "empty"],
    "label": ["", " , ", "cat,dog"],
    "explain patches against": ["", " , "],
    "explain heads against": ["", " , "],
    "blocks": ["0", "-7", "7", "x", ""],
    "block": ["0", "7", "x"],
    "explain words head": ["0", "3", "x"],
    "vocabulary": ["", " , ", "cat,cat"],
    "most": ["0", "x"],
    "text_block": ["0", "4", "x"],
    "caption": ["", " ", "word " * 40],
    "merge": ["2", "-2", "nan", "x", "0.8"],
    "parts": ["0", "2", "nan", "x", "0.5"],
    "operator": ["poool", "pool+", "", "pool+pool"],
    "operator_weights": [ABSENT, FILE],
    "decoder": [ABSENT, FILE],
    "clip_share": ["fcclip", "0.4", "0.4,2", "x,y"],
    "forms": ["cocoo", "coco,", ""],
    "like": ["mug", f"={SCENE}", f"mug={ABSENT}", f"mug={SCENE}:5,5,5,5", f"mug={SCENE}:.,.,.,."],
    "search like": [ABSENT, f"{SCENE}:5,x,5,5"],
    "top": ["0", "-1", "x"],
    "each": ["0", "x"],
    "least": ["x", "nan"],
    "index": [FILE],
    "sizes": ["axb", "0x0", "96", ""],
    "rounds": ["0", "x"],
    "threads": ["0", "x"],
    "bench labels": ["x", "0", "", "1,-2"],
    "quality": [ABSENT, FILE, "empty"],
    "models": ["mini", "", "minni"],
    "scoring": ["winclap", ""],
    "windows": ["shred", ""],
    "states": [ABSENT, FILE],
    "size": ["0", "3", "x"],
    "adapters": [ABSENT, FILE],
    "fpr": ["2", "0", "nan", "x"],
    "item": [""],
    "detector": [ABSENT, FILE],
    "head": [ABSENT, FILE],
    "fewshot fit head": ["gdaa", ""],
    "level": ["images", ""],
    "unlabelled": ["best", ""],
    "count": ["0", "x"],
    "captions": [ABSENT, FILE],
    "own": ["alpha", "nothing=1", "=", "alpha=-1", "alpha=["],
    "calibrate": ["0", "1", "nan", "x"],
    "held_out": [ABSENT, FILE, "empty"],
    "examples": [ABSENT, FILE, "empty"],
    "beta": ["-1", "nan", "x"],
    "host": ["256.1.1.1", "no such host"],
    "port": ["-1", "70000", "x"],
    "origin": ["example.org", "ftp://example.org", "https://example.org/page", ""],
    "queue": ["0", "x"],
    "max_body": ["0", "x"],
    "max_pixels": ["0", "-1"],
    "max_labels": ["0", "x"],
    "ray": ["nowhere:1"],
    "workers": ["0", "x"],
    "shard": ["0", "x"],
    "task": ["semantik", ""],
    "limit": ["0", "-1", "x"],
    "ignore": ["x", "-1", "", "1,x"],
    "eval check ignore": ["x", "-1"],
    "strings": ["nmaes"],
    "variant": ["mmsegg"],
    "measures": ["iuo", "iou,outline"],
    "shots": ["-1", "x", "1000"],
    "distractors": [" , "],
    "text_masks": [ABSENT, FILE, "empty"],
    "attributes": [ABSENT, FILE],
    "what": ["voc22", "", "absent.yaml", FILE],
    "changes": ["nothing=1", "limit", "=", "limit=x", "protocol.crop=[", "protocol=3"],
    "launcher": ["slurm", "pytorch"],
    "save_every": ["x", "-1"],
    "seed": ["x"],
    "only": ["nothing", "vocabulary,foo", ""],
    "tries": ["sclip", "recipe=sclap", "recipes=sclip", "background=1.5", "plan=tile", "=", ""],
    "use": ["segmnt", "regions", ""],
    "budget": ["0", "-1", "nan", "x"],
    "tune limit": ["2", "x"],
    "tune labels": [" , ", "cat,cat", "cat,|"],
}
"""By option, or by command and option where they differ."""
ANY = {"words", "search against", "stuff", "eval check root"}
"""Options that any text is right for."""


def _commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    if hasattr(command, "commands"):
        return [found for name, own in command.commands.items() for found in _commands(own, (*path, name))]
    return [(" ".join(path), command)]


COMMANDS = dict(_commands(typer.main.get_command(app)))


def _values(command: str, option: str) -> list[str]:
    return WRONG.get(f"{command} {option}", WRONG.get(option, []))


def _table() -> list[Any]:
    rows = []
    for name, command in COMMANDS.items():
        for parameter in command.params:
            for value in () if getattr(parameter, "is_flag", False) else _values(name, parameter.name):
                rows.append(pytest.param(name, parameter, value, id=f"{name}: {parameter.name} {value!r}"))
    return rows


def test_every_command_and_option_is_in_the_table() -> None:
    assert set(RIGHT) == set(COMMANDS)
    options = {
        f"{name} {parameter.name}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if not getattr(parameter, "is_flag", False)
        and not ANY & {parameter.name, f"{name} {parameter.name}"}
        and not _values(name, parameter.name)
    }
    assert not options, "give wrong values for them"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a file that is nothing, an empty folder and a small benchmark."""
    from PIL import Image

    (tmp_path / FILE).write_text("\x00 not what was asked for")
    (tmp_path / "empty").mkdir()
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new(mode, (32, 32)).save(tmp_path / "data" / folder / "a.png")
    (tmp_path / "data" / "names.txt").write_text("penguin\npizza\n")
    for part in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (tmp_path / "parts" / "tile" / part).mkdir(parents=True)
        name, mode = ("0_mask.png", "L") if part.startswith("ground") else ("0.png", "RGB")
        Image.new(mode, (32, 32), 255).save(tmp_path / "parts" / "tile" / part / name)
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "tuned" / folder).mkdir(parents=True)
        for name in "abc":
            Image.new(mode, (32, 32)).save(tmp_path / "tuned" / folder / f"{name}.png")
    (tmp_path / "tuned" / "names.txt").write_text("background\npenguin\n")
    for kind in ("penguin", "pizza"):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "classes" / kind / "0.png")
    (tmp_path / "pairs").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pairs" / "0.png")
    (tmp_path / "pairs" / "0.txt").write_text("a black square")
    np.save(tmp_path / "cloud.npy", np.zeros((2, 3)))
    Image.new("RGB", (32, 32)).save(tmp_path / "view.png")
    frame = {"file_path": "view.png", "transform_matrix": np.eye(4).tolist()}
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 32, "frames": [frame]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "parameter", "value"), _table())
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(place, name, parameter, value) -> None:
    arguments = list(RIGHT[name])
    if parameter.param_type_name == "argument":
        places = [own.name for own in COMMANDS[name].params if own.param_type_name == "argument"]
        arguments[places.index(parameter.name)] = value
    else:
        flag = max(parameter.opts, key=len)
        while flag in arguments:
            at = arguments.index(flag)
            del arguments[at : at + 2]
        arguments += [f"{flag}={value}"]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, [*name.split(), *arguments])
    said = done.stderr.strip().splitlines()
    assert done.exit_code == (4 if parameter.name == "out" else 2), (done.exit_code, done.output, repr(done.exception))
    assert [line for line in said if line.startswith("error: ")] == said[-1:], done.stderr
    assert done.stdout == ""
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
