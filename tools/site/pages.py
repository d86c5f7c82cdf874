"""The pages of the site: those of docs/, those of the root, and references generated from the code."""

from __future__ import annotations

import ast
import re
import shutil
from collections import defaultdict
from pathlib import Path

from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

import densevl
from densevl.cli import app

ROOT = Path(__file__).parents[2]
OF_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files outside docs/, and the pages that they become."""
PICTURES, STYLE = (".jpg", ".png", ".svg"), "site.css"
PROMPT = re.compile(r"```console\n((?:\$ .*\n)+)```")
"""A block of commands without what they print."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)|(!\[[^\]]*\]\()([^)\s]+)\)")
LINE_OF_LIST = re.compile(r"(?m)^(?![-*|] |\d+\. |\s*$)(.+)\n(?=(?:[-*] |\d+\. ))")
REFERENCES = {
    "segmentation": "Segmenter SegmentationResult Ensemble BlockSegmenter VideoSegmenter Concepts",
    "regions": "RegionClassifier RegionResult RegionSearch Bank BankBuilder Proposals Decoded load_proposer",
    "anomaly": "AnomalyDetector AnomalyResult train_adapters",
    "few-shot": "FewShot Classification LabelSession",
    "features": "FeatureExtractor DenseMap PointLabeller PointLabels View",
    "explanations": "Explainer PatchMap HeadMaps PairMap",
    "models": "load_backbone load_proxy Recipe LabelSet TextOptions Descriptors keep_memory DensevlError",
}
"""The names of `densevl` by page, the most used first."""
MODULES = ("kernels", "inference", "images", "integrations", "evaluation", "errors")
"""Modules whose public names get their own page."""


def write(folder: Path) -> None:
    """Write the Markdown of all pages, and their pictures, to a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted((ROOT / "docs").iterdir()):
        if path.suffix == ".md":
            (folder / path.name).write_text(_page(path))
        elif path.suffix in PICTURES:
            shutil.copy(path, folder)
    for source, target in OF_THE_ROOT.items():
        (folder / target).write_text(_page(ROOT / source))
    shutil.copy(Path(__file__).with_name(STYLE), folder)
    (folder / "commands.md").write_text(commands())
    (folder / "reference").mkdir()
    for name, text in references().items():
        (folder / "reference" / f"{name}.md").write_text(text)


def _page(path: Path) -> str:
    """Adapt a page's links to the site; a link to a file outside it becomes the file's name."""

    def moved(found: re.Match[str]) -> str:
        if found[4]:
            return f"{found[4]}{_target(path, found[5]) or found[5]})"
        if "://" in found[2] or found[2].startswith("mailto:"):
            return found[0]
        target = _target(path, found[2])
        return f"[{found[1]}]({target}{found[3] or ''})" if target else f"{found[1]} (`{_relative(path, found[2])}`)"

    text = PROMPT.sub(_without_prompt, path.read_text(encoding="utf-8"))
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    # Most renderers of Markdown, but not this one, accept a list after its sentence without a blank line.
    return "".join(
        part if index % 2 else LINE_OF_LIST.sub(r"\1\n\n", LINK.sub(moved, part)) for index, part in enumerate(parts)
    )


def _without_prompt(block: re.Match[str]) -> str:
    """A block of commands that can be copied as it stands."""
    return "```bash\n" + re.sub(r"(?m)^\$ ", "", block[1]) + "```"


def _relative(path: Path, link: str) -> str:
    return (path.parent / link).resolve().relative_to(ROOT).as_posix()


def _target(path: Path, link: str) -> str | None:
    name = _relative(path, link)
    if name in OF_THE_ROOT:
        return OF_THE_ROOT[name]
    in_docs = name.startswith("docs/") and (name.endswith(".md") or name.endswith(PICTURES))
    return name.removeprefix("docs/") if in_docs else None


def commands() -> str:
    """Return the reference of the command line, from `--help`."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="densevl")
    return "# Command line\n\n" + PROMPT.sub(_without_prompt, re.sub(r"(?m)^(#+) `", r"\1# `", text))


def references() -> dict[str, str]:
    """Return the pages of the API, by name."""
    found, of = {}, public()
    for page, names in REFERENCES.items():
        parts = [
            f"::: densevl.{of[name]}.{name}\n    options:\n      heading: densevl.{name}\n" for name in names.split()
        ]
        found[page] = "\n".join([f"# {page.capitalize()}\n", *parts])
    return found | {name: f"# densevl.{name}\n\n::: densevl.{name}\n" for name in MODULES}


def public() -> dict[str, str]:
    """Return where the names of `densevl` come from: module, without the package, by name; modules are left out."""
    tree = ast.parse(Path(densevl.__file__).with_suffix(".pyi").read_text())
    origins: dict[str, list[str]] = defaultdict(list)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                origins[alias.name].append(node.module)
    return {name: modules[0] for name, modules in origins.items()}
