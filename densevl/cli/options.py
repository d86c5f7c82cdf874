"""The options that several commands share: name, type, help and shell completion, each defined once.

Nothing here imports torch, so `--help` and the Tab key respond at once. Defaults are the constants in capitals; an
option without one is None if it is left out.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from densevl.cli.shared import from_config, where
from densevl.errors import OptionError, suggest
from densevl.files import shown

MODEL, PRECISION, BACKGROUND, PROPOSALS, OUT = "auto", "float32", "auto", "mini-sam", "densevl-out"
SHARD = 64
ELSEWHERE = "hf-hub:"
"""Prefix of files on the hub."""
BANK_SHARE, NEIGHBOURS = 0.5, 20
CELL, SCALES = "patch", "1"
CLIP_SHARES = ("fc-clip", "odise")

MODELS = (
    *("auto", "photo", "mini", "ViT-B-16/openai", "ViT-B-16/laion2b_s34b_b88k", "ViT-B-16-quickgelu/metaclip_fullcc"),
    *("ViT-L-14/openai", "ViT-L-14-336/openai", "ViT-B-32/openai"),
)
DEVICES = ("cpu", "cuda", "cuda:0", "mps")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json")
PRECISIONS = ("float32", "int8", "bfloat16", "float16", "float32-packed", "auto")
PLANS = ("tiles", "sliding", "whole")
BLENDS = ("pixel", "patch")
SCOPES = ("image", "window")
REFINEMENTS = ("anyup", "jbu", "jafar", "pamr", "edges", "lposs+", "proxy", "segments", "vote", "none")
TEMPLATE_WEIGHTS, PARENTS = ("equal", "image", "region", "pixel"), ("none", "pixel", "image")
VIEWS = ("flip", "flip+scale", "itaclip")
BACKGROUNDS = ("auto", "none", "unknown", "1-max", "foreground", "scenes", "voc", "coco-object", "context")
OPERATORS = (
    "pool",
    "roi",
    "cls_mask",
    "cls_bias",
    "balanced",
    "crop",
    "visual_prompt",
    "alpha",
    "adapter",
    "crop_prompted",
)
PROXIES = (
    "mini-sam",
    "efficientnet-lite0",
    "dino_vits16",
    "dino_vits8",
    "dino_vitb16",
    "dino_vitb8",
    "dinov2_vits14",
    "sam_vit_b",
)
EXPORTS = ("coco", "panoptic", "labelme", "labelstudio", "yolo", "geojson", "png", "npz", "html")
CONVENTIONS, TOLERANCE = ("opengl", "opencv"), 0.05
MAPS, MAP_DTYPES = ("npy", "safetensors", "zarr"), ("float16", "float32")
BLOCKS, TEXT_BLOCK = "-4", -1
SCORINGS = ("winclip", "dense", "streams", "dino", "patchcore", "adaptclip")


def recipe_names() -> Iterable[str]:
    """Return the names of all recipes."""
    from densevl.recipes import names

    return names()


def template_names() -> Iterable[str]:
    """Return the names of all template sets."""
    from densevl.vocabulary.templates import NAMES

    return NAMES


def proposer_names() -> Iterable[str]:
    """Return the names of all mask proposers."""
    from densevl.proposals import NAMES

    return NAMES


def choose(values: Iterable[str] | Callable[[], Iterable[str]], between: str = "") -> Callable[[str], list[str]]:
    """Return a function that completes an option's values for the Tab key.

    Args:
        values: the choices. between: separator of several choices, such as "," for "pamr,vote".
    """

    def offered(incomplete: str) -> list[str]:
        known = values() if callable(values) else values
        before, mark, last = incomplete.rpartition(between) if between else ("", "", incomplete)
        return [f"{before}{mark}{value}" for value in known if value.startswith(last)]

    return offered


def listed(text: str | None) -> tuple[str, ...]:
    """Split names at commas; none if the option is left out.

    Raises:
        OptionError: If a text contains no name.
    """
    found = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if text is not None and not found:
        raise OptionError(f"{text!r} names nothing; give names separated by commas, or leave the option out")
    return found


def numbers(text: str | None, kind: Callable[[str], Any], what: str) -> tuple[Any, ...] | None:
    """Parse numbers separated by commas; None if the option is left out.

    Args:
        kind: int or float. what: the option and an example, for the message.

    Raises:
        OptionError: If it is something else.
    """
    try:
        return None if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{text!r} is not {what}") from error


def option(
    help: str,
    *names: str,
    panel: str | None = None,
    values: Any = (),
    between: str = "",
    only: bool = False,
    there: bool = False,
    **more: Any,
) -> Any:
    """Create an option of typer with a panel and completion.

    Args:
        help: one or two full sentences. names: the flags, if they differ from the parameter's name.
        panel: its heading in `--help`. values, between: see `choose`. only: no other values are allowed.
        there: it is a file or folder that must exist. Both are checked before anything is loaded.
    """
    complete = choose(values, between) if values else None
    more = {"callback": _checked(tuple(values) if only else None, between, there), **more}
    return typer.Option(*names, help=help, rich_help_panel=panel, autocompletion=complete, **more)


def _given(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Refuse NaN. Empty strings are refused for all parameters at once; see `OneLineGroup`."""
    source = str(context.get_parameter_source(str(parameter.name)))
    if "DEFAULT_MAP" in source:
        from_config(str(parameter.name))
    if "COMMANDLINE" in source and value != value:
        raise typer.BadParameter("NaN is not a number; give one, or leave the option out")
    return value


