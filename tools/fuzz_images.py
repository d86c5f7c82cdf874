"""Search with libFuzzer for files that break the image reader: python -m tools.fuzz_images (pip install atheris).

Whatever the bytes, the reader must return pixels or one line (`tests/attacks/pictures.py`); anything else ends the
search and leaves the file beside `--found`. Coverage is that of the Python lines of densevl.images and Pillow; of
decoders in C, the search sees only the results. `--keep` then writes the smallest files that cover all paths found to
tests/attacks/corpus.zip, which a test reads.

`--flips` instead reports how many changed bits each format notices.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 4096  # bytes of a file
KEPT = 180_000  # bytes of all kept files
FLIPS = 400


def search(options: list[str], begin: Path | None = None) -> None:
    """Run libFuzzer, which starts its first argument again to merge.

    Args:
        begin: folder for the initial pictures: sound ones of every kind, and the kept ones.
    """
    import atheris

    with atheris.instrument_imports(include=["PIL", "densevl.images"]):
        from tests.attacks import pictures
    if begin is not None:
        begin.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate([*pictures.sound(), *pictures.corpus().values()]):
            (begin / f"known{number:03d}").write_bytes(data)
    atheris.Setup([f"{sys.executable} -m tools.fuzz_images --raw", *options], pictures.read)
    atheris.Fuzz()


def keep(found: Path) -> None:
    """Write the files that matter to the corpus, small ones first, until there are enough."""
    from tests.attacks.pictures import CORPUS, corpus

    with tempfile.TemporaryDirectory() as merged:
        subprocess.run(
            [sys.executable, "-m", "tools.fuzz_images", "--raw", "-merge=1", merged, found], cwd=ROOT, check=True
        )
        # Files named by words once broke the reader, and stay.
        kept = {name: data for name, data in corpus().items() if not re.fullmatch("[0-9a-f]{12}", name)}
        total = sum(map(len, kept.values()))
        for path in sorted(Path(merged).iterdir(), key=lambda path: path.stat().st_size):
            if (total := total + path.stat().st_size) > KEPT:
                break
            kept[path.name[:12]] = path.read_bytes()
    with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(kept.items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    print(f"{len(kept)} files of {total:,} bytes in {CORPUS.relative_to(ROOT)}")


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
    if sys.argv[1:2] == ["--raw"]:
        return search(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--found", type=Path, default=ROOT / "build" / "fuzz", help="what was found, kept between runs")
    parser.add_argument("--keep", action="store_true", help="write the smallest of --found to tests/attacks/corpus.zip")
    parser.add_argument("--flips", action="store_true", help="a table of changed bits by format")
    given = parser.parse_args()
    if given.flips:
        return flips()
    if given.keep:
        return keep(given.found)
    limits = [f"-max_total_time={given.seconds}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=2048"]
    search([*limits, f"-artifact_prefix={given.found.parent}/broken-", str(given.found)], given.found)


if __name__ == "__main__":
    main()
