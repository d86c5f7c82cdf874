"""Search for files on which the image reader breaks, by libFuzzer: python -m tools.fuzz_images (pip install atheris).

Whatever the bytes, the reader owes pixels or one line (`tests/attacks/pictures.py`); anything else ends the search and
leaves the file beside `--found`. Followed are the lines of densevl.images and of Pillow in Python; of decoders in C the
search sees only what they give. `--keep` then writes the smallest files that take all ways found to
tests/attacks/corpus, which a test reads again.

`--flips` says instead how many changed bits each format notices.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 4096  # bytes of a file
KEPT = 180_000  # bytes of all that are kept
FLIPS = 400


def search(folders: list[str], options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["PIL", "densevl.images"]):
        from tests.attacks import pictures
    for number, data in enumerate(pictures.sound()):
        Path(folders[-1], f"sound{number:03d}").write_bytes(data)
    atheris.Setup([sys.argv[0], *options, *folders], pictures.read)
    atheris.Fuzz()


def keep(found: Path) -> None:
    """The files that matter, small ones first, until there are enough."""
    from tests.attacks.pictures import CORPUS

    with tempfile.TemporaryDirectory() as merged:
        subprocess.run([sys.executable, "-m", "tools.fuzz_images", "--merge", merged, found], cwd=ROOT, check=True)
        total = 0
        for old in CORPUS.iterdir():
            old.unlink()
        for path in sorted(Path(merged).iterdir(), key=lambda path: path.stat().st_size):
            if (total := total + path.stat().st_size) > KEPT:
                break
            (CORPUS / path.name[:12]).write_bytes(path.read_bytes())
    print(f"{len(list(CORPUS.iterdir()))} files in {CORPUS.relative_to(ROOT)}")


def flips() -> None:
    import numpy as np

    from tests.attacks.pictures import FORMATS, encoded, photo, read

    print(f"of {FLIPS} files with one changed bit | refused | same pixels | other pixels")
    for kind in [*FORMATS, "AVIF"]:
        data, chance, counts = encoded(photo(), kind), random.Random(kind), [0, 0, 0]
        whole = read(data)
        for _ in range(FLIPS):
            damaged = bytearray(data)
            damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            got = read(bytes(damaged))
            counts[0 if not isinstance(got, np.ndarray) else 1 if np.array_equal(got, whole) else 2] += 1
        print(f"{kind} | " + " | ".join(f"{100 * count / FLIPS:.0f} %" for count in counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--found", type=Path, default=ROOT / "build" / "fuzz", help="what was found, kept between runs")
    parser.add_argument("--keep", action="store_true", help="write the smallest of --found to tests/attacks/corpus")
    parser.add_argument("--merge", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--flips", action="store_true", help="a table of changed bits by format")
    given = parser.parse_args()
    if given.flips:
        flips()
    elif given.merge:
        search(given.merge, ["-merge=1"])
    elif given.keep:
        keep(given.found)
    else:
        given.found.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={given.seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=2048"]
        limits.append(f"-artifact_prefix={given.found.parent}/broken-")
        search([str(given.found), str(ROOT / "tests" / "attacks" / "corpus")][:1], limits)


if __name__ == "__main__":
    main()