def _checked(only: tuple[str, ...] | None, between: str, there: bool) -> Callable[..., Any]:
    """Return a callback that refuses impossible values; see `option`."""
    if only is None and not there:
        return _given

    def checked(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        _given(context, parameter, value)
        several = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        for one in map(str, several):
            for name in one.split(between) if between else [one]:
                if only is not None and name.strip() not in only:
                    raise typer.BadParameter(
                        f"{name!r} is not known{suggest(name, only)}; it is one of {', '.join(only)}"
                    )
            if there and not one.startswith(ELSEWHERE) and ":/" not in one and not os.path.exists(one):
                raise typer.BadParameter(f"{shown(one)} does not exist")
        return value

    return checked


def model_folder(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Check the folder to write a model to: not empty (as a path, the current folder), and not the name of a file."""
    _given(context, parameter, value)
    if value is not None and (Path(value).suffix in WEIGHTS or Path(value).is_file()):
        raise typer.BadParameter(f"{value!r} is the name of a file; name a folder")
    return value


def _read_so(context: typer.Context, bits: int | None) -> int | None:
    """Read all images of the command with this bit depth."""
    if bits is not None:
        from densevl.images import bit_depth

        context.with_resource(bit_depth(bits))
    return bits


def _up_to(context: typer.Context, megapixels: int | None) -> int | None:
    """Set the pixel limit for all images of the command."""
    if megapixels is not None:
        from densevl.images import pixel_limit

        context.with_resource(pixel_limit(megapixels * 10**6))
    return megapixels


ASKED, WORDS, MODELLING, METHOD = "Task", "Labels", "Model", "Method"
LOOKING, FILES, MACHINES = "Image processing", "Results", "Distributed runs"
HUGE = "Huge images"

Images = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders of images with all below them, patterns such as 'photos/*.jpg', or a text file with one "
        "path a line.",
        show_default=False,
    ),
]

Bits = Annotated[
    int | None,
    option(
        "Say how many of their 16 bits the images use. Images from cameras and scanners with 10, 12 or 14 bits look "
        "dark otherwise.",
        panel=LOOKING,
        min=8,
        max=16,
        callback=_read_so,
    ),
]

MaxPixels = Annotated[
    int | None,
    option(
        "Refuse images of more than this many megapixels; 100 if left out. Raise it for large images that you trust "
        "and that fit in memory.",
        panel=LOOKING,
        min=1,
        callback=_up_to,
    ),
]

Model = Annotated[
    str,
    option(
        "Choose the model to run. 'auto' takes the best one on this machine; `densevl models` lists all. For a "
        "folder, give local-dir:PATH.",
        panel=MODELLING,
        values=MODELS,
    ),
]
Weights = Annotated[
    Path | None,
    option(
        "Load this checkpoint file, if --model names an architecture or a config file.", panel=MODELLING, there=True
    ),
]
Device = Annotated[
    str | None,
    option(
        "Choose where the model runs: cpu, cuda, ... A GPU is used if there is one.", panel=MODELLING, values=DEVICES
    ),
]
Precision = Annotated[
    str,
    option(
        "Set the number format of the image tower: float32, int8 (often faster on a CPU, a quarter of the memory), "
        "bfloat16 or float16 (half the memory), float32-packed (float32, weights reordered for a CPU), auto (the "
        "fastest on this machine).",
        panel=MODELLING,
        values=PRECISIONS,
        only=True,
    ),
]

Activation = Annotated[
    str | None,
    option(
        "Set the activation of the model's towers, if its weights do not say it.", panel=MODELLING, values=ACTIVATIONS
    ),
]
Mean = Annotated[
    str | None,
    option(
        "Set the mean of the model's pixels, 0 to 1, if its files do not say it: one number, or three separated by "
        "commas for red, green, blue.",
        panel=MODELLING,
    ),
]
Std = Annotated[
    str | None,
    option("Set the standard deviation of the model's pixels, 0 to 1, in the same form.", panel=MODELLING),
]
RUN = ("out", "sheet", "as_json", "quiet", "overwrite", "strict", "bits", "ray", "workers", "shard")
KNOWS = "has its own classes and settings for images"
WITH_HEAD = ("images", "head", "model", "weights", "device", "precision", "activation", "mean", "std", *RUN)
"""Parameters that control how a command runs, and those allowed with --head."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


def loads(command: _Command) -> _Command:
    """Add --activation, --mean and --std to a command that loads models, for weights that do not specify them."""

    @functools.wraps(command)
    def wrapped(
        *args: Any, activation: str | None = None, mean: str | None = None, std: str | None = None, **kwargs: Any
    ) -> Any:
        if (activation, mean, std) == (None, None, None):
            return command(*args, **kwargs)
        from densevl.weights.given import loaded_as

        with loaded_as(activation, colour(mean, "--mean"), colour(std, "--std")):
            return command(*args, **kwargs)

    own = inspect.signature(command, eval_str=True)
    kinds = {"activation": Activation, "mean": Mean, "std": Std}
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in kinds.items()
    ]
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {**command.__annotations__, **kinds}
    return wrapped  # type: ignore[return-value]


def alone(flag: str, why: str, given: Mapping[str, Any], command: Callable[..., Any], allowed: Collection[str]) -> None:
    """Refuse options that another option already determines.

    Args:
        flag: that other option. why: what it determines. given: the parameters of `command` as it was called. allowed:
            options that may be combined with it.

    Raises:
        OptionError: If an option that is not allowed has a value.
    """
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in allowed and given.get(name, parameter.default) != parameter.default:
            [spec] = parameter.annotation.__metadata__[:1]
            raise OptionError(f"{flag} {why}: leave {[*(spec.param_decls or ()), _flag(name)][0]} out{where(name)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def colour(text: str | None, flag: str) -> list[float] | None:
    """Parse one number, or three separated by commas, for red, green and blue; None if the option is left out.

    Raises:
        OptionError: If it is something else.
    """
    found = numbers(text, float, f"one number for {flag}, or three separated by commas")
    return None if found is None else list(found) * (3 if len(found) == 1 else 1)


Labels = Annotated[
    str,
    option(
        'Name what to look for: "cat,dog"; "car|truck,road" gives one class two words; or a .txt or .json file.',
        panel=WORDS,
    ),
]
Like = Annotated[
    list[str] | None,
    option(
        "Add a label by example: NAME=IMAGE, or NAME=IMAGE:x0,y0,x1,y1 for a part of the image. Works with --labels. "
        "May be given several times.",
        panel=WORDS,
    ),
]
Head = Annotated[
    Path | None,
    option(
        "Use a head that `densevl fewshot fit` saved. It knows its classes, its model and how it reads images, so "
        "leave --labels out.",
        panel=METHOD,
    ),
]
Background = Annotated[
    str,
    option(
        "Choose the background rule: 'none', a probability below which pixels are background, words that compete "
        "with the labels (\"sky,wall\"), a list such as 'voc', or 'scenes' for places that suit each image. 'auto' "
        "is the model's own rule.",
        panel=WORDS,
        values=BACKGROUNDS,
    ),
]
Templates = Annotated[
    str | None,
    option(
        "Choose the sentences that labels are put into: a set such as openai or dense, or your own with {} for the "
        "label. The model's own set if left out.",
        panel=WORDS,
        values=template_names,
        between="+",
    ),
]
Descriptors = Annotated[
    Path | None,
    option("Read a JSON file that describes what each label looks like, as a list of texts.", panel=WORDS, there=True),
]
TextTransform = Annotated[
    Path | None,
    option(
        "Apply the transform in this file to the model's text embeddings, such as the matrix of LABCLIP.",
        panel=WORDS,
        there=True,
    ),
]
TemplateWeights = Annotated[
    str,
    option(
        "Weight the sentences of --templates: 'equal', or by what suits each 'image', 'region' or 'pixel' (AutoCLIP).",
        panel=WORDS,
        values=TEMPLATE_WEIGHTS,
        only=True,
    ),
]
Parents = Annotated[
    str,
    option(
        "Weight the words of a class by the probability of its name: 'none', at each 'pixel', or in the whole "
        "'image' (CHiLS).",
        panel=WORDS,
        values=PARENTS,
        only=True,
    ),
]
Presence = Annotated[
    float | None,
    option("Drop labels that reach this probability nowhere in the photo, 0 to 1.", panel=WORDS),
]

Recipe = Annotated[
    str | None,
    option(
        "Choose the published method that makes the model dense; `densevl recipes` lists them. For your own, give "
        "package.module:NAME. The model's default if left out.",
        panel=METHOD,
        values=recipe_names,
    ),
]
Compat = Annotated[
    bool,
    option("Run the recipe exactly as its authors published it, including its mistakes.", "--compat", panel=METHOD),
]
Proxy = Annotated[
    str | None,
    option(
        "Choose the second model that some recipes borrow from: a name such as mini-sam or dino_vitb8, or a weights "
        "file.",
        panel=METHOD,
        values=PROXIES,
    ),
]
ProxyScope = Annotated[
    str,
    option(
        "Run the model of --proxy once on the photo ('image') or on each window, as the papers do ('window').",
        panel=METHOD,
        values=SCOPES,
        only=True,
    ),
]
Sam = Annotated[
    str | None,
    option(
        "Choose the SAM encoder for the recipe trident: mini-sam, or a checkpoint file.",
        panel=METHOD,
        values=("mini-sam", "sam_vit_b"),
    ),
]
Refine = Annotated[
    str | None,
    option(
        "Sharpen the result: pamr, edges (cheap), lposs+, proxy, segments, vote, several separated by commas, or "
        "none. anyup, jbu and jafar must come first and need --upsampler. The model's default if left out.",
        panel=METHOD,
        values=REFINEMENTS,
        between=",",
        only=True,
    ),
]

Upsampler = Annotated[
    Path | None,
    option("Load the trained upsampler that --refine names: anyup, jbu or jafar.", panel=METHOD, there=True),
]

InstanceThreshold = Annotated[
    float | None,
    option(
        "With a concept model (SAM 3): drop instances less likely than this, 0 to 1; 0.5 if left out.",
        panel=METHOD,
        min=0,
        max=0.999,
    ),
]

Prefilter = Annotated[
    int | None,
    option(
        "With a concept model and a long list: try only this many labels on a photo, those that a CLIP ranks highest.",
        panel=METHOD,
        min=1,
    ),
]
PrefilterModel = Annotated[
    str | None,
    option("Choose the CLIP for --prefilter; 'auto' if left out.", panel=METHOD, values=MODELS),
]

ShortSide = Annotated[
    int | None, option("Resize the photo's short side to this many pixels first.", panel=LOOKING, min=1)
]
Crop = Annotated[
    int | None,
    option("Set the side of the model's windows in pixels; 0 takes the whole photo at once.", panel=LOOKING, min=0),
]
Stride = Annotated[int | None, option("Set the step from window to window in pixels.", panel=LOOKING, min=1)]
Plan = Annotated[
    str | None,
    option(
        "Lay out the windows: tiles (few, side by side), sliding (overlapping, as in the papers), or whole (one "
        "window).",
        panel=LOOKING,
        values=PLANS,
        only=True,
    ),
]
Blend = Annotated[
    str | None,
    option(
        "Average overlapping windows at each pixel or at each patch.",
        panel=LOOKING,
        values=BLENDS,
        only=True,
    ),
]
Bank = Annotated[
    list[Path] | None,
    option(
        "Also score the photo's segments with a bank of regions of other photos; see densevl bank build. May be "
        "given several times.",
        panel=METHOD,
        there=True,
    ),
]
BankShare = Annotated[
    float,
    option("Set the weight of the banks relative to the photo's own scores, 0 to 1.", panel=METHOD, min=0, max=1),
]
Neighbours = Annotated[
    int, option("Set how many regions of a bank are compared with each segment.", panel=METHOD, min=1, max=1000)
]
Views = Annotated[
    str | None,
    option(
        "Average over several views of the photo: flip, flip+scale, or itaclip. Slower, a little better.",
        panel=LOOKING,
        values=VIEWS,
        only=True,
    ),
]

Proposals = Annotated[
    str | None,
    option(
        "Choose what proposes regions: mini-sam (for drawings), sam, superpixels, felzenszwalb, clusters, or grid; "
        "or concepts:MODEL, a concept model that finds the labels. `densevl regions` uses mini-sam if left out. "
        "Label maps need proposals for a few recipes and for --refine segments or vote.",
        panel=METHOD,
        values=proposer_names,
    ),
]
Pieces = Annotated[bool, option("Cut each proposed region into its connected parts.", "--pieces", panel=METHOD)]
Tile = Annotated[int | None, option("Process large images in tiles of this side, in pixels.", panel=LOOKING, min=1)]
Operator = Annotated[
    str | None,
    option(
        "Choose how a region is embedded: pool, cls_mask, crop, ..., or a sum such as pool+cls_mask. The model's "
        "best if left out.",
        panel=METHOD,
        values=OPERATORS,
        between="+",
    ),
]
OperatorWeights = Annotated[
    Path | None,
    option("Load the weights of an --operator that has its own, such as alpha.", panel=METHOD, there=True),
]
Decoder = Annotated[
    Path | None,
    option(
        "Use masks and class scores of a trained mask decoder instead of --proposals: an .npz file that Decoded.save "
        "wrote, or a folder with NAME.npz for each NAME.jpg; or the weights file of SAN, with the CLIP of --model.",
        panel=METHOD,
        there=True,
    ),
]
ClipShare = Annotated[
    str,
    option(
        "Set the weight of CLIP relative to the scores of --decoder: fc-clip, odise, or two shares, for classes that "
        "the decoder was trained on and for others, such as 0.4,0.8.",
        panel=METHOD,
        values=CLIP_SHARES,
    ),
]
Scoring = Annotated[
    str,
    option(
        "Choose how anomalies are scored: by words, by comparison with normal images, or both.",
        panel=METHOD,
        values=SCORINGS,
        only=True,
    ),
]
Adapters = Annotated[
    Path | None, option("Load trained adapters from this file, for --scoring adaptclip.", panel=METHOD, there=True)
]
Item = Annotated[str, option('Name the object in the images, in the singular: "metal nut".', panel=WORDS)]

Out = Annotated[str, option("Write results to this folder, which is created if needed.", panel=FILES)]
OutFolder = Annotated[
    str | None,
    option(
        "Write results to this folder or address. A name that ends in .tar or .parquet packs them in shards. If left "
        "out, each set of settings gets a new folder in densevl-out.",
        panel=FILES,
    ),
]
As = Annotated[
    str | None,
    option(
        "Also export all results in the formats of other tools, separated by commas: coco, panoptic, labelme, "
        "labelstudio, yolo, geojson, png, npz; or html, a page for viewing.",
        "--as",
        panel=FILES,
        values=EXPORTS,
        between=",",
        only=True,
    ),
]
Stuff = Annotated[
    str, option('For --as panoptic: name the stuff labels, which are not countable: "sky,road".', panel=FILES)
]
Geotiff = Annotated[
    bool,
    option(
        "Process the image block by block at its own size, however large, and write a tiled GeoTIFF with its CRS. "
        "Used automatically for a single image over 100 megapixels.",
        "--geotiff",
        panel=HUGE,
    ),
]
Polygons = Annotated[
    bool, option("With --geotiff: also write GeoJSON polygons of the labels.", "--polygons", panel=HUGE)
]
Bands = Annotated[
    str | None,
    option("With --geotiff: choose the bands for red, green and blue, counted from 1: 4,3,2.", panel=HUGE),
]
Range = Annotated[
    str | None,
    option(
        "With --geotiff: set the values that map to black and white, for more than 8 bits: 0,3000.",
        "--range",
        panel=HUGE,
    ),
]
Sheet = Annotated[bool, option("Also write one picture of all results.", "--sheet", panel=FILES)]
Json = Annotated[bool, option("Print one line of JSON for each result instead of text.", "--json", panel=FILES)]
Quiet = Annotated[
    bool, option("Print nothing but errors: no progress, no line for each image.", "--quiet", "-q", panel=FILES)
]
Overwrite = Annotated[
    bool,
    option(
        "Start over: replace the results of other runs and any files in the way.",
        "--overwrite",
        panel=FILES,
    ),
]
Strict = Annotated[
    bool, option("Stop at the first image that cannot be read, instead of going on.", "--strict", panel=FILES)
]
Ray = Annotated[
    str | None,
    option(
        "Work on a Ray cluster: 'local' starts one on this machine, 'auto' finds a running one, or give its address.",
        panel=MACHINES,
        values=("local", "auto"),
    ),
]
Workers = Annotated[int, option("Set the number of Ray workers, each with its own model.", panel=MACHINES, min=1)]
Shard = Annotated[int, option("Set how many images a worker takes at a time.", panel=MACHINES, min=1)]
