"""`densevl eval run` under the name that users of mmsegmentation look for: python tools/test.py CONFIG --out DIR."""

import sys

from densevl.cli import app

if __name__ == "__main__":
    app(["eval", "run", *sys.argv[1:]])
