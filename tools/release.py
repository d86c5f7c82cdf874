"""Make the files of a release and try them: python -m tools.release BIN, as `make release` does.

BIN is the folder of programs of an environment with `build` and `twine`. The version is that of densevl/__init__.py. It
is refused if CITATION.cff or CHANGELOG.md disagree, or the tree has uncommitted changes. Then the wheel is installed by
itself, and must contain each file of SHA256SUMS and run. Nothing is published: the last line is the command that would.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from densevl import __version__, digest

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"


def contradictions(root: Path, version: str) -> Iterator[str]:
    """Return the objections to a release of this version, one sentence each."""
    if not re.search(rf"(?m)^version: {re.escape(version)}$", (root / "CITATION.cff").read_text()):
        yield f"CITATION.cff does not say version {version}"
    headings = re.findall(r"(?m)^## (.+)$", (root / "CHANGELOG.md").read_text())
    if not headings or not re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", headings[0]):
        yield f"CHANGELOG.md begins with '{headings[0] if headings else ''}', not with '{version} - YEAR-MONTH-DAY'"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if status.stdout:
        yield f"the tree has changes that are not committed, such as {status.stdout.splitlines()[0][3:]}"


def missing(wheel: Path, sums: str) -> list[str]:
    """Return the files of SHA256SUMS that are missing from a wheel or differ in it."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: digest.of_bytes(archive.read(name)) for name in archive.namelist()}
    listed = [line.split("  ", 1) for line in sums.splitlines()]
    return [name for known, name in listed if name.startswith("densevl/") and inside.get(name) != known]


def tried(wheel: Path) -> str:
    """Return the output of `densevl --version` of the wheel alone, in an environment with this one's packages."""
    with tempfile.TemporaryDirectory() as folder:
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, env=alone)
        borrowed = next(path for path in sys.path if path.endswith("site-packages"))
        (next(Path(folder, "lib").glob("python*/site-packages")) / "borrowed.pth").write_text(borrowed)
        run = [Path(folder, "bin", "densevl"), "--version"]
        return subprocess.run(run, cwd=folder, env=alone, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str]) -> None:
    """See the module text."""
    programs = Path(arguments[0])
    if wrong := list(contradictions(ROOT, __version__)):
        raise SystemExit("\n".join(["no release:", *wrong]))
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([programs / "python", "-m", "build", "--outdir", DIST, ROOT], check=True, stdout=subprocess.DEVNULL)
    files = sorted(DIST.iterdir())
    subprocess.run([programs / "twine", "check", "--strict", *files], check=True)
    (wheel,) = DIST.glob("*.whl")
    if lacking := missing(wheel, (ROOT / "SHA256SUMS").read_text()):
        raise SystemExit(f"{wheel.name} lacks {', '.join(lacking[:5])}: see package_data in setup.py")
    said = tried(wheel)
    if said != f"densevl {__version__}":
        raise SystemExit(f"{wheel.name} says '{said}'")
    (DIST / "SHA256SUMS").write_text("".join(f"{digest.of_file(path)}  {path.name}\n" for path in files))
    print(f"{', '.join(path.name for path in files)} in dist/")
    print(f"to publish: git tag v{__version__}; twine upload dist/densevl*")


if __name__ == "__main__":
    main(sys.argv[1:])
