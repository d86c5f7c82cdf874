"""Build the documentation site into build/site: python -m tools.site.build --zensical PROGRAM, as `make docs` does.

Zensical reads the code without running it, so it needs neither torch nor densevl, and has its own environment. The
pages are written by this environment, which has both.
"""

from __future__ import annotations

import argparse
import subprocess

from tools.site.links import broken
from tools.site.pages import ROOT, write

SITE = ROOT / "build" / "site"


def main() -> None:
    """Write the pages, build the site, and check its links."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--zensical", default="zensical", help="the program that builds the site")
    given = parser.parse_args()
    write(ROOT / "build" / "pages")
    subprocess.run([given.zensical, "build", "--clean", "--config-file", ROOT / "mkdocs.yml"], check=True, cwd=ROOT)
    if faults := broken(SITE):
        raise SystemExit("\n".join(["links that lead nowhere:", *faults]))
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
