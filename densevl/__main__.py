"""Run the `densevl` command with `python -m densevl`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command. Ctrl-C during its import prints one line too."""
    try:
        from densevl.cli import app

        app(prog_name="densevl")
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped; the same command starts over\n")
        sys.exit(130)
    finally:
        exec("")  # noqa: S102  otherwise an interrupt inside an exec (dataclasses use it) kills Python by signal


if __name__ == "__main__":
    main()
